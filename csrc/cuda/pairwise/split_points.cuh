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

// Four coordinates of a point, from k on.
template <class S>
FEC_DEVICE void four_coordinates(const Points& points, const S* own, int64_t k, bool vectors, float (&x)[4]) {
  if constexpr (sizeof(S) == 4) {
    if (vectors) {
      const FourFloats held = *reinterpret_cast<const FourFloats*>(own + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = held.x[i];
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = k + i < points.coordinates ? static_cast<float>(value_of(own[coordinate_offset(points, k + i)])) : 0;
  }
}

// Splits the points and sums their squares; one block per filter.
static __global__ void __launch_bounds__(128) split_points(const Range range, const bool compressed) {
  DYN_SHARED(double, sums);
  const Place place = find_place(range, kFilters);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  const float scale = compressed ? 1 : scale_of<float>(*place.state);
  const Points points = filters_of<float>(layer, compressed);
  const Scratch scratch = scratch_of(layer, compressed);
  const bool split = scratch.parts == 2;
  uint16_t* high = reinterpret_cast<uint16_t*>(at_byte(layer, scratch.halves)) + filter * scratch.pitch;
  uint16_t* low = high + layer.filters * scratch.pitch;
  double sum = 0;
  with_points<float>(points, [&](const auto* data) {
    const auto* own = data + point_offset(points, filter);
    const bool vectors = points.run == points.coordinates && points.stride_step == 1 && points.coordinates % 4 == 0 &&
                         reinterpret_cast<uintptr_t>(own) % 16 == 0;
#pragma unroll 2
    for (int64_t k = 4 * threadIdx.x; k < scratch.pitch; k += 4 * blockDim.x) {
      float x[4] = {};
      if (k < points.coordinates) four_coordinates(points, own, k, vectors, x);
      TwoWords to;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] *= scale;
        sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        x[i] *= kHalfScale;
      }
      to.x[0] = take_halves(x[0], x[1]);
      to.x[1] = take_halves(x[2], x[3]);
      *reinterpret_cast<TwoWords*>(high + k) = to;
      if (!split) continue;
      to.x[0] = take_halves(x[0], x[1]);
      to.x[1] = take_halves(x[2], x[3]);
      *reinterpret_cast<TwoWords*>(low + k) = to;
    }
  });
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) reinterpret_cast<float*>(layer.spare)[filter] = static_cast<float>(sum);
}

}  // namespace fec::cuda
