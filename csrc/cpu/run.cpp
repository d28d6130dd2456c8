// The driver: layers in batches, each in three phases over all its pieces, on the threads asked for. No
// instruction-set flags here.
//
// A batch holds as many layers as their kept numbers fit the budget: few enough bytes to stay in the caches, enough
// work between two barriers. What is summed is summed in the order of the pieces: the same bits on any thread count.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "magnitude.h"

namespace fec {
namespace {

using namespace cpu;

constexpr int64_t kBatch = 4 << 20;  // bytes kept between the passes by the layers of a batch
constexpr int64_t kKeep = 16 << 20;  // and by a layer in a batch of its own; a larger one is computed twice
constexpr int64_t kShares = 32;  // most pieces of one distance matrix: each has sums of its own for every point

// Memory that grows and is used again from batch to batch: fresh pages would cost small layers more than their kernels.
class Workspace {
 public:
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded(bytes, 64)))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = rounded(bytes, 64);
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

// One layer on its way through the phases.
struct Run {
  Run(const Layer& layer, const Formula& formula, const Options& options, const Kernels& kernels)
      : job{&layer, formula, 1, 1, layer.filters(), 0},
        real(layer.dtype == DType::F64 ? kernels.f64 : kernels.f32),
        size(layer.dtype == DType::F64 ? 8 : 4) {
    const bool inside = formula.axis == Axis::Channels, one = formula.compress != Compress::None || layer.taps == 1;
    sorted = inside && one && formula.entropy == Entropy::Similarity;
    if (options.algorithm == Algorithm::Sorted && !sorted) {
      throw std::invalid_argument("sorted needs axis=channels, the similarity entropy and one number a channel");
    }
    sorted = sorted && options.algorithm != Algorithm::Pairwise;
    if (inside) {
      job.groups = layer.filters();
      job.points = layer.channels;
    }
    job.coordinates = (inside ? 1 : layer.channels) * (formula.compress == Compress::None ? layer.taps : 1);
    if (layer.filters() == 0 || layer.channels == 0 || layer.taps == 0) return;
    if (sorted) {
      units = (layer.filters() + real.lanes - 1) / real.lanes;
      piece = job.points * real.lanes * size;
      keep = units * piece <= kKeep;
    } else {
      side = std::min<int64_t>(job.points <= 512 ? 128 : kTile, rounded(job.points, kSide));
      strips = (job.points + side - 1) / side;
      units = inside ? job.groups : std::min(strips, kShares);
      piece = side * side * size;
      tiles = strips * (strips + 1) / 2;
      keep = double(job.groups) * double(tiles) * double(piece) <= double(kKeep);
    }
    sums.resize(static_cast<size_t>(units));
  }

  int64_t kept_bytes() const { return !keep || units == 0 ? 0 : sorted ? units * piece : job.groups * tiles * piece; }
  // Bytes one thread needs: what is not kept, the kernels' scratch, and the sums of a group's points.
  int64_t scratch_bytes() const {
    const int64_t pairs = rounded(kTileScratch * size, 64) + rounded(job.points * int64_t(sizeof(RowSums)), 64);
    return rounded(piece, 64) + (sorted ? piece : pairs);
  }

