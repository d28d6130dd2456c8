// Distances between points of several coordinates, in tiles: 64 threads, 8 by 8 pairs each (4 by 4 of double), the
// points going through shared memory 16 coordinates at a time.
//
// Two ways to a distance, both exactly 0 between a point and itself:
//   difference  sum of (a - b)^2, also exactly 0 between duplicates
//   product     |a|^2 + |b|^2 - 2 ab, half the work. It cancels where points are near one another: near pairs are done
//               again by `difference`, straight from memory.
#pragma once

#include "pairwise_line.cuh"

namespace fec::cuda {

constexpr int kDepth = 16, kTileThreads = 64;
template <class T>
constexpr int kSide = sizeof(T) == 8 ? 4 : 8;  // points a side of the pairs of a thread
template <class T>
constexpr int kTile = 8 * kSide<T>;  // and of those of a block
constexpr int kProducts = 24;  // coordinates from which products are worth their second look
constexpr double kNear = 1.0 / 256;  // pairs nearer than 1/16 of their length are near

// Points where they lie: those of one matrix of distances.
struct Points {
  const void* data;
  DType dtype;
  int64_t base, stride_outer, stride_inner;  // of the points
  int32_t inner, count;
  int64_t coordinates, run, stride_run,
      stride_step;  // coordinate k lies at k / run * stride_run + k % run * stride_step
  bool neighbours;  // points lie closer together than coordinates
};

FEC_DEVICE int64_t point_offset(const Points& points, int32_t p) {
  return points.base + p / points.inner * points.stride_outer + p % points.inner * points.stride_inner;
}
FEC_DEVICE int64_t coordinate_offset(const Points& points, int64_t k) {
  if (points.run == points.coordinates) return k * points.stride_step;
  return k / points.run * points.stride_run + k % points.run * points.stride_step;
}

// Coordinates in the order in which they lie nearest; any order gives the same distances.
FEC_DEVICE void set_coordinates(Points& points, int64_t channels, int64_t stride_channel, int64_t taps,
                                int64_t stride_tap) {
  const bool along = taps > 1 && (channels == 1 || stride_tap <= stride_channel);  // taps are the inner ones
  points.coordinates = channels * taps;
  points.run = along ? taps : channels;
  points.stride_step = along ? stride_tap : stride_channel;
  points.stride_run = along ? stride_channel : stride_tap;
  if (points.stride_run == points.run * points.stride_step) points.run = points.coordinates;
}

// The filters of a layer; compressed ones where `points` says so.
template <class T>
FEC_DEVICE Points filters_of(const Entry& layer, bool compressed) {
  Points points{layer.data, layer.dtype, 0,     layer.stride_outer, layer.stride_inner, layer.inner, layer.filters,
                0,          0,           0,     0,                  false};
  if (compressed) {
    points.data = layer.points;
    points.dtype = sizeof(T) == 8 ? DType::F64 : DType::F32;
    points.inner = layer.filters;
    points.stride_inner = layer.channels;
    set_coordinates(points, layer.channels, 1, 1, 1);
  } else {
    set_coordinates(points, layer.channels, layer.stride_channel, layer.taps, layer.stride_tap);
  }
  points.neighbours = points.stride_inner < points.stride_step;
  return points;
}

// The channels of a filter, with all their taps.
FEC_DEVICE Points channels_of(const Entry& layer, int32_t filter) {
  Points points{layer.data, layer.dtype, filter_offset(layer, filter), 0, layer.stride_channel, layer.channels,
                layer.channels, 0, 0, 0, 0, false};
  set_coordinates(points, 1, 0, layer.taps, layer.stride_tap);
  points.neighbours = points.stride_inner < points.stride_step;
  return points;
}

template <class T>
struct TileShared {
  T strips[2][kDepth][kTile<T> + 4];  // points by coordinate; the 4 keep vectors aligned and banks apart
  T norms[2][kTile<T>];
  Points points;
  int64_t offsets[2][kTile<T>];
  T across[2][2][kTile<T>];  // sums of columns by warp
  RowSums rows[kTile<T>];  // of a strip against all others
  double sums[kTileThreads / 32];
};

template <class T, class F>
FEC_DEVICE void with_points(const Points& points, F f) {
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(points.data));
  } else if (points.dtype == DType::F32) {
    f(static_cast<const float*>(points.data));
  } else if (points.dtype == DType::F16) {
    f(static_cast<const F16*>(points.data));
  } else {
    f(static_cast<const BF16*>(points.data));
  }
}

