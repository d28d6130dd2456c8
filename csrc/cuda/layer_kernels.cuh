// Kernels for values of a whole layer (its largest weight, its tau), and the last step from partial sums to entropies.
#pragma once

#include "cuda/load_weights.cuh"

namespace fec::cuda {

// Sixteen bytes of weights.
template <class S>
struct alignas(16) Pack {
  S x[16 / sizeof(S)];
};
constexpr int kPacksAtOnce = 4;  // of a thread, in flight at a time

// The largest magnitude of `count` neighbouring weights; each thread of a block looks at some.
template <class T, class S>
FEC_DEVICE T largest_of_neighbours(const S* data, int64_t count) {
  constexpr int size = 16 / sizeof(S);
  T most = 0;
  bool bad = false;  // a comparison with NaN is false
  const auto see = [&](S weight) {
    const T x = magnitude(static_cast<T>(value_of(weight)));
    bad |= !(x <= Limits<T>::most);
    most = larger(most, x);
  };
  const int64_t step = blockDim.x;
  int64_t packs = reinterpret_cast<uintptr_t>(data) % 16 == 0 ? count / size : 0;
  for (int64_t first = threadIdx.x; first < packs; first += step * kPacksAtOnce) {
    Pack<S> held[kPacksAtOnce];
#pragma unroll
    for (int i = 0; i < kPacksAtOnce; ++i) {
      held[i] = reinterpret_cast<const Pack<S>*>(data)[first + i * step < packs ? first + i * step : first];
    }
#pragma unroll
    for (int i = 0; i < kPacksAtOnce; ++i) {
#pragma unroll
      for (int e = 0; e < size; ++e) see(held[i].x[e]);
    }
  }
  for (int64_t i = packs * size + threadIdx.x; i < count; i += step) see(data[i]);
  return bad ? static_cast<T>(NAN) : most;
}

// The largest magnitude of each layer; one block per filter. A maximum does not depend on the order.
template <class T>
__global__ void __launch_bounds__(128) largest_weights(const Range range) {
  DYN_SHARED(unsigned long long, warps);
  const Place place = find_place(range, kFilters);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  // Along the taps where they are neighbours, else along the channels.
  const bool along = layer.stride_tap == 1;
  const int64_t inner = along ? layer.taps : layer.channels;
  const int64_t inner_stride = along ? 1 : layer.stride_channel,
                outer_stride = along ? layer.stride_channel : layer.stride_tap;
  unsigned long long most = 0;
  with_storage<T>(layer, filter_offset(layer, filter), [&](const auto* data) {
    const int64_t count = static_cast<int64_t>(layer.channels) * layer.taps;
    if (inner_stride == 1 && inner == outer_stride) {
      const T size = largest_of_neighbours<T>(data, count);
      most = static_cast<unsigned long long>(__double_as_longlong(static_cast<double>(size)));
      return;
    }
    if (inner * inner_stride == outer_stride) {
      for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        const T size = magnitude(static_cast<T>(value_of(data[i * inner_stride])));
        const auto bits = static_cast<unsigned long long>(__double_as_longlong(static_cast<double>(size)));
        most = bits > most ? bits : most;
      }
      return;
    }
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const T size = magnitude(static_cast<T>(value_of(data[i % inner * inner_stride + i / inner * outer_stride])));
      const auto bits = static_cast<unsigned long long>(__double_as_longlong(static_cast<double>(size)));
      most = bits > most ? bits : most;
    }
  });
  for (int apart = 16; apart > 0; apart /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAll, most, apart);
    most = other > most ? other : most;
  }
  if (lane() == 0) warps[warp()] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned w = 1; w < blockDim.x / 32; ++w) most = warps[w] > most ? warps[w] : most;
  atomicMax(&place.state->most, most);
}

// One number per channel, for `pairwise`: points[filter][channel]. One block per filter.
template <class T>
__global__ void __launch_bounds__(128, 4) compress(const Range range, Compress kind) {
  DYN_SHARED(SmallReader<T>, readers);
  const Place place = find_place(range, kFilters);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  const T scale = scale_of<T>(*place.state);
  SmallReader<T>* reader = readers + warp();
  T* to = static_cast<T*>(layer.points) + static_cast<int64_t>(filter) * layer.channels;
  const int step = static_cast<int>(blockDim.x);
  for (int first = 32 * warp(); first < layer.channels; first += 16 * step) {
    const int count = smaller_int(16, (layer.channels - first + step - 1) / step);
    read_channels<T>(layer, kind, scale, filter, first, step, count, layer.channels,
                     reader);  // `largest_weights` has seen what is not finite
    for (int i = 0; i < count; ++i) {
      const int channel = first + i * step + lane();
      if (channel < layer.channels) to[channel] = reader->numbers[32 * i + lane()];  // written by this same lane
    }
  }
}

// tau of every layer; one block per layer. The order of the sum is fixed.
static __global__ void __launch_bounds__(256) set_tau(const Range range, const Choice choice) {
  DYN_SHARED(double, shared);
  const Entry& layer = range.entries[blockIdx.x];
  State& state = range.states[blockIdx.x];
  double mean = 0;
  if (layer.sums_count > 0) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < layer.sums_count; i += static_cast<int>(blockDim.x)) {
      sum += layer.sums[i];
    }
    mean = block_sum(sum, shared) / layer.denominator;
  }
  if (threadIdx.x != 0) return;
  const double unit = layer.scale > 0               ? layer.scale
                      : layer.dtype == DType::F64 ? scale_of<double>(state)
                                                  : static_cast<double>(scale_of<float>(state));
  const bool measured = !(choice.tau > 0);
  // The distance entropy has no tau and does not depend on the scale; values near 1 lose the least precision.
  double tau = measured || choice.entropy == Entropy::Distance ? mean : choice.tau * unit + 0 * mean;
  if (choice.entropy != Entropy::Distance) tau *= choice.tau_scale;
  if (!is_finite(state)) tau = NAN;
  state.tau = tau;
  if (!(tau > 0)) return;
  int exponent;
  const double fraction = frexp(tau, &exponent);
  const int limit = layer.dtype == DType::F64 ? 1000 : 120;
  const int bounded = exponent > limit ? limit : exponent < -limit ? -limit : exponent;
  state.power = ldexp(1.0, -bounded);
  state.rest = ldexp(kLog2e / fraction, bounded - exponent);
}

// Adds up the partial entropies of each filter; one thread per filter.
static __global__ void __launch_bounds__(128) finish_parts(const Range range) {
  const Place place = find_place(range, kRows);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit * blockDim.x + threadIdx.x);
  if (filter >= layer.filters) return;
  const double tau = place.state->tau;
  const int parts = layer.parts_a_filter;
  double sum = 0;
  for (int p = 0; p < parts; ++p) sum += layer.parts[static_cast<int64_t>(filter) * parts + p];
  layer.out[filter] = tau > 0 ? clamped_entropy(sum / layer.channels, layer.channels) : tau * 0;
}

}  // namespace fec::cuda
