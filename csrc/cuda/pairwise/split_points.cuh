// The filters of a layer as rows of float16, split once (tensor_cores.cuh: how and why), for the products of all pairs.
#pragma once

#include "cuda/pairwise/scratch.cuh"

namespace fec::cuda {

struct alignas(16) FourFloats {
  float x[4];
};
struct alignas(8) TwoWords {
  uint32_t x[2];
};

// Four coordinates of a point, from k on; those past the last one are 0.
template <class S>
FEC_DEVICE FourFloats four_coordinates(const Points& points, const S* own, int64_t k, bool vectors) {
  if constexpr (sizeof(S) == 4) {
    if (vectors && k < points.coordinates) return *reinterpret_cast<const FourFloats*>(own + k);
  }
  FourFloats four;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    four.x[i] = k + i < points.coordinates ? value_of(own[coordinate_offset(points, k + i)]) : 0;
  }
  return four;
}

constexpr int kSplitAtOnce = 4;  // vectors of a lane that are in flight at a time

// Splits the points and sums their squares; one warp per filter, and per block.
static __global__ void __launch_bounds__(32) split_points(const Range range, const bool compressed) {
  const Place place = find_place(range, kFilters);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  const float scale = compressed ? 1 : scale_of<float>(*place.state);
  const Points points = filters_of<float>(layer, compressed);
  const Scratch scratch = scratch_of(layer, compressed);
  const bool split = scratch.parts == 2;
  if (scratch.splits > 1 && lane() == 0) {
    uint32_t* done = reinterpret_cast<uint32_t*>(at_byte(layer, scratch.done));
    for (int64_t i = filter; i < scratch.tiles; i += layer.filters) done[i] = 0;
  }
  uint16_t* high = reinterpret_cast<uint16_t*>(at_byte(layer, scratch.halves)) + filter * scratch.pitch;
  uint16_t* low = high + layer.filters * scratch.pitch;
  double sum = 0;
  with_points<float>(points, [&](const auto* data) {
    const auto* own = data + point_offset(points, filter);
    const bool vectors = points.run == points.coordinates && points.stride_step == 1 && points.coordinates % 4 == 0 &&
                         reinterpret_cast<uintptr_t>(own) % 16 == 0;
    for (int64_t first = 4 * lane(); first < scratch.pitch; first += 4 * 32 * kSplitAtOnce) {
      FourFloats held[kSplitAtOnce];
#pragma unroll
      for (int i = 0; i < kSplitAtOnce; ++i) held[i] = four_coordinates(points, own, first + 4 * 32 * i, vectors);
#pragma unroll
      for (int i = 0; i < kSplitAtOnce; ++i) {
        const int64_t k = first + 4 * 32 * i;
        if (k >= scratch.pitch) break;
        float(&x)[4] = held[i].x;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          x[e] *= scale;
          sum += static_cast<double>(x[e]) * static_cast<double>(x[e]);
          x[e] *= kHalfScale;
        }
        *reinterpret_cast<TwoWords*>(high + k) = {{take_halves(x[0], x[1]), take_halves(x[2], x[3])}};
        if (!split) continue;
        *reinterpret_cast<TwoWords*>(low + k) = {{take_halves(x[0], x[1]), take_halves(x[2], x[3])}};
      }
    }
  });
  sum = warp_sum(sum);
  if (lane() == 0) reinterpret_cast<float*>(layer.spare)[filter] = static_cast<float>(sum);
}

}  // namespace fec::cuda
