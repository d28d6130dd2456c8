// One layer on its way: what it needs, and its two passes (distances, then entropies) by units that can be done apart.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/kernels.h"

namespace fec::cpu {

constexpr int64_t kKeep = 12 << 20;  // bytes that a layer keeps between its passes; a larger one is computed twice
constexpr int64_t kShares = 32;  // most pieces of one distance matrix: each has sums of its own for every point

// What does a layer: the filters of a vector's lanes at a time, a filter at a time, or tiles of one matrix.
enum class Way { Sorted, Channels, Filters };

inline Way way_of(const Layer& layer, const Formula& formula) {
  if (layer.algorithm == Algorithm::Pairwise) {
    return formula.axis == Axis::Channels ? Way::Channels : Way::Filters;
  }
  if (!sortable(layer, formula)) throw std::invalid_argument("sorted needs axis=channels and one number per channel");
  return Way::Sorted;
}

// One layer on its way through the phases.
struct Run {
  Run(const Layer& layer, const Formula& formula, const Kernels& kernels)
      : job{&layer, formula, 1, layer.channels, formula.compress == Compress::None ? layer.taps : 1},
        real(layer.dtype == DType::F64 ? kernels.f64 : kernels.f32),
        way(way_of(layer, formula)),
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

inline double sort_unit(const Run& run, int64_t unit, char* block) {
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
inline double measure(const Run& run, int64_t unit, Memory memory) {
  if (run.way == Way::Sorted) return sort_unit(run, unit, run.keep ? memory.kept + unit * run.piece : memory.scratch);
  if (run.way == Way::Channels) return run.real.channel_distances(run.job, unit, memory.scratch);
  double sum = 0;
  each_tile(run, unit, memory, [&](const Tile& tile, bool diagonal) {
    sum += (diagonal ? 1 : 2) * run.real.tile(run.job, tile, memory.scratch + rounded(run.piece, 64));
  });
  return sum;
}

// Writes the entropies of a block or of a filter, or a share's part of the row sums.
inline void finish(Run& run, int64_t unit, Memory memory) {
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
inline void join(Run& run) {
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

// Sets tau, in the scaled units of the weights, once the distances are summed.
inline void set_tau(Run& run) {
  const Job& job = run.job;
  double sum = 0;
  for (const double part : run.sums) sum += part;
  const double matrices = run.way == Way::Filters ? 1 : double(job.layer->filters());
  const double mean = sum / (double(job.points) * double(job.points) * matrices);
  // The distance entropy has no tau and does not depend on the scale; near 1 its sums lose least.
  if (job.formula.entropy == Entropy::Distance) run.tau = mean;
  else run.tau = (job.formula.tau > 0 ? job.formula.tau * job.scale : mean) * job.formula.tau_scale;
}

}  // namespace fec::cpu
