// Vectors of FEC_BYTES bytes on the GCC/Clang vector extension. Included only by the instruction-set files, inside
// their own namespace; see entropy_math.h for why.
#pragma once

#define FEC_INLINE static inline __attribute__((always_inline))

// AVX-512 and NEON have 32 vector registers, the others 16.
#if FEC_BYTES == 64 || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <class T>
struct Of;

template <>
struct Of<float> {
  using Bits = uint32_t;
  typedef float V __attribute__((vector_size(FEC_BYTES)));
  typedef float Loose __attribute__((vector_size(FEC_BYTES), aligned(4), may_alias));
  typedef uint32_t U __attribute__((vector_size(FEC_BYTES)));
  typedef int32_t I __attribute__((vector_size(FEC_BYTES)));
  static constexpr int lanes = FEC_BYTES / 4, mantissa = 23, bias = 127, exp_terms = 7, log_terms = 5;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  static constexpr float exp2_limit = 126.0f;  // 2^-126 is the last power that is not subnormal
  static constexpr float inverse_tau_limit = 1e30f, huge = 3e38f;
};

template <>
struct Of<double> {
  using Bits = uint64_t;
  typedef double V __attribute__((vector_size(FEC_BYTES)));
  typedef double Loose __attribute__((vector_size(FEC_BYTES), aligned(8), may_alias));
  typedef uint64_t U __attribute__((vector_size(FEC_BYTES)));
  typedef int64_t I __attribute__((vector_size(FEC_BYTES)));
  static constexpr int lanes = FEC_BYTES / 8, mantissa = 52, bias = 1023, exp_terms = 13, log_terms = 11;
  static constexpr double round = 6755399441055744.0;
  static constexpr double exp2_limit = 1022.0;
  static constexpr double inverse_tau_limit = 1e300, huge = 1e308;
};

template <class T>
using Vec = typename Of<T>::V;

template <class T>
FEC_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Of<T>::Loose*>(p);
}

template <class T>
FEC_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Of<T>::Loose*>(p) = v;
}

template <class T>
FEC_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// Two vectors of lanes, element by element: a0 b0 a1 b1 ..., the first half into a, the second into b.
#ifdef __clang__
#define FEC_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FEC_SHUFFLE(...) __builtin_shuffle(a, b, typename Of<T>::U{__VA_ARGS__})
#endif

template <class T>
FEC_INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>& first, Vec<T>& second) {
  if constexpr (Of<T>::lanes == 2) {
    first = FEC_SHUFFLE(0, 2);
    second = FEC_SHUFFLE(1, 3);
  } else if constexpr (Of<T>::lanes == 4) {
    first = FEC_SHUFFLE(0, 4, 1, 5);
    second = FEC_SHUFFLE(2, 6, 3, 7);
  } else if constexpr (Of<T>::lanes == 8) {
    first = FEC_SHUFFLE(0, 8, 1, 9, 2, 10, 3, 11);
    second = FEC_SHUFFLE(4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    first = FEC_SHUFFLE(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    second = FEC_SHUFFLE(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}
#undef FEC_SHUFFLE

// Element j of row i becomes element i of row j, for as many rows as lanes.
template <class T>
FEC_INLINE void transpose(Vec<T>* rows) {
  constexpr int lanes = Of<T>::lanes;
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    Vec<T> next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) interleave<T>(rows[i], rows[i + lanes / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

template <class V>
FEC_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

template <class V>
FEC_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

template <class T>
FEC_INLINE Vec<T> root(Vec<T> x) {
  Vec<T> y{};
  for (int l = 0; l < Of<T>::lanes; ++l) {
    if constexpr (sizeof(T) == 4) y[l] = __builtin_sqrtf(x[l]);
    else y[l] = __builtin_sqrt(x[l]);
  }
  return y;
}

template <class T>
FEC_INLINE Vec<T> magnitude(Vec<T> x) {
  return (Vec<T>)((typename Of<T>::U)x & (typename Of<T>::Bits(~typename Of<T>::Bits(0)) >> 1));
}

template <class T>
FEC_INLINE double total(Vec<T> x) {
  double sum = 0;
  for (int l = 0; l < Of<T>::lanes; ++l) sum += x[l];
  return sum;
}

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// 2^-y for y >= 0, exactly 1 at 0; never below the smallest normal power of the type.
template <class T>
FEC_INLINE Vec<T> exp2_minus(Vec<T> y) {
  using K = Of<T>;
  using U = typename K::U;
  y = smaller(y, splat<T>(K::exp2_limit));
  const Vec<T> shifted = K::round - y;
  const Vec<T> r = (K::round - shifted) - y;
  const Vec<T> power = exp2_reduced<Vec<T>, K::exp_terms>(r);
  return (Vec<T>)((U)power + ((U)shifted << K::mantissa));
}

// ln x for normal x > 0, and something finite for 0 (its callers multiply it by x).
template <class T>
FEC_INLINE Vec<T> logarithm(Vec<T> x) {
  using K = Of<T>;
  using U = typename K::U;
  using B = typename K::Bits;
  constexpr B half_range = sizeof(T) == 4 ? B(0x3f3504f3u) : B(0x3fe6a09e667f3bcdull);  // sqrt(1/2)
  constexpr B bits_of_one = B(K::bias) << K::mantissa;
  const U moved = (U)x + (bits_of_one - half_range);
  Vec<T> exponent{};
  const U steps = moved >> K::mantissa;
  for (int l = 0; l < K::lanes; ++l) exponent[l] = T(int32_t(steps[l])) - T(K::bias);
  const Vec<T> m = (Vec<T>)((moved & ((B(1) << K::mantissa) - 1)) + half_range);  // in [sqrt(1/2), sqrt(2))
  const Vec<T> s = (m - 1) / (m + 1), s2 = s * s;
  Vec<T> sum = splat<T>(T(1.0 / (2 * K::log_terms + 1)));
  for (int n = K::log_terms - 1; n >= 0; --n) sum = sum * s2 + T(1.0 / (2 * n + 1));
  return exponent * T(0.6931471805599453) + 2 * s * sum;
}

// The first n lanes of x, the others `rest`.
template <class T>
FEC_INLINE Vec<T> first_of(int64_t n, Vec<T> x, T rest) {
  using U = typename Of<T>::U;
  U lane{};
  for (int l = 0; l < Of<T>::lanes; ++l) lane[l] = typename Of<T>::Bits(l);
  const auto end = static_cast<typename Of<T>::Bits>(n < 0 ? 0 : n > Of<T>::lanes ? Of<T>::lanes : n);
  return lane < end ? x : splat(rest);
}

// Whether any lane is above 0.
template <class T>
FEC_INLINE bool any_positive(Vec<T> x) {
  typedef uint64_t Pairs __attribute__((vector_size(FEC_BYTES)));
  const Pairs lanes = (Pairs)(x > 0);
  uint64_t any = 0;
  for (int i = 0; i < FEC_BYTES / 8; ++i) any |= lanes[i];
  return any != 0;
}

// Sums `n` <= lanes vectors of lanes, `apart` vectors from one another: lane i gets a part of the sum of vector i % n.
template <class T, int n>
FEC_INLINE Vec<T> part_sums(const Vec<T>* v, int apart = 1) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    Vec<T> first, second;
    interleave<T>(part_sums<T, n / 2>(v, 2 * apart), part_sums<T, n / 2>(v + apart, 2 * apart), first, second);
    return first + second;
  }
}
