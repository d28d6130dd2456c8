// Reads weights and compresses each channel to one number.
//
// A warp reads 32 neighbouring channels at a time, one per lane. With a single tap, or with the channels innermost
// (channels last), lanes read neighbouring addresses directly. With the taps innermost the warp reads along the taps
// through shared memory, so that neighbouring lanes read neighbouring addresses and every byte is loaded once.
#pragma once

#include "cuda/layer_table.cuh"

namespace fec::cuda {

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

FEC_DEVICE float value_of(float x) { return x; }
FEC_DEVICE double value_of(double x) { return x; }
FEC_DEVICE float value_of(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FEC_DEVICE float value_of(F16 x) {
#ifndef FEC_EMULATOR
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  return emulated_half(x.bits);
#endif
}

// Limits of a type. Squares are summed three times: as they are, scaled down and scaled up by a power of two; one of
// the three sums neither overflows nor underflows.
template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float down = 0x1p-80f, up = 0x1p80f, least = 0x1p-90f, most = 3.402823466e38f;
  static constexpr float far = 200;  // 2^-far is 0
  static constexpr double inverse_limit = 1e30;
};
template <>
struct Limits<double> {
  static constexpr double down = 0x1p-600, up = 0x1p600, least = 0x1p-900, most = 1.7976931348623157e308;
  static constexpr double far = 1100;
  static constexpr double inverse_limit = 1e300;
};

// Compresses a channel of several taps to one number.
template <class T>
class Channel {
 public:
  FEC_INSIDE explicit Channel(Compress compress)
      : squared_(compress == Compress::Rms), absolute_(compress == Compress::AbsMean) {}

  FEC_INSIDE void add(T w) {
    using K = Limits<T>;
    if (squared_) {
      const T low = w * K::down, high = w * K::up;
      plain_ += w * w;
      down_ += low * low;
      up_ += high * high;
    } else {
      if (absolute_) w = magnitude(w);
      plain_ += w;
      down_ += w * K::down;
    }
  }

  // Returns the channel's number; sets `bad` if a weight was not finite.
  FEC_INSIDE T number(int taps, bool& bad) const {
    using K = Limits<T>;
    bad |= !(magnitude(down_) <= K::most);
    const T n = static_cast<T>(taps);
    if (squared_) {
      if (plain_ >= K::least && plain_ <= K::most) return root(plain_ / n);
      return plain_ > K::most ? root(down_ / n) * K::up : root(up_ / n) * K::down;
    }
    return magnitude(plain_) <= K::most ? plain_ / n : down_ / n * K::up;
  }

 private:
  bool squared_, absolute_;
  T plain_ = 0, down_ = 0, up_ = 0;
};

constexpr int kTaps = 9;  // taps per step
constexpr int kAtOnce = 8;  // loads of a lane that are in flight at a time

// Shared memory of a warp that reads up to `heap` channels per lane. Without a stage, each lane reads its own taps.
template <class T, int heap, bool with_stage>
struct Reader {
  static constexpr bool staged = with_stage;
  T stage[with_stage ? 32 * kTaps : 1];
  T numbers[heap * 32];
};
// Few networks have double weights: their taps are read by the lane that adds them up.
template <class T>
using SmallReader = Reader<T, 16, sizeof(T) == 4>;

// The power of two that scales the largest weight of a layer to [1, 2): exact, and no entropy depends on it.
template <class T>
FEC_DEVICE T scale_of(const State& state) {
  constexpr int limit = sizeof(T) == 8 ? 1022 : 126;  // beyond it the factor would not be normal
  const int exponent = static_cast<int>(state.most >> 52) - 1023;
  const int bounded = state.most == 0 ? 0 : exponent > limit ? limit : exponent < -limit ? -limit : exponent;
  return static_cast<T>(__longlong_as_double(static_cast<long long>(1023 - bounded) << 52));
}

FEC_DEVICE bool is_finite(const State& state) { return (state.most >> 52) < 2047; }

// Calls f with a pointer to the filter's first weight, in its storage type.
template <class T, class F>
FEC_DEVICE void with_storage(const Entry& layer, int64_t offset, F f) {
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(layer.data) + offset);
  } else if (layer.dtype == DType::F32) {
    f(static_cast<const float*>(layer.data) + offset);
  } else if (layer.dtype == DType::F16) {
    f(static_cast<const F16*>(layer.data) + offset);
  } else {
    f(static_cast<const BF16*>(layer.data) + offset);
  }
}

