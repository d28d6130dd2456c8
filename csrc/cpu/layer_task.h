// One layer as a task: its memory, and its two passes (distances, then entropies) in units that can run in parallel.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/kernels.h"

namespace fec::cpu {

constexpr int64_t kKeep = 12 << 20;  // most bytes kept between the passes; above, distances are computed twice
constexpr int64_t kBlock = 768 << 10;  // bytes that are packed at a time: in the L2 cache with a tile
constexpr int64_t kLeastSteps = 4;  // of kDepth coordinates; with fewer, reading and writing the tiles takes longer
constexpr int64_t kShares = 32;  // most units of one distance matrix: each has its own sums for every point

// The unit of work: as many filters as a vector has lanes, one filter, or tiles of one matrix.
enum class Way { Sorted, Channels, Filters };

inline Way way_of(const Layer& layer, const Formula& formula) {
  if (layer.algorithm == Algorithm::Pairwise) {
    return formula.axis == Axis::Channels ? Way::Channels : Way::Filters;
  }
  if (!sortable(layer, formula)) throw std::invalid_argument("sorted needs axis=channels and one number per channel");
  return Way::Sorted;
}

// One layer in the pipeline.
struct LayerTask {
  LayerTask(const Layer& layer, const Formula& formula, const Kernels& kernels, bool in_float64, int threads)
      : job{&layer, formula, 1, layer.channels, formula.compress == Compress::None ? layer.taps : 1},
        real(in_float64 || layer.dtype == DType::F64 ? kernels.f64 : kernels.f32),
        way(way_of(layer, formula)),
        size(&real == &kernels.f64 ? 8 : 4) {
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
      // Several threads would have to wait for one another before and after every block.
      if (keep && job.coordinates >= kExpanded && threads == 1) {
        packed.points = rounded(job.points, kSide);
        const int64_t steps = kBlock / (packed.points * size * kDepth);
        packed_depth = std::min(std::max(steps, kLeastSteps) * kDepth, job.coordinates);
      }
    }
    sums.resize(static_cast<size_t>(units));
  }

  int64_t kept_bytes() const { return !keep ? 0 : way == Way::Sorted ? units * piece : tiles * piece; }
  // Whether the tiles share packed panels, of `packed_depth` coordinates at a time. Packed by every tile for itself, a
  // strip would be packed as often as there are strips.
  bool is_packed() const { return packed_depth > 0; }
  int64_t packed_bytes() const { return packed.points * (packed_depth + 1) * size; }
  // Bytes per thread: data that is not kept, and the scratch memory of the kernels.
  int64_t scratch_bytes() const {
    if (units == 0) return 0;  // an empty layer: its other sizes may be anything
    if (way == Way::Sorted) return rounded(piece, 64) + 2 * piece;
    if (way == Way::Channels) return row_sums_bytes() + rounded(job.points, kSide) * (job.coordinates + 1) * size;
    return rounded(piece, 64) + rounded(kTileScratch * size, 64) + packed_bytes();
  }
  // Whether the first pass is done at first sight, with a guessed scale: then the weights are read from memory once. The
  // filters of a unit are one run then, which the search for the largest weight brings into the cache.
  bool at_first_sight() const {
    const Layer& layer = *job.layer;
    const bool dense = layer.stride_tap == 1 ? layer.stride_channel == layer.taps
                                             : layer.stride_channel == 1 && layer.stride_tap == layer.channels;
    return way == Way::Sorted && units > 0 && layer.inner == 1 && dense &&
           layer.stride_outer == layer.channels * layer.taps;
  }
  int64_t row_sums_bytes() const { return rounded(job.points * int64_t(sizeof(RowSums)), 64); }

  Job job;
  const Real& real;
  Way way;
  int64_t size, units = 0, piece = 0, side = 0, strips = 0, tiles = 0;
  int64_t packed_depth = 0;
  Packed packed{};
  bool keep = false;
  double tau = 0;
  bool measured = false;  // the first pass is done
  std::vector<double> sums;  // of distances, one per unit
  std::vector<RowSums> shares;  // of filters: [unit][point]
};

// The memory of a task, as one thread sees it.
struct Memory {
  char* kept;
  char* scratch;
};

inline double sort_unit(const LayerTask& task, int64_t unit, char* block) {
  const int64_t first = unit * task.real.lanes;
  const int64_t count = std::min<int64_t>(task.real.lanes, task.job.layer->filters() - first);
  return task.real.sort(task.job, first, count, block);
}

// The bits of the largest weight of the filters of a unit; see `at_first_sight`.
inline uint64_t largest_of_unit(const Kernels& kernels, const LayerTask& task, int64_t unit) {
  const Layer& layer = *task.job.layer;
  const int64_t first = unit * task.real.lanes;
  const int64_t count = std::min<int64_t>(task.real.lanes, layer.filters() - first);
  const char* from = static_cast<const char*>(layer.data) + first * layer.stride_outer * size_of(layer.dtype);
  return kernels.largest(layer.dtype, from, count * layer.stride_outer, 1);
}