  Job job;
  const Real& real;
  int64_t size, units = 0, piece = 0, side = 0, strips = 0, tiles = 0;
  bool sorted = false, keep = false;
  double tau = 0;
  std::vector<double> sums;  // of distances, one a unit
  std::vector<RowSums> shares;  // axis=filters: [unit][point]
};

// Where a thread finds a run's memory.
struct Memory {
  char* kept;
  char* scratch;
};

// Sums the distances of a block of filters, or of a share of a matrix; keeps what the second pass wants.
double measure(const Run& run, int64_t unit, Memory memory);
// Writes the entropies of a block or a group, or a share's part of the row sums.
void finish(Run& run, int64_t unit, Memory memory);

double sort_unit(const Run& run, int64_t unit, char* block) {
  const int64_t first = unit * run.real.lanes, count = std::min<int64_t>(run.real.lanes, run.job.layer->filters() - first);
  return run.real.sort(run.job, first, count, block);
}

// Calls body(tile, whether it is on the diagonal) for the tiles of a unit: of a whole group, or of every so many
// strips of the one matrix.
template <class Body>
void each_tile(const Run& run, int64_t unit, Memory memory, const Body& body) {
  const bool inside = run.job.formula.axis == Axis::Channels;
  const int64_t group = inside ? unit : 0, points = run.job.points, side = run.side;
  for (int64_t strip = inside ? 0 : unit; strip < run.strips; strip += inside ? 1 : run.units) {
    for (int64_t other = strip; other < run.strips; ++other) {
      const int64_t before = strip * run.strips - strip * (strip - 1) / 2 + other - strip;  // tiles of earlier strips
      char* out = run.keep ? memory.kept + (group * run.tiles + before) * run.piece : memory.scratch;
      const int64_t row = strip * side, column = other * side;
      body(Tile{group, row, std::min(side, points - row), column, std::min(side, points - column), out, side},
           strip == other);
    }
  }
}

double measure(const Run& run, int64_t unit, Memory memory) {
  if (run.sorted) return sort_unit(run, unit, run.keep ? memory.kept + unit * run.piece : memory.scratch);
  double sum = 0;
  each_tile(run, unit, memory, [&](const Tile& tile, bool diagonal) {
    sum += (diagonal ? 1 : 2) * run.real.tile(run.job, tile, memory.scratch + rounded(run.piece, 64));
  });
  return sum;
}

void finish(Run& run, int64_t unit, Memory memory) {
  const Layer& layer = *run.job.layer;
  char* scratch = memory.scratch + rounded(run.piece, 64);
  if (run.sorted) {
    char* block = run.keep ? memory.kept + unit * run.piece : memory.scratch;
    if (!run.keep) sort_unit(run, unit, block);
    const int64_t first = unit * run.real.lanes, count = std::min<int64_t>(run.real.lanes, layer.filters() - first);
    return run.real.scan(block, scratch, layer.channels, count, 1 / run.tau, layer.out + first);
  }
  const bool inside = run.job.formula.axis == Axis::Channels;
  const int64_t points = run.job.points;
  RowSums* sums = inside ? reinterpret_cast<RowSums*>(scratch + rounded(kTileScratch * run.size, 64))
                         : run.shares.data() + unit * points;
  std::fill_n(sums, points, RowSums{0, 0});
  each_tile(run, unit, memory, [&](const Tile& tile, bool diagonal) {
    if (!run.keep) run.real.tile(run.job, tile, scratch);
    run.real.tile_sums(run.job.formula.entropy, tile, 1 / run.tau, sums + tile.row,
                       diagonal ? nullptr : sums + tile.column);
  });
  if (!inside) return;
  double total = 0;
  for (int64_t p = 0; p < points; ++p) total += row_entropy(run.job.formula.entropy, sums[p], points);
  layer.out[unit] = total / double(points);
}

// The sums of the shares of a matrix come together.
void join(Run& run) {
  const int64_t points = run.job.points;
  for (int64_t p = 0; p < points; ++p) {
    RowSums sum{0, 0};
    for (int64_t unit = 0; unit < run.units; ++unit) {
      sum.first += run.shares[static_cast<size_t>(unit * points + p)].first;
      sum.second += run.shares[static_cast<size_t>(unit * points + p)].second;
    }
    run.job.layer->out[p] = row_entropy(run.job.formula.entropy, sum, points);
  }
}

// Calls body(run, unit, thread) for every unit of every run, in any order. The body must not throw.
template <class Count, class Body>
void each_unit(std::vector<Run>& runs, int threads, const Count& count, const Body& body) {
  std::vector<int64_t> ends;
  int64_t all = 0;
  for (const Run& run : runs) ends.push_back(all += count(run));
  const auto call = [&](int64_t i, int thread) {
    const auto which = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
    body(static_cast<size_t>(which), which == 0 ? i : i - ends[static_cast<size_t>(which) - 1], thread);
  };
#ifdef _OPENMP
  if (threads > 1 && all > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < all; ++i) call(i, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (int64_t i = 0; i < all; ++i) call(i, 0);
}

// The scales of the runs' weights. Returns the index of the first run with one that is not finite, or -1.
int64_t scale_runs(std::vector<Run>& runs, const Kernels& kernels, int threads) {
  std::vector<Pieces> pieces;
  std::vector<std::vector<uint64_t>> most;
  for (const Run& run : runs) {
    pieces.emplace_back(*run.job.layer);
    most.emplace_back(static_cast<size_t>(run.units == 0 ? 0 : pieces.back().count()));
  }
  const Run* first = runs.data();
  each_unit(
      runs, threads, [&](const Run& run) { return static_cast<int64_t>(most[static_cast<size_t>(&run - first)].size()); },
      [&](size_t i, int64_t piece, int) { most[i][static_cast<size_t>(piece)] = pieces[i].largest(kernels, piece); });
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].units == 0) continue;
    const DType dtype = runs[i].job.layer->dtype;
    const double magnitude = magnitude_of(dtype, *std::max_element(most[i].begin(), most[i].end()));
    if (std::isinf(magnitude)) return static_cast<int64_t>(i);
    const int limit = dtype == DType::F64 ? 1022 : 126;  // beyond it the factor itself would not be normal
    runs[i].job.scale = std::ldexp(1.0, -(magnitude > 0 ? std::clamp(std::ilogb(magnitude), -limit, limit) : 0));
  }
  return -1;
}

