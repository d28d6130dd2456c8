// The driver: layers in batches, each in two parallel regions: distances and their means, then entropies beside
// the largest weights of the next batch. No instruction-set flags here.
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

#include "magnitude.h"
#include "threads.h"

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

// What does a layer: the filters of a vector's lanes at a time, a filter at a time, or tiles of one matrix.
enum class Way { Sorted, Channels, Filters };

Way way_of(const Layer& layer, const Formula& formula, Algorithm algorithm) {
  const bool inside = formula.axis == Axis::Channels, one = formula.compress != Compress::None || layer.taps == 1;
  if (algorithm == Algorithm::Sorted && !(inside && one)) {
    throw std::invalid_argument("sorted needs axis=channels and one number a channel");
  }
  if (inside && one && algorithm != Algorithm::Pairwise) return Way::Sorted;
  return inside ? Way::Channels : Way::Filters;
}

// One layer on its way through the phases.
struct Run {
  Run(const Layer& layer, const Formula& formula, const Options& options, const Kernels& kernels)
      : job{&layer, formula, 1, layer.channels, formula.compress == Compress::None ? layer.taps : 1},
        real(layer.dtype == DType::F64 ? kernels.f64 : kernels.f32),
        way(way_of(layer, formula, options.algorithm)),
        size(layer.dtype == DType::F64 ? 8 : 4) {
    if (way == Way::Filters) {
      job.points = layer.filters();
      job.coordinates *= layer.channels;
    }
    if (layer.filters() == 0 || layer.channels == 0 || layer.taps == 0) return;
    if (way == Way::Sorted) {
      units = (layer.filters() + real.lanes - 1) / real.lanes;
      piece = job.points * real.lanes * size;
      keep = units * piece <= kKeep;
    } else if (way == Way::Channels) {
      units = layer.filters();
    } else {
      side = std::min<int64_t>(job.points <= 512 ? 128 : kTile, rounded(job.points, kSide));
      strips = (job.points + side - 1) / side;
      units = std::min(strips, kShares);
      piece = side * side * size;
      tiles = strips * (strips + 1) / 2;
      keep = double(tiles) * double(piece) <= double(kKeep);
    }
    sums.resize(static_cast<size_t>(units));
  }

  int64_t kept_bytes() const { return !keep ? 0 : way == Way::Sorted ? units * piece : tiles * piece; }
  // Bytes one thread needs: what is not kept, and the kernels' own scratch.
  int64_t scratch_bytes() const {
    if (way == Way::Sorted) return rounded(piece, 64) + 2 * piece;
    if (way == Way::Channels) return row_sums_bytes() + rounded(job.points, kSide) * (job.coordinates + 1) * size;
    return rounded(piece, 64) + kTileScratch * size;
  }
  int64_t row_sums_bytes() const { return rounded(job.points * int64_t(sizeof(RowSums)), 64); }

  Job job;
  const Real& real;
  Way way;
  int64_t size, units = 0, piece = 0, side = 0, strips = 0, tiles = 0;
  bool keep = false;
  double tau = 0;
  std::vector<double> sums;  // of distances, one a unit
  std::vector<RowSums> shares;  // of filters: [unit][point]
};

// Where a thread finds a run's memory.
struct Memory {
  char* kept;
  char* scratch;
};

double sort_unit(const Run& run, int64_t unit, char* block) {
  const int64_t first = unit * run.real.lanes, count = std::min<int64_t>(run.real.lanes, run.job.layer->filters() - first);
  return run.real.sort(run.job, first, count, block);
}

// Calls body(tile, whether it is on the diagonal) for the tiles of a unit: of every so many strips of the matrix.
template <class Body>
void each_tile(const Run& run, int64_t unit, Memory memory, const Body& body) {
  const int64_t points = run.job.points, side = run.side;
  for (int64_t strip = unit; strip < run.strips; strip += run.units) {
    for (int64_t other = strip; other < run.strips; ++other) {
      const int64_t before = strip * run.strips - strip * (strip - 1) / 2 + other - strip;  // tiles of earlier strips
      char* out = run.keep ? memory.kept + before * run.piece : memory.scratch;
      const int64_t row = strip * side, column = other * side;
      body(Tile{row, std::min(side, points - row), column, std::min(side, points - column), out, side}, strip == other);
    }
  }
}

