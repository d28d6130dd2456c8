// The driver: which kernels, which algorithm, in which order, on how many threads. No instruction-set flags here.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels.h"

namespace fec {
namespace {

using namespace cpu;

constexpr int64_t kKeep = 16 << 20;  // bytes of sorted numbers or distances kept between the two passes of a layer

// Memory that grows and is used again from layer to layer: fresh pages would cost small layers more than their kernels.
class Workspace {
 public:
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      const int64_t rounded = (bytes + 63) / 64 * 64;
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char[], Free> memory_;
  int64_t size_ = 0;
};

struct Memory {
  Workspace kept, scratch;
};

// Calls body(index, thread) for every index below count, in any order. The body must not throw.
template <class Body>
void parallel(int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) body(i, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (int64_t i = 0; i < count; ++i) body(i, 0);
}

int64_t size_of(DType dtype) { return dtype == DType::F64 ? 8 : dtype == DType::F32 ? 4 : 2; }

// The magnitude whose bits the kernel `largest` returned; infinity for anything that is not finite.
double magnitude_of(DType dtype, uint64_t bits) {
  if (dtype == DType::F16) {
    if (bits >= 0x7c00) return INFINITY;
    const int exponent = static_cast<int>(bits >> 10);
    const double fraction = static_cast<double>(bits & 0x3ff);
    return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  }
  double value = 0;
  if (dtype == DType::F64) {
    std::memcpy(&value, &bits, 8);
  } else {
    const auto word = static_cast<uint32_t>(dtype == DType::BF16 ? bits << 16 : bits);
    float single = 0;
    std::memcpy(&single, &word, 4);
    value = single;
  }
  return std::isfinite(value) ? value : INFINITY;
}

double largest_magnitude(const Kernels& kernels, const Layer& layer, int threads) {
  struct Dimension {
    int64_t stride, size;
  };
  Dimension dims[] = {{layer.stride_outer, layer.outer},
                      {layer.stride_inner, layer.inner},
                      {layer.stride_channel, layer.channels},
                      {layer.stride_tap, layer.taps}};
  std::sort(std::begin(dims), std::end(dims), [](const Dimension& a, const Dimension& b) {
    return std::make_pair(a.size == 1, a.stride) < std::make_pair(b.size == 1, b.stride);
  });
  // The innermost dimensions that lie behind one another are one; what is left is looped over.
  int64_t run = dims[0].size, next = 1;
  while (next < 4 && (dims[next].size == 1 || dims[next].stride == dims[0].stride * run)) run *= dims[next++].size;
  int64_t spans = 1;
  for (int64_t d = next; d < 4; ++d) spans *= dims[d].size;
  const int64_t chunk = spans == 1 ? 1 << 20 : run, parts = (run + chunk - 1) / chunk;
  std::vector<uint64_t> most(static_cast<size_t>(std::max(threads, 1)), 0);
  parallel(spans * parts, threads, [&](int64_t i, int thread) {
    int64_t offset = i % parts * chunk * dims[0].stride, rest = i / parts;
    for (int64_t d = next; d < 4; rest /= dims[d++].size) offset += rest % dims[d].size * dims[d].stride;
    const auto* from = static_cast<const char*>(layer.data) + offset * size_of(layer.dtype);
    const uint64_t bits = kernels.largest(layer.dtype, from, std::min(chunk, run - i % parts * chunk), dims[0].stride);
    auto& here = most[static_cast<size_t>(thread)];
    here = std::max(here, bits);
  });
  return magnitude_of(layer.dtype, *std::max_element(most.begin(), most.end()));
}

// The formula's tau in the job's scaled units; `mean` is the measured mean distance, in those units already.
double tau_of(const Job& job, double mean) {
  return (job.formula.tau > 0 ? job.formula.tau * job.scale : mean) * job.formula.tau_scale;
}

double sum_of(const std::vector<double>& parts) {
  double sum = 0;
  for (const double part : parts) sum += part;  // in order: the same on any number of threads
  return sum;
}

void run_sorted(const Job& job, const Real& real, int64_t size, int threads, Memory& memory) {
  const int64_t filters = job.layer->filters(), channels = job.layer->channels, lanes = real.lanes;
  const int64_t blocks = (filters + lanes - 1) / lanes, bytes = channels * lanes * size;
  const bool keep = blocks * bytes <= kKeep;
  char* kept = memory.kept.at_least(keep ? blocks * bytes : threads * bytes);
  char* scratch = memory.scratch.at_least(threads * bytes);
  const auto block_of = [&](int64_t block, int thread) { return kept + (keep ? block : thread) * bytes; };
  const auto count_of = [&](int64_t block) { return std::min(lanes, filters - block * lanes); };
  const auto sort = [&](int64_t block, int thread) {
    return real.sort(job, block * lanes, count_of(block), block_of(block, thread));
  };
  const bool measured = job.formula.tau <= 0;
  double mean = 0;
  if (measured || keep) {
    std::vector<double> sums(static_cast<size_t>(blocks));
    parallel(blocks, threads, [&](int64_t b, int thread) { sums[static_cast<size_t>(b)] = sort(b, thread); });
    mean = sum_of(sums) / (double(channels) * double(channels) * double(filters));
  }
  const double tau = tau_of(job, mean);
  if (!(tau > 0)) {
    std::fill_n(job.layer->out, filters, 0.0);
    return;
  }
  parallel(blocks, threads, [&](int64_t b, int thread) {
    if (!keep) sort(b, thread);
    real.scan(block_of(b, thread), scratch + thread * bytes, channels, count_of(b), 1 / tau,
              job.layer->out + b * lanes);
  });
}

void run_pairwise(const Job& job, const Real& real, int64_t size, int threads, Memory& memory) {
  const int64_t groups = job.groups, points = job.points;
  const int64_t side = std::min<int64_t>(points <= 512 ? 128 : kTile, points);
  const int64_t strips = (points + side - 1) / side;
  const bool keep = double(groups) * double(points) * double(points) * double(size) <= double(kKeep);
  const int64_t tile_bytes = side * side * size, scratch_bytes = tile_scratch(size);
  char* kept = memory.kept.at_least(keep ? groups * points * points * size : threads * tile_bytes);
  char* scratch = memory.scratch.at_least(threads * scratch_bytes);
  const auto compute = [&](int64_t group, int64_t row, int64_t column, int thread, bool both) {
    Tile tile{group, row, std::min(side, points - row), column, std::min(side, points - column), nullptr, 0, nullptr, 0};
    char* base = kept + (keep ? group * points * points * size : thread * tile_bytes);
    tile.stride = keep ? points : side;
    tile.out = base + (keep ? (row * points + column) * size : 0);
    tile.mirror = row == column ? tile.out : both ? base + (column * points + row) * size : nullptr;
    tile.mirror_stride = tile.stride;
    return std::make_pair(real.tile(job, tile, scratch + thread * scratch_bytes), tile);
  };
  const bool measured = job.formula.tau <= 0 || job.formula.entropy == Entropy::Distance;
  double mean = 0;
  if (measured || keep) {
    std::vector<double> sums(static_cast<size_t>(groups * strips));
    parallel(groups * strips, threads, [&](int64_t i, int thread) {
      double sum = 0;
      const int64_t group = i / strips, row = i % strips * side;
      for (int64_t column = row; column < points; column += side) {
        sum += (column == row ? 1 : 2) * compute(group, row, column, thread, keep).first;
      }
      sums[static_cast<size_t>(i)] = sum;
    });
    mean = sum_of(sums) / (double(points) * double(points) * double(groups));
  }
  // The distance entropy has no tau and does not depend on the scale; near 1 its sums lose least.
  const double tau = job.formula.entropy == Entropy::Distance ? mean : tau_of(job, mean);
  const int64_t filters = job.layer->filters();
  if (!(tau > 0)) {
    std::fill_n(job.layer->out, filters, 0.0);
    return;
  }
  const bool inside = job.formula.axis == Axis::Channels;
  std::vector<double> means(inside ? static_cast<size_t>(groups * strips) : 0);
  parallel(groups * strips, threads, [&](int64_t i, int thread) {
    const int64_t group = i / strips, row = i % strips * side, rows = std::min(side, points - row);
    RowSums sums[kTile] = {};
    if (keep) {
      const char* first = kept + (group * points + row) * points * size;
      for (int64_t r = 0; r < rows; ++r) {
        real.row(job.formula.entropy, first + r * points * size, points, 1 / tau, &sums[r]);
      }
    } else {
      for (int64_t column = 0; column < points; column += side) {
        const Tile tile = compute(group, row, column, thread, false).second;
        for (int64_t r = 0; r < rows; ++r) {
          const char* from = static_cast<const char*>(tile.out) + r * tile.stride * size;
          real.row(job.formula.entropy, from, tile.columns, 1 / tau, &sums[r]);
        }
      }
    }
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const double nats = row_entropy(job.formula.entropy, sums[r], points);
      if (!inside) job.layer->out[row + r] = nats;
      total += nats;
    }
    if (inside) means[static_cast<size_t>(i)] = total / double(points);
  });
  for (int64_t g = 0; inside && g < groups; ++g) {
    job.layer->out[g] = sum_of({means.begin() + g * strips, means.begin() + (g + 1) * strips});
  }
}

const InstructionSet* detect() {
  static InstructionSet sets[] = {
      {"baseline", true},
#ifdef FEC_X86
      {"avx2", false},
      {"avx512", false},
#endif
      {nullptr, false}};
#ifdef FEC_X86
  __builtin_cpu_init();
  sets[1].usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets[2].usable = sets[1].usable && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return sets;
}

const Kernels& kernels_named(const char* name) {
  const Kernels* known[] = {&baseline_kernels,
#ifdef FEC_X86
                            &avx2_kernels, &avx512_kernels
#endif
  };
  const Kernels* widest = nullptr;
  for (int i = 0; instruction_sets()[i].name != nullptr; ++i) {
    const InstructionSet& set = instruction_sets()[i];
    if (std::strcmp(set.name, name) == 0) {
      if (!set.usable) throw std::invalid_argument(std::string("this processor has no ") + name);
      return *known[i];
    }
    if (set.usable) widest = known[i];
  }
  if (*name != 0) throw std::invalid_argument(std::string("no instruction set is called ") + name);
  return *widest;
}

}  // namespace