// Coordinates [k, k + depth) of a strip of points. Past the last point or coordinate everything is 0.
template <class T>
FEC_CALLED void load_strip(TileShared<T>* shared, int strip, int32_t first, int64_t k, T scale) {
  const Points& points = shared->points;
  const int64_t* offsets = shared->offsets[strip];
  T(&to)[kDepth][kTile<T> + 4] = shared->strips[strip];
  constexpr int batch = 8, all = kTile<T> * kDepth;
  with_points<T>(points, [&](const auto* data) {
    for (int begin = static_cast<int>(threadIdx.x); begin < all; begin += batch * kTileThreads) {
      T held[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        // Neighbouring threads take what is nearest in memory.
        const int at = begin + i * kTileThreads;
        const int p = points.neighbours ? at % kTile<T> : at / kDepth,
                  c = points.neighbours ? at / kTile<T> : at % kDepth;
        const bool there = first + p < points.count && k + c < points.coordinates;
        held[i] = there ? static_cast<T>(value_of(data[offsets[p] + coordinate_offset(points, k + c)])) * scale : T(0);
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int at = begin + i * kTileThreads;
        if (points.neighbours) to[at / kTile<T>][at % kTile<T>] = held[i];
        else to[at % kDepth][at / kDepth] = held[i];
      }
    }
  });
}

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
    for (int i = 0; i < side; ++i) a[i] = shared->strips[0][k][r0 + i];
#pragma unroll
    for (int i = 0; i < side; ++i) b[i] = shared->strips[1][k][c0 + i];
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

// |a|^2 + |b|^2 - 2 ab from the products, near pairs by differences.
template <class T>
FEC_DEVICE void expand(const TileShared<T>* shared, int32_t row, int32_t column, T scale, int r0, int c0,
                       T (&d)[kSide<T>][kSide<T>]) {
  const Points& points = shared->points;
#pragma unroll
  for (int i = 0; i < kSide<T>; ++i) {
#pragma unroll
    for (int j = 0; j < kSide<T>; ++j) {
      const T both = shared->norms[0][r0 + i] + shared->norms[1][c0 + j];
      const int32_t a = row + r0 + i, b = column + c0 + j;
      d[i][j] = both - 2 * d[i][j];
      if (a == b) d[i][j] = 0;
      else if (d[i][j] < both * static_cast<T>(kNear) && a < points.count && b < points.count) {
        d[i][j] = exact_square<T>(points, a, b, scale);
      }
    }
  }
}

// The distances of a tile: of a thread, rows from row + side (t / 8) and columns from column + side (t % 8) on.
template <class T>
FEC_DEVICE void tile_distances(TileShared<T>* shared, int32_t row, int32_t column, T scale,
                               T (&d)[kSide<T>][kSide<T>]) {
  const Points& points = shared->points;
  constexpr int side = kSide<T>, tile = kTile<T>;
  const int t = static_cast<int>(threadIdx.x), r0 = t / 8 * side, c0 = t % 8 * side;
  __syncthreads();  // `points` are there; the tile before is done with
  const bool product = points.coordinates >= kProducts;
  if (t < tile && row + t < points.count) shared->offsets[0][t] = point_offset(points, row + t);
  if (t < tile && column + t < points.count) shared->offsets[1][t] = point_offset(points, column + t);
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) d[i][j] = 0;
  }
  T norms[2] = {};
  for (int64_t k = 0; k < points.coordinates; k += kDepth) {
    __syncthreads();
    load_strip<T>(shared, 0, row, k, scale);
    load_strip<T>(shared, 1, column, k, scale);
    __syncthreads();
    if (!product) {
      add_coordinates<T, false>(shared, r0, c0, d);
      continue;
    }
    for (int strip = 0; strip < 2 && t < tile; ++strip) {
#pragma unroll
      for (int c = 0; c < kDepth; ++c) norms[strip] += shared->strips[strip][c][t] * shared->strips[strip][c][t];
    }
    add_coordinates<T, true>(shared, r0, c0, d);
  }
  if (product) {
    if (t < tile) shared->norms[0][t] = norms[0];
    if (t < tile) shared->norms[1][t] = norms[1];
    __syncthreads();
    expand<T>(shared, row, column, scale, r0, c0, d);
  }
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) d[i][j] = root(d[i][j]);
  }
}

// What a thread's pairs add to their rows and columns.
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