// Sums the distances of a block of filters, a filter, or a share of a matrix; keeps what the second pass wants.
double measure(const Run& run, int64_t unit, Memory memory) {
  if (run.way == Way::Sorted) return sort_unit(run, unit, run.keep ? memory.kept + unit * run.piece : memory.scratch);
  if (run.way == Way::Channels) return run.real.channel_distances(run.job, unit, memory.scratch);
  double sum = 0;
  each_tile(run, unit, memory, [&](const Tile& tile, bool diagonal) {
    sum += (diagonal ? 1 : 2) * run.real.tile(run.job, tile, memory.scratch + rounded(run.piece, 64));
  });
  return sum;
}

// Writes the entropies of a block or of a filter, or a share's part of the row sums.
void finish(Run& run, int64_t unit, Memory memory) {
  const Layer& layer = *run.job.layer;
  if (run.way == Way::Channels) {
    layer.out[unit] = run.real.channel_entropy(run.job, unit, 1 / run.tau, reinterpret_cast<RowSums*>(memory.scratch),
                                               memory.scratch + run.row_sums_bytes());
    return;
  }
  char* scratch = memory.scratch + rounded(run.piece, 64);
  if (run.way == Way::Sorted) {
    char* block = run.keep ? memory.kept + unit * run.piece : memory.scratch;
    if (!run.keep) sort_unit(run, unit, block);
    const int64_t first = unit * run.real.lanes, count = std::min<int64_t>(run.real.lanes, layer.filters() - first);
    return run.real.scan(run.job.formula.entropy, block, scratch, layer.channels, count, 1 / run.tau,
                         layer.out + first);
  }
  RowSums* sums = run.shares.data() + unit * run.job.points;
  std::fill_n(sums, run.job.points, RowSums{0, 0});
  each_tile(run, unit, memory, [&](const Tile& tile, bool diagonal) {
    if (!run.keep) run.real.tile(run.job, tile, scratch);
    run.real.tile_sums(run.job.formula.entropy, tile, 1 / run.tau, sums + tile.row,
                       diagonal ? nullptr : sums + tile.column);
  });
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

// Layers that go through the phases together.
struct Batch {
  std::vector<Run> runs;
  std::vector<Pieces> pieces;
  std::vector<std::vector<uint64_t>> most;  // [run][piece]: the bits of the largest weight
  std::vector<int64_t> begins;  // of the runs' kept bytes
};

// The layers from `next` on that fit one batch; moves `next` behind them.
Batch batch_from(int64_t& next, const Layer* layers, int64_t count, const Formula& formula, const Options& options,
                 const Kernels& kernels) {
  Batch batch;
  for (int64_t bytes = 0; next < count; ++next) {
    Run run(layers[next], formula, options, kernels);
    bytes += std::max(run.kept_bytes(), layers[next].filters() * layers[next].channels * run.size);
    if (!batch.runs.empty() && bytes > kBatch) break;
    batch.pieces.emplace_back(layers[next]);
    batch.most.emplace_back(static_cast<size_t>(run.units == 0 ? 0 : batch.pieces.back().count()));
    batch.runs.push_back(std::move(run));
  }
  return batch;
}

// Calls body(index, unit, thread) for every unit below counts[index], in any order. The body must not throw.
template <class Body>
void each_unit(const std::vector<int64_t>& counts, int threads, const Body& body) {
  std::vector<int64_t> ends;
  int64_t all = 0;
  for (const int64_t count : counts) ends.push_back(all += count);
  parallel_for(all, threads, [&](int64_t i, int thread) {
    const auto which = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
    body(static_cast<size_t>(which), which == 0 ? i : i - ends[static_cast<size_t>(which) - 1], thread);
  });
}

// Sets the scales of the runs. Returns the index of the first run with a weight that is not finite, or -1.
int64_t set_scales(Batch& batch) {
  for (size_t i = 0; i < batch.runs.size(); ++i) {
    Run& run = batch.runs[i];
    if (run.units == 0) continue;
    const DType dtype = run.job.layer->dtype;
    const double magnitude = magnitude_of(dtype, *std::max_element(batch.most[i].begin(), batch.most[i].end()));
    if (std::isinf(magnitude)) return static_cast<int64_t>(i);
    const int limit = dtype == DType::F64 ? 1022 : 126;  // beyond it the factor itself would not be normal
    run.job.scale = std::ldexp(1.0, -(magnitude > 0 ? std::clamp(std::ilogb(magnitude), -limit, limit) : 0));
  }
  return -1;
}

// The taus, in the scaled units of the weights, once the distances are summed.
void set_tau(Run& run) {
  const Job& job = run.job;
  double sum = 0;
  for (const double part : run.sums) sum += part;
  const double matrices = run.way == Way::Filters ? 1 : double(job.layer->filters());
  const double mean = sum / (double(job.points) * double(job.points) * matrices);
  // The distance entropy has no tau and does not depend on the scale; near 1 its sums lose least.
  if (job.formula.entropy == Entropy::Distance) run.tau = mean;
  else run.tau = (job.formula.tau > 0 ? job.formula.tau * job.scale : mean) * job.formula.tau_scale;
}

// The threads and what they work in.
class Crew {
 public:
  Crew(const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads) {}

  void first_pass(Batch& batch) {
    int64_t kept_bytes = 0;
    scratch_bytes_ = 0;
    std::vector<int64_t> counts;
    for (Run& run : batch.runs) {
      batch.begins.push_back(kept_bytes);
      kept_bytes += rounded(run.kept_bytes(), 64);
      scratch_bytes_ = std::max(scratch_bytes_, rounded(run.scratch_bytes(), 64));
      if (run.way == Way::Filters) run.shares.resize(static_cast<size_t>(run.units * run.job.points));
      const bool measured = run.job.formula.tau <= 0 || run.job.formula.entropy == Entropy::Distance;
      counts.push_back(run.keep || measured ? run.units : 0);
    }
    kept_ = keeping_.at_least(kept_bytes);
    scratch_ = working_.at_least(threads_ * scratch_bytes_);
    each_unit(counts, threads_, [&](size_t i, int64_t unit, int thread) {
      batch.runs[i].sums[static_cast<size_t>(unit)] = measure(batch.runs[i], unit, memory(batch, i, thread));
    });
    for (Run& run : batch.runs) {
      set_tau(run);
      if (!(run.tau > 0)) run.units = 0;  // all alike, or nothing in it
      if (run.units == 0) std::fill_n(run.job.layer->out, run.job.layer->filters(), 0.0);
    }
  }

  // Ends one batch and looks for the largest weights of the next: apart from one another, so without a barrier.
  void second_pass(Batch& batch, Batch& next) {
    std::vector<int64_t> counts;
    for (const Run& run : batch.runs) counts.push_back(run.units);
    for (const auto& most : next.most) counts.push_back(static_cast<int64_t>(most.size()));
    const size_t own = batch.runs.size();
    each_unit(counts, threads_, [&](size_t i, int64_t unit, int thread) {
      if (i < own) finish(batch.runs[i], unit, memory(batch, i, thread));
      else next.most[i - own][static_cast<size_t>(unit)] = next.pieces[i - own].largest(kernels_, unit);
    });
    for (Run& run : batch.runs) {
      if (run.units > 0 && run.way == Way::Filters) join(run);
    }
  }

 private:
  Memory memory(const Batch& batch, size_t i, int thread) const {
    return {kept_ + batch.begins[i], scratch_ + thread * scratch_bytes_};
  }

  const Kernels& kernels_;
  int threads_;
  Workspace keeping_, working_;
  char* kept_ = nullptr;
  char* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
};

}  // namespace

int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options) {
  const Kernels& kernels = kernels_named(options.instruction_set);
  Crew crew(kernels, std::max(options.threads, 1));
  int64_t begin = 0, end = 0;
  Batch batch, next = batch_from(end, layers, count, formula, options, kernels);
  crew.second_pass(batch, next);
  while (!next.runs.empty()) {
    batch = std::move(next);
    const int64_t bad = set_scales(batch);
    if (bad >= 0) return begin + bad;
    begin = end;
    next = batch_from(end, layers, count, formula, options, kernels);
    crew.first_pass(batch);
    crew.second_pass(batch, next);
  }
  return -1;
}

}  // namespace fec