const InstructionSet* instruction_sets() {
  static const InstructionSet* sets = detect();
  return sets;
}

int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options) {
  const Kernels& kernels = kernels_named(options.instruction_set);
  const int threads = std::max(options.threads, 1);
  Memory memory;
  for (int64_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    const bool inside = formula.axis == Axis::Channels, one = formula.compress != Compress::None || layer.taps == 1;
    const bool sortable = inside && one && formula.entropy == Entropy::Similarity;
    if (options.algorithm == Algorithm::Sorted && !sortable) {
      throw std::invalid_argument("sorted needs axis=channels, the similarity entropy and one number a channel");
    }
    if (layer.filters() == 0) continue;
    if (layer.channels == 0 || layer.taps == 0) {
      std::fill_n(layer.out, layer.filters(), 0.0);
      continue;
    }
    const double most = largest_magnitude(kernels, layer, threads);
    if (std::isinf(most)) return i;
    const int limit = layer.dtype == DType::F64 ? 1022 : 126;  // beyond it the factor itself would not be normal
    const int exponent = most > 0 ? std::clamp(std::ilogb(most), -limit, limit) : 0;
    Job job{&layer, formula, std::ldexp(1.0, -exponent), 1, layer.filters(), 0};
    if (inside) {
      job.groups = layer.filters();
      job.points = layer.channels;
    }
    job.coordinates = (inside ? 1 : layer.channels) * (formula.compress == Compress::None ? layer.taps : 1);
    if (job.points == 1) {
      std::fill_n(layer.out, layer.filters(), 0.0);
      continue;
    }
    const Real& real = layer.dtype == DType::F64 ? kernels.f64 : kernels.f32;
    const int64_t size = layer.dtype == DType::F64 ? 8 : 4;
    if (sortable && options.algorithm != Algorithm::Pairwise) {
      run_sorted(job, real, size, threads, memory);
    } else {
      run_pairwise(job, real, size, threads, memory);
    }
  }
  return -1;
}

}  // namespace fec
