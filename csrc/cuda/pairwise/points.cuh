// Points of several coordinates: their layout in global memory, and their copies in shared memory.
#pragma once

#include "cuda/pairwise/line_kernels.cuh"

namespace fec::cuda {

constexpr int kDepth = 16, kTileThreads = 64;
template <class T>
constexpr int kSide = sizeof(T) == 8 ? 4 : 8;  // a thread has kSide x kSide pairs
template <class T>
constexpr int kTile = 8 * kSide<T>;  // a block has kTile x kTile pairs
constexpr int kProducts = 24;  // from this number of coordinates on, products are faster in spite of the near pairs
constexpr double kNear = 1.0 / 32;  // pairs nearer than a quarter of their length are near (tensor_cores.cuh: why)
constexpr int kMostNear = 4;  // of a thread's pairs; with more, the whole tile is computed again

// The points of one matrix of distances, in global memory.
struct Points {
  const void* data;
  DType dtype;
  int64_t base, stride_outer, stride_inner;  // of the points
  int32_t inner, count;
  int64_t coordinates, run, stride_run,
      stride_step;  // coordinate k lies at k / run * stride_run + k % run * stride_step
  bool neighbours;  // neighbouring points are closer in memory than neighbouring coordinates
  const void* lengths;  // from kProducts coordinates on: the squared length of each point, of type T
};

FEC_DEVICE int64_t point_offset(const Points& points, int32_t p) {
  return points.base + p / points.inner * points.stride_outer + p % points.inner * points.stride_inner;
}
FEC_DEVICE int64_t coordinate_offset(const Points& points, int64_t k) {
  if (points.run == points.coordinates) return k * points.stride_step;
  return k / points.run * points.stride_run + k % points.run * points.stride_step;
}

// Orders the coordinates by their place in memory; any order gives the same distances.
FEC_DEVICE void set_coordinates(Points& points, int64_t channels, int64_t stride_channel, int64_t taps,
                                int64_t stride_tap) {
  const bool along = taps > 1 && (channels == 1 || stride_tap <= stride_channel);  // taps are innermost
  points.coordinates = channels * taps;
  points.run = along ? taps : channels;
  points.stride_step = along ? stride_tap : stride_channel;
  points.stride_run = along ? stride_channel : stride_tap;
  if (points.stride_run == points.run * points.stride_step) points.run = points.coordinates;
}

// The row and column of a tile among those on the diagonal or right of it, counted row by row.
FEC_DEVICE void tile_of(uint32_t unit, int strips, int& row, int& column) {
  row = 0;
  uint32_t left = unit;
  while (left >= static_cast<uint32_t>(strips - row)) left -= static_cast<uint32_t>(strips - row++);
  column = row + static_cast<int>(left);
}

// The filters of a layer as points, compressed or not.
template <class T>
FEC_DEVICE Points filters_of(const Entry& layer, bool compressed) {
  Points points{layer.data, layer.dtype, 0, layer.stride_outer, layer.stride_inner, layer.inner, layer.filters,
                0,          0,           0, 0,                  false,              layer.spare};
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

// The channels of a filter as points, with all their taps.
template <class T>
FEC_DEVICE Points channels_of(const Entry& layer, int32_t filter) {
  const T* lengths = static_cast<const T*>(layer.spare) + static_cast<int64_t>(filter) * layer.channels;
  Points points{layer.data,     layer.dtype, filter_offset(layer, filter), 0, layer.stride_channel, layer.channels,
                layer.channels, 0,           0,                            0, 0,                    false,
                lengths};
  set_coordinates(points, 1, 0, layer.taps, layer.stride_tap);
  points.neighbours = points.stride_inner < points.stride_step;
  return points;
}

// Shared memory for points by coordinate; for the tensor cores by point, as pairs of float16, and then the products.
template <class T>
union Room {
  T strips[2][kDepth][kTile<T> + 4];  // 4 more: vectors stay aligned and columns are in different banks
};
constexpr int kChunk = 32, kRow = kChunk / 2 + 4;  // coordinates per step; words per point, in different banks
template <>
union Room<float> {
  float strips[2][kDepth][kTile<float> + 4];
  uint32_t halves[2][2][kTile<float>][kRow];  // strip, part, point
  float products[kTile<float>][kTile<float> + 4];
};

template <class T>
struct TileShared {
  Room<T> room;
  T lengths[2][kTile<T>];
  Points points;
  int64_t offsets[2][kTile<T>];
  int64_t steps[kChunk];  // offsets of the current coordinates
  T factors[kChunk];
  T across[2][2][kTile<T>];  // sums of columns, by warp
  RowSums rows[kTile<T>];  // sums of a strip over all points
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

// Sets the offsets and factors of `count` coordinates from k. Past the last one: the last one again, with factor 0.
template <class T>
FEC_DEVICE void set_steps(TileShared<T>* shared, int64_t k, int count, T scale) {
  const Points& points = shared->points;
  const int t = static_cast<int>(threadIdx.x);
  if (t >= count) return;
  const bool there = k + t < points.coordinates;
  shared->steps[t] = coordinate_offset(points, there ? k + t : points.coordinates - 1);
  shared->factors[t] = there ? scale : T(0);
}

// Loads the current coordinates of a strip of points. Neighbouring threads read neighbouring addresses. Past the last
// point: the last one again.
template <class T>
FEC_CALLED void load_strip(TileShared<T>* shared, int strip) {
  const bool across = shared->points.neighbours;
  const int64_t* offsets = shared->offsets[strip];
  T(&to)[kDepth][kTile<T> + 4] = shared->room.strips[strip];
  constexpr int tile = kTile<T>, batch = 8, turns = tile * kDepth / kTileThreads;
  static_assert(kTileThreads % tile == 0 && kTileThreads % kDepth == 0);
  const int t = static_cast<int>(threadIdx.x), p = across ? t % tile : t / kDepth, c = across ? t / tile : t % kDepth;
  // One of the two is constant.
  const int more_p = across ? 0 : kTileThreads / kDepth, more_c = across ? kTileThreads / tile : 0;
  with_points<T>(shared->points, [&](const auto* data) {
    for (int begin = 0; begin < turns; begin += batch) {
      T held[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int own = p + (begin + i) * more_p, at = c + (begin + i) * more_c;
        held[i] = static_cast<T>(value_of(data[offsets[own] + shared->steps[at]])) * shared->factors[at];
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) to[c + (begin + i) * more_c][p + (begin + i) * more_p] = held[i];
    }
  });
}

}  // namespace fec::cuda