template <class T, class S>
FEC_DEVICE void add_lines(const S* data, int n, int taps, int there, T scale, T* stage, Channel<T>& sum) {
  T held[kTaps];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    if (k * 32 + lane() < n) held[k] = value_of(data[k * 32 + lane()]);
  }
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    if (k * 32 + lane() < n) stage[k * 32 + lane()] = held[k];
  }
  __syncwarp();
  for (int t = 0; there && t < taps; ++t) sum.add(stage[lane() * taps + t] * scale);
  __syncwarp();
}

// Reads eight taps of every channel at a time.
template <class T, class S>
FEC_DEVICE void add_rows(const S* data, int64_t stride, int channels, int taps, T scale, T* stage, Channel<T>& sum) {
  const int k = lane() % 8;
  for (int first = 0; first < taps; first += 8) {
    T held[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = i * 4 + lane() / 8;
      held[i] = c < channels && first + k < taps ? value_of(data[c * stride + first + k]) : T(0);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) stage[(i * 4 + lane() / 8) * kTaps + k] = held[i];
    __syncwarp();
    for (int t = 0; lane() < channels && t < smaller_int(8, taps - first); ++t)
      sum.add(stage[lane() * kTaps + t] * scale);
    __syncwarp();
  }
}

// Sets numbers[32 i + lane] to the number of channel first + i * step + lane, for i below `count`; to infinity for
// channels from `end` on. All lanes must call it. Returns true if one of this lane's weights was not finite.
template <class T, class R>
FEC_DEVICE bool read_channels(const Entry& layer, Compress compress, T scale, int32_t filter, int first, int step,
                              int count, int end, R* shared) {
  bool bad = false;
  const int taps = layer.taps;
  const T past = static_cast<T>(INFINITY);
  with_storage<T>(layer, filter_offset(layer, filter), [&](const auto* data) {
    if (taps == 1) {
      const bool absolute = compress == Compress::Rms || compress == Compress::AbsMean;
      for (int begin = 0; begin < count; begin += kAtOnce) {
        T held[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int own = first + (begin + i) * step + lane();
          held[i] = begin + i < count && own < end ? value_of(data[own * layer.stride_channel]) * scale : T(0);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int own = first + (begin + i) * step + lane();
          bad |= !(magnitude(held[i]) <= Limits<T>::most);
          const T number = absolute ? magnitude(held[i]) : held[i];
          if (begin + i < count) shared->numbers[32 * (begin + i) + lane()] = own < end ? number : past;
        }
      }
      return;
    }
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int channel = first + i * step, own = channel + lane(), channels = smaller_int(32, end - channel);
      const auto* from = data + channel * layer.stride_channel;
      Channel<T> sum(compress);
      if (R::staged && layer.stride_tap == 1) {
        if (taps <= kTaps && layer.stride_channel == taps) {
          add_lines<T>(from, channels * taps, taps, lane() < channels, scale, shared->stage, sum);
        } else {
          add_rows<T>(from, layer.stride_channel, channels, taps, scale, shared->stage, sum);
        }
      } else if (own < end) {
        const auto* taken = from + lane() * layer.stride_channel;
#pragma unroll 4
        for (int t = 0; t < taps; ++t) sum.add(value_of(taken[t * layer.stride_tap]) * scale);
      }
      shared->numbers[32 * i + lane()] = own < end ? sum.number(taps, bad) : past;
    }
  });
  return bad;
}

}  // namespace fec::cuda