// The taus, in the scaled units of the weights, once the distances are summed.
void set_tau(Run& run) {
  const Job& job = run.job;
  double sum = 0;
  for (const double part : run.sums) sum += part;
  const double mean = sum / (double(job.points) * double(job.points) * double(job.groups));
  // The distance entropy has no tau and does not depend on the scale; near 1 its sums lose least.
  if (job.formula.entropy == Entropy::Distance) run.tau = mean;
  else run.tau = (job.formula.tau > 0 ? job.formula.tau * job.scale : mean) * job.formula.tau_scale;
}

// Returns the index of the first run that is not finite, or -1.
int64_t run_batch(std::vector<Run>& runs, const Kernels& kernels, int threads, Workspace& keeping, Workspace& working) {
  const int64_t bad = scale_runs(runs, kernels, threads);
  if (bad >= 0) return bad;
  std::vector<int64_t> begins;
  int64_t kept_bytes = 0, scratch_bytes = 0;
  for (Run& run : runs) {
    begins.push_back(kept_bytes);
    kept_bytes += rounded(run.kept_bytes(), 64);
    scratch_bytes = std::max(scratch_bytes, rounded(run.scratch_bytes(), 64));
    if (run.job.formula.axis == Axis::Filters) run.shares.resize(static_cast<size_t>(run.units * run.job.points));
  }
  char* kept = keeping.at_least(kept_bytes);
  char* scratch = working.at_least(threads * scratch_bytes);
  const auto memory = [&](size_t i, int thread) { return Memory{kept + begins[i], scratch + thread * scratch_bytes}; };
  const auto has_first = [](const Run& run) {
    return run.keep || run.job.formula.tau <= 0 || run.job.formula.entropy == Entropy::Distance;
  };
  each_unit(
      runs, threads, [&](const Run& run) { return has_first(run) ? run.units : 0; },
      [&](size_t i, int64_t unit, int thread) {
        runs[i].sums[static_cast<size_t>(unit)] = measure(runs[i], unit, memory(i, thread));
      });
  for (Run& run : runs) {
    set_tau(run);
    if (!(run.tau > 0)) run.units = 0;  // all alike, or nothing in it
    if (run.units == 0) std::fill_n(run.job.layer->out, run.job.layer->filters(), 0.0);
  }
  each_unit(
      runs, threads, [](const Run& run) { return run.units; },
      [&](size_t i, int64_t unit, int thread) { finish(runs[i], unit, memory(i, thread)); });
  for (Run& run : runs) {
    if (run.units > 0 && !run.sorted && run.job.formula.axis == Axis::Filters) join(run);
  }
  return -1;
}

}  // namespace

int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options) {
  const Kernels& kernels = kernels_named(options.instruction_set);
  const int threads = std::max(options.threads, 1);
  Workspace keeping, working;
  for (int64_t i = 0; i < count;) {
    const int64_t begin = i;
    std::vector<Run> batch;
    int64_t bytes = 0;
    for (; i < count; ++i) {
      Run run(layers[i], formula, options, kernels);
      bytes += std::max(run.kept_bytes(), layers[i].filters() * layers[i].channels * run.size);
      if (!batch.empty() && bytes > kBatch) break;
      batch.push_back(std::move(run));
    }
    const int64_t bad = run_batch(batch, kernels, threads, keeping, working);
    if (bad >= 0) return begin + bad;
  }
  return -1;
}

}  // namespace fec