// Calls body(tile, whether it is on the diagonal) for the tiles of a unit: every `units`-th strip of the matrix.
template <class Body>
void each_tile(const LayerTask& task, int64_t unit, Memory memory, const Body& body) {
  const int64_t points = task.job.points, side = task.side;
  for (int64_t strip = unit; strip < task.strips; strip += task.units) {
    for (int64_t other = strip; other < task.strips; ++other) {
      const int64_t before = strip * task.strips - strip * (strip - 1) / 2 + other - strip;  // tiles of earlier strips
      char* out = task.keep ? memory.kept + before * task.piece : memory.scratch;
      const int64_t row = strip * side, column = other * side;
      body(Tile{row, std::min(side, points - row), column, std::min(side, points - column), out, side}, strip == other);
    }
  }
}

// First pass: returns the sum of a unit's distances, and keeps the data that the second pass needs.
inline double measure(const LayerTask& task, int64_t unit, Memory memory) {
  if (task.way == Way::Sorted) {
    return sort_unit(task, unit, task.keep ? memory.kept + unit * task.piece : memory.scratch);
  }
  if (task.way == Way::Channels) return task.real.channel_distances(task.job, unit, memory.scratch);
  double sum = 0;
  each_tile(task, unit, memory, [&](const Tile& tile, bool diagonal) {
    sum += (diagonal ? 1 : 2) * task.real.tile(task.job, tile, memory.scratch + rounded(task.piece, 64));
  });
  return sum;
}

// First pass of a packed layer, all units: the panels of a block of coordinates, their part of all tiles, and so on. The
// bits are those that `measure` gives each unit.
inline void measure_packed(LayerTask& task, Memory memory) {
  char* scratch = memory.scratch + rounded(task.piece, 64);
  char* panels = scratch + rounded(kTileScratch * task.size, 64);
  Packed packed = task.packed;
  packed.panels = panels;
  packed.norms = panels + packed.points * task.packed_depth * task.size;
  for (; packed.k < task.job.coordinates; packed.k += packed.depth) {
    packed.depth = std::min(task.packed_depth, task.job.coordinates - packed.k);
    const bool last = packed.k + packed.depth == task.job.coordinates;
    for (int64_t point = 0; point < packed.points; point += kSide) {
      task.real.pack(task.job, point, std::min(kSide, task.job.points - point), packed);
    }
    for (int64_t unit = 0; unit < task.units; ++unit) {
      double sum = 0;
      each_tile(task, unit, memory, [&](const Tile& tile, bool diagonal) {
        task.real.add_products(tile, packed);
        if (last) sum += (diagonal ? 1 : 2) * task.real.distances(task.job, tile, packed.norms, scratch);
      });
      task.sums[static_cast<size_t>(unit)] = sum;
    }
  }
}

// Second pass: writes the entropies of a unit, or its part of the row sums of a matrix.
inline void finish(LayerTask& task, int64_t unit, Memory memory) {
  const Layer& layer = *task.job.layer;
  if (task.way == Way::Channels) {
    auto* sums = reinterpret_cast<RowSums*>(memory.scratch);
    layer.out[unit] =
        task.real.channel_entropy(task.job, unit, 1 / task.tau, sums, memory.scratch + task.row_sums_bytes());
    return;
  }
  char* scratch = memory.scratch + rounded(task.piece, 64);
  if (task.way == Way::Sorted) {
    char* block = task.keep ? memory.kept + unit * task.piece : memory.scratch;
    if (!task.keep) sort_unit(task, unit, block);
    const int64_t first = unit * task.real.lanes, count = std::min<int64_t>(task.real.lanes, layer.filters() - first);
    return task.real.scan(task.job.formula.entropy, block, scratch, layer.channels, count, 1 / task.tau,
                         layer.out + first);
  }
  RowSums* sums = task.shares.data() + unit * task.job.points;
  std::fill_n(sums, task.job.points, RowSums{0, 0});
  each_tile(task, unit, memory, [&](const Tile& tile, bool diagonal) {
    if (!task.keep) task.real.tile(task.job, tile, scratch);
    task.real.tile_sums(task.job.formula.entropy, tile, 1 / task.tau, sums + tile.row,
                       diagonal ? nullptr : sums + tile.column);
  });
}

// Adds up the row sums of all units of a matrix, and writes the entropies.
inline void join(LayerTask& task) {
  const int64_t points = task.job.points;
  for (int64_t p = 0; p < points; ++p) {
    RowSums sum{0, 0};
    for (int64_t unit = 0; unit < task.units; ++unit) {
      sum.first += task.shares[static_cast<size_t>(unit * points + p)].first;
      sum.second += task.shares[static_cast<size_t>(unit * points + p)].second;
    }
    task.job.layer->out[p] = row_entropy(task.job.formula.entropy, sum, points);
  }
}

// Sets tau, in the scaled units of the weights, once the distances are summed.
inline void set_tau(LayerTask& task) {
  const Job& job = task.job;
  double sum = 0;
  for (const double part : task.sums) sum += part;
  const double matrices = task.way == Way::Filters ? 1 : double(job.layer->filters());
  const double mean = sum / (double(job.points) * double(job.points) * matrices);
  // The distance entropy has no tau and does not depend on the scale; values near 1 lose the least precision.
  if (job.formula.entropy == Entropy::Distance) task.tau = mean;
  else task.tau = (job.formula.tau > 0 ? job.formula.tau * job.scale : mean) * job.formula.tau_scale;
}

}  // namespace fec::cpu
