// Reading weights: the four storage types, one number or a vector at a time, and the largest magnitude.
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

// Calls f with the reader of the layer's storage type.
template <class T>
struct Readers;

// A narrower storage type, read as float64: exact.
template <class Read>
struct Widened {
  using Storage = typename Read::Storage;
  FEC_INLINE double get(Storage x) { return double(Read::get(x)); }
  FEC_INLINE Vec<double> many(const Storage* p) {
    Vec<double> wide{};
    for (int l = 0; l < Of<double>::lanes; ++l) wide[l] = get(p[l]);
    return wide;
  }
};

template <>
struct Readers<double> {
  template <class F>
  FEC_INLINE void visit(DType dtype, F f) {
    if (dtype == DType::F64) {
      f(ReadF64{});
    } else if (dtype == DType::F32) {
      f(Widened<ReadF32>{});
    } else if (dtype == DType::F16) {
      f(Widened<ReadF16>{});
    } else {
      f(Widened<ReadBF16>{});
    }
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
