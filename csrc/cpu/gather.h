// Reading weights: any of the four storage types and any strides, scaled, compressed to one number a channel or not.
#pragma once

FEC_INLINE float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Storage types: one number (`get`) or a vector of neighbours (`many`).
struct ReadF32 {
  using Storage = float;
  FEC_INLINE float get(float x) { return x; }
  FEC_INLINE Vec<float> many(const float* p) { return load(p); }
};

struct ReadF64 {
  using Storage = double;
  FEC_INLINE double get(double x) { return x; }
  FEC_INLINE Vec<double> many(const double* p) { return load(p); }
};

typedef uint16_t Halves __attribute__((vector_size(FEC_BYTES / 2), aligned(2), may_alias));
using Words = Of<float>::U;

struct ReadBF16 {
  using Storage = uint16_t;
  FEC_INLINE float get(uint16_t x) { return float_of_bits(uint32_t(x) << 16); }
  FEC_INLINE Vec<float> many(const uint16_t* p) {
    return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16);
  }
};

struct ReadF16 {
  using Storage = uint16_t;
  FEC_INLINE float get(uint16_t x) {
    const uint32_t magnitude = x & 0x7fffu;
    const float small = float(int32_t(magnitude)) * 0x1p-24f;  // subnormal: a multiple of 2^-24
    const float value = magnitude < 0x400u ? small : float_of_bits((magnitude << 13) + (112u << 23));
    return x & 0x8000u ? -value : value;
  }
  // The exponent is moved by a product, which a subnormal number survives as well.
  FEC_INLINE Vec<float> many(const uint16_t* p) {
    const Words x = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
    const Vec<float> size = (Vec<float>)((x & 0x7fffu) << 13) * 0x1p112f;
    return (Vec<float>)((Words)size | ((x & 0x8000u) << 16));
  }
};

// Offset of a filter's first weight.
FEC_INLINE int64_t filter_offset(const Layer& layer, int64_t filter) {
  return filter / layer.inner * layer.stride_outer + filter % layer.inner * layer.stride_inner;
}

// `count` channels of the filter at `base`, one number each, `step` apart in `to`.
template <class T, class Read, Compress compress>
static void numbers(const Layer& layer, int64_t base, int64_t channel, int64_t count, T scale, T* to, int64_t step) {
  const auto* from = static_cast<const typename Read::Storage*>(layer.data) + base + channel * layer.stride_channel;
  const int64_t stride = layer.stride_channel, taps = layer.taps, tap = layer.stride_tap;
  constexpr bool magnitude = compress == Compress::Rms || compress == Compress::AbsMean;
  if (taps == 1) {
    for (int64_t c = 0; c < count; ++c) {
      const T w = Read::get(from[c * stride]) * scale;
      to[c * step] = magnitude && w < 0 ? -w : w;
    }
    return;
  }
  for (int64_t c = 0; c < count; ++c, from += stride) {
    T sum = 0;
    for (int64_t t = 0; t < taps; ++t) {
      const T w = Read::get(from[t * tap]) * scale;
      sum += compress == Compress::Rms ? w * w : magnitude && w < 0 ? -w : w;
    }
    sum /= T(taps);
    to[c * step] = compress != Compress::Rms ? sum : sizeof(T) == 4 ? T(__builtin_sqrtf(sum)) : T(__builtin_sqrt(sum));
  }
}

template <class T, class Read>
static void numbers_of(const Job& job, int64_t base, int64_t channel, int64_t count, T* to, int64_t step) {
  const T scale = T(job.scale);
  switch (job.formula.compress) {
    case Compress::Rms: return numbers<T, Read, Compress::Rms>(*job.layer, base, channel, count, scale, to, step);
    case Compress::AbsMean:
      return numbers<T, Read, Compress::AbsMean>(*job.layer, base, channel, count, scale, to, step);
    default: return numbers<T, Read, Compress::Mean>(*job.layer, base, channel, count, scale, to, step);
  }
}

// Coordinates [k, k + depth) of `count` points from `point`, packed coordinate by coordinate, `width` apart.
template <class T, class Read>
static void points_of(const Job& job, int64_t group, int64_t point, int64_t count, int64_t k, int64_t depth, T* to,
                      int64_t width) {
  const Layer& layer = *job.layer;
  const auto* data = static_cast<const typename Read::Storage*>(layer.data);
  const bool inside = job.formula.axis == Axis::Channels, one = job.formula.compress != Compress::None;
  const T scale = T(job.scale);
  if (inside && one) return numbers_of<T, Read>(job, filter_offset(layer, group), point, count, to, 1);
  int64_t run = layer.taps, step = layer.stride_tap;  // coordinates that lie evenly apart
  if (!inside && (layer.taps == 1 || layer.stride_channel == layer.taps * layer.stride_tap)) {
    step = layer.taps == 1 ? layer.stride_channel : layer.stride_tap;
    run = layer.taps * layer.channels;
  }
  for (int64_t p = 0; p < count; ++p) {
    const int64_t base = filter_offset(layer, inside ? group : point + p);
    if (one) {
      numbers_of<T, Read>(job, base, k, depth, to + p, width);
      continue;
    }
    int64_t channel = inside ? point + p : k / run, t = inside ? k : k % run;
    for (int64_t done = 0; done < depth; ++channel, t = 0) {
      const auto* from = data + base + channel * layer.stride_channel;
      const int64_t last = done + run - t < depth ? run : t + depth - done;
      for (; t < last; ++t, ++done) to[done * width + p] = Read::get(from[t * step]) * scale;
    }
  }
}

// Calls f with the reader of the layer's storage type.
template <class T>
struct Readers;

template <>
struct Readers<double> {
  template <class F>
  FEC_INLINE void visit(DType, F f) {
    f(ReadF64{});
  }
};

template <>
struct Readers<float> {
  template <class F>
  FEC_INLINE void visit(DType dtype, F f) {
    if (dtype == DType::F32) {
      f(ReadF32{});
    } else if (dtype == DType::F16) {
      f(ReadF16{});
    } else {
      f(ReadBF16{});
    }
  }
};

template <class B>
static uint64_t largest_bits(const void* data, int64_t n, int64_t stride) {
  constexpr B magnitude = B(~B(0)) >> 1;
  const B* from = static_cast<const B*>(data);
  B most = 0;
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) {
      const B bits = from[i] & magnitude;
      most = bits > most ? bits : most;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const B bits = from[i * stride] & magnitude;
      most = bits > most ? bits : most;
    }
  }
  return most;
}

static uint64_t largest(DType dtype, const void* data, int64_t n, int64_t stride) {
  switch (dtype) {
    case DType::F32: return largest_bits<uint32_t>(data, n, stride);
    case DType::F64: return largest_bits<uint64_t>(data, n, stride);
    default: return largest_bits<uint16_t>(data, n, stride);
  }
}
