// Distances between points of several coordinates, in tiles: 64 threads with 8 by 8 pairs each (4 by 4 of double). The
// points are copied to shared memory 16 or 32 coordinates at a time.
//
// Two methods for a distance, both exactly 0 between a point and itself:
//   difference  sum of (a - b)^2, also exactly 0 between duplicates
//   product     |a|^2 + |b|^2 - 2 ab, half the work, and for float, float16 and bfloat16 on tensor cores
//               (tensor_cores.cuh). It cancels where points are near one another, so near pairs are computed again by
//               `difference`: a few from global memory, a tile with many of them as a whole.
#pragma once

#include "cuda/pairwise/tensor_cores.cuh"

namespace fec::cuda {

// The squared distance of two points, by differences.
template <class T>
FEC_CALLED T exact_square(const Points& points, int32_t a, int32_t b, T scale) {
  T sum = 0;
  with_points<T>(points, [&](const auto* data) {
    const auto* from = data + point_offset(points, a);
    const auto* to = data + point_offset(points, b);
    for (int64_t k = 0; k < points.coordinates; ++k) {
      const int64_t at = coordinate_offset(points, k);
      const T gap = (static_cast<T>(value_of(from[at])) - static_cast<T>(value_of(to[at]))) * scale;
      sum += gap * gap;
    }
  });
  return sum;
}

// Adds 16 coordinates to the squares, or products, of a thread's pairs.
template <class T, bool product>
FEC_DEVICE void add_coordinates(const TileShared<T>* shared, int r0, int c0, T (&d)[kSide<T>][kSide<T>]) {
  constexpr int side = kSide<T>;
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    T a[side], b[side];
#pragma unroll
    for (int i = 0; i < side; ++i) a[i] = shared->room.strips[0][k][r0 + i];
#pragma unroll
    for (int i = 0; i < side; ++i) b[i] = shared->room.strips[1][k][c0 + i];
#pragma unroll
    for (int i = 0; i < side; ++i) {
#pragma unroll
      for (int j = 0; j < side; ++j) {
        const T gap = a[i] - b[j];
        d[i][j] += product ? a[i] * b[j] : gap * gap;
      }
    }
  }
}

// The squares, or products, of a thread's pairs.
template <class T, bool product>
FEC_DEVICE void add_all(TileShared<T>* shared, T scale, int r0, int c0, T (&d)[kSide<T>][kSide<T>]) {
#pragma unroll
  for (int i = 0; i < kSide<T>; ++i) {
#pragma unroll
    for (int j = 0; j < kSide<T>; ++j) d[i][j] = 0;
  }
  for (int64_t k = 0; k < shared->points.coordinates; k += kDepth) {
    set_steps(shared, k, kDepth, scale);
    __syncthreads();
    load_strip<T>(shared, 0);
    load_strip<T>(shared, 1);
    __syncthreads();
    add_coordinates<T, product>(shared, r0, c0, d);
  }
}

FEC_DEVICE void tile_products(TileShared<double>* shared, double scale, int r0, int c0,
                              double (&d)[kSide<double>][kSide<double>]) {
  add_all<double, true>(shared, scale, r0, c0, d);
}

// |a|^2 + |b|^2 - 2 ab from the products, near pairs by differences. Returns true if too many of a block's pairs are
// near; the tile is then incomplete.
template <class T>
FEC_DEVICE bool expand(const TileShared<T>* shared, int32_t row, int32_t column, T scale, int r0, int c0,
                       T (&d)[kSide<T>][kSide<T>]) {
  int near = 0;
#pragma unroll
  for (int i = 0; i < kSide<T>; ++i) {
#pragma unroll
    for (int j = 0; j < kSide<T>; ++j) {
      const T both = shared->lengths[0][r0 + i] + shared->lengths[1][c0 + j];
      const bool same = row + r0 + i == column + c0 + j;
      d[i][j] = same ? T(0) : both - 2 * d[i][j];
      near += !same && d[i][j] < both * static_cast<T>(kNear);
    }
  }
  if (__syncthreads_or(near > kMostNear)) return true;
  if (near == 0) return false;
#pragma unroll
  for (int i = 0; i < kSide<T>; ++i) {
#pragma unroll
    for (int j = 0; j < kSide<T>; ++j) {
      const int32_t a = row + r0 + i, b = column + c0 + j;
      const T both = shared->lengths[0][r0 + i] + shared->lengths[1][c0 + j];
      if (a != b && d[i][j] < both * static_cast<T>(kNear)) d[i][j] = exact_square<T>(shared->points, a, b, scale);
    }
  }
  return false;
}

// The distances of a tile. Thread t has `side` rows from row + side (t / 8) and `side` columns from
// column + side (t % 8).
template <class T>
FEC_DEVICE void tile_distances(TileShared<T>* shared, int32_t row, int32_t column, T scale,
                               T (&d)[kSide<T>][kSide<T>]) {
  const Points& points = shared->points;
  constexpr int side = kSide<T>, tile = kTile<T>;
  const int t = static_cast<int>(threadIdx.x), r0 = t / 8 * side, c0 = t % 8 * side;
  __syncthreads();  // `points` are written; the previous tile is no longer used
  bool near = points.coordinates < kProducts;
  for (int strip = 0; strip < 2 && t < tile; ++strip) {
    const int32_t own = (strip == 0 ? row : column) + t;
    const bool there = own < points.count;
    shared->offsets[strip][t] = point_offset(points, there ? own : points.count - 1);
    // Points past the last one are near no other.
    shared->lengths[strip][t] = !near && there ? static_cast<const T*>(points.lengths)[own] : static_cast<T>(INFINITY);
  }
  if (!near) {
    tile_products(shared, scale, r0, c0, d);
    near = expand<T>(shared, row, column, scale, r0, c0, d);
  }
  if (near) add_all<T, false>(shared, scale, r0, c0, d);
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) d[i][j] = root(d[i][j]);
  }
}

// The sums of a thread's pairs over their rows and columns.
template <class T>
struct TileSums {
  T of_rows[2][kSide<T>], of_columns[2][kSide<T>];
};

template <class T, Terms terms>
FEC_DEVICE void add_tile(int32_t count, int32_t row, int32_t column, T scale, const T (&d)[kSide<T>][kSide<T>],
                         TileSums<T>& sums) {
  constexpr int side = kSide<T>;
  const int t = static_cast<int>(threadIdx.x), r0 = t / 8 * side, c0 = t % 8 * side;
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) {
      T first = 0, second = 0;
      if (row + r0 + i < count && column + c0 + j < count) add_terms(terms, d[i][j], scale, first, second);
      sums.of_rows[0][i] += first;
      sums.of_columns[0][j] += first;
      sums.of_rows[1][i] += second;
      sums.of_columns[1][j] += second;
    }
  }
}

template <class T>
FEC_DEVICE TileSums<T> tile_sums(Terms terms, int32_t count, int32_t row, int32_t column, T scale,
                                 const T (&d)[kSide<T>][kSide<T>]) {
  TileSums<T> sums{};
  if (terms == Terms::Distances) add_tile<T, Terms::Distances>(count, row, column, scale, d, sums);
  else if (terms == Terms::Distance) add_tile<T, Terms::Distance>(count, row, column, scale, d, sums);
  else add_tile<T, Terms::Softmax>(count, row, column, scale, d, sums);  // similarity is its first sum
  return sums;
}

}  // namespace fec::cuda
