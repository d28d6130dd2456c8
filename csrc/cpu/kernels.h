// The interface of an instruction set: functions on blocks of data. Memory and threads belong to the driver.
#pragma once

#include "fec.h"
#include "entropy_math.h"

namespace fec::cpu {

// Bytes of a stored number.
static constexpr int64_t size_of(DType dtype) { return dtype == DType::F64 ? 8 : dtype == DType::F32 ? 4 : 2; }

static constexpr int64_t rounded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

constexpr int64_t kTile = 256;  // most rows and columns of a tile of distances
constexpr int64_t kDepth = 128;  // coordinates per step, so that two packed panels stay in the L1 cache
constexpr int64_t kExpanded = 24;  // from this number of coordinates on, products are faster in spite of the near pairs

// A layer, its formula, and the power of two that scales its largest weight to [1, 2): squares of huge and tiny weights
// then neither overflow nor underflow. Exact, and the entropies do not depend on it.
struct Job {
  const Layer* layer;
  Formula formula;
  double scale;
  int64_t points, coordinates;  // the points that are compared: the channels of a filter, or the filters of the layer
};

// A rectangle of the distances between the filters of a layer, right of the diagonal or on it.
struct Tile {
  int64_t row, rows, column, columns;
  void* out;
  int64_t stride;  // numbers between the rows of out: a multiple of kSide
};

// Coordinates [k, k + depth) of the filters of a layer in packed panels, step by step of kDepth coordinates: a step has
// all panels side by side. `norms` are the sums of squares of the coordinates packed so far.
struct Packed {
  void *panels, *norms;
  int64_t points;  // rounded up to kSide, with zeros
  int64_t k, depth;
};

// The kernels for one compute type (float or double; `void*` points at it).
struct Real {
  int lanes;

  // Gathers `count` <= lanes filters from `first` side by side, block[channel][lane], sorts each of them, and returns
  // the sum of |x_a - x_b| over their pairs, both orders.
  double (*sort)(const Job& job, int64_t first, int64_t count, void* block);

  // Entropies of the sorted filters of a block, which is overwritten; `scratch` has twice the size of the block.
  void (*scan)(Entropy entropy, void* block, void* scratch, int64_t channels, int64_t count, double inverse_tau,
               double* out);

  // `pairwise` between the channels of a filter: the sum of their distances, both orders, and the entropy. `scratch`
  // has rounded(points, kSide) * (coordinates + 1) numbers, `sums` one per channel.
  double (*channel_distances)(const Job& job, int64_t filter, void* scratch);
  double (*channel_entropy)(const Job& job, int64_t filter, double inverse_tau, RowSums* sums, void* scratch);

  // `pairwise` between filters. Distances of one tile; returns their sum. `scratch` has kTileScratch numbers, `out`
  // rounded(rows, 8) rows.
  double (*tile)(const Job& job, const Tile& tile, void* scratch);

  // The same in parts, from panels that all tiles of the layer share. `pack` packs `count` <= kSide filters from a
  // multiple of kSide on. `add_products` adds the products of these coordinates to a tile. Once all coordinates are
  // added, `distances` turns products into distances and returns their sum.
  void (*pack)(const Job& job, int64_t point, int64_t count, const Packed& to);
  void (*add_products)(const Tile& tile, const Packed& from);
  double (*distances)(const Job& job, const Tile& tile, const void* norms, void* scratch);

  // Adds the distances of a tile to the sums of its rows and, where not null, of its columns.
  void (*tile_sums)(Entropy entropy, const Tile& tile, double inverse_tau, RowSums* of_rows, RowSums* of_columns);
};

struct Kernels {
  // The largest magnitude among n numbers as the bits of its own type (ordered like the magnitudes, with infinities
  // and NaNs on top).
  uint64_t (*largest)(DType dtype, const void* data, int64_t n, int64_t stride);
  Real f32, f64;
};

constexpr int64_t kTileScratch = 2 * kTile * (kDepth + 1);  // two packed strips and the norms of their points
constexpr int64_t kSide = 32;  // sides of tiles in memory are rounded up to it; a multiple of all panel widths

extern const Kernels baseline_kernels;
#ifdef FEC_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// The kernels of an instruction set; of the fastest one for an empty name. Throws std::invalid_argument.
const Kernels& kernels_named(const char* name);

}  // namespace fec::cpu
