// The parts of the formula that all kernels share, on the CPU and on CUDA devices.
//
// Everything here has internal linkage: the same text is compiled with several sets of instruction flags, and a
// function shared between those objects would let the linker pick the one this processor cannot run.
#pragma once

#include "fec.h"

// Functions of both the host and a CUDA device.
#ifdef __CUDACC__
#define FEC_BOTH __host__ __device__
#else
#define FEC_BOTH
#endif

namespace fec {

static FEC_BOTH inline double natural_logarithm(double x) {
#ifdef __CUDA_ARCH__
  return ::log(x);
#else
  return __builtin_log(x);
#endif
}

// The sums over one point's distances to all points (itself included). With x = d / tau and z = exp(-x):
// similarity: first = sum z; softmax: first = sum z, second = sum z x; distance: first = sum x, second = sum x ln x.
struct RowSums {
  double first, second;
};

// A row's entropy as ln(of) + plus.
struct RowEntropy {
  double of, plus;
};

static FEC_BOTH inline RowEntropy row_entropy_parts(Entropy entropy, RowSums sums, int64_t points) {
  if (entropy == Entropy::Similarity) return {static_cast<double>(points) / sums.first, 0};
  if (!(sums.first > 0)) return {1, 0};
  const double ratio = sums.second / sums.first;
  return {sums.first, entropy == Entropy::Softmax ? ratio : -ratio};  // softmax: ln p = -x - ln S
}

// The entropy of `points` points lies in [0, ln points]; rounding may leave that range.
static FEC_BOTH inline double clamped_entropy(double nats, int64_t points) {
  const double top = natural_logarithm(static_cast<double>(points));
  return nats < 0 ? 0 : nats > top ? top : nats;
}

// The entropy, in nats, of a point from its sums over `points` points.
static FEC_BOTH inline double row_entropy(Entropy entropy, RowSums sums, int64_t points) {
  const RowEntropy row = row_entropy_parts(entropy, sums, points);
  return clamped_entropy(natural_logarithm(row.of) + row.plus, points);
}

#ifndef __CUDACC__  // CPU only: vectors, and replacements for instructions that a GPU has

// The mean of the entropies of all rows. One logarithm, of the product: for few points, one per row would cost more
// than the distances. The exponent is removed after every factor, so the product neither overflows nor underflows.
static inline double mean_row_entropy(Entropy entropy, const RowSums* sums, int64_t points) {
  double product = 1, plus = 0;
  int64_t exponent = 0;
  for (int64_t p = 0; p < points; ++p) {
    const RowEntropy row = row_entropy_parts(entropy, sums[p], points);
    plus += row.plus;
    product *= row.of;
    uint64_t bits;
    __builtin_memcpy(&bits, &product, 8);
    exponent += static_cast<int64_t>(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
    __builtin_memcpy(&product, &bits, 8);
  }
  const double logarithms = __builtin_log(product) + static_cast<double>(exponent) * 0.6931471805599453;
  return clamped_entropy((logarithms + plus) / static_cast<double>(points), points);
}

// ln(2)^n / n!
static constexpr double exp2_coefficient(int n) {
  return n < 1 ? 1.0 : exp2_coefficient(n - 1) * 0.69314718055994530942 / n;
}

// 2^r by Horner's rule, |r| <= 1/2: Taylor to 7 terms leaves 5e-9, to 13 terms 4e-18.
template <class V, int Terms>
static inline __attribute__((always_inline)) V exp2_reduced(V r) {
  using T = decltype(r[0] + 0);
  V sum = r * T(exp2_coefficient(Terms)) + T(exp2_coefficient(Terms - 1));
#pragma GCC unroll 16
  for (int n = Terms - 2; n >= 0; --n) sum = sum * r + T(exp2_coefficient(n));
  return sum;
}

#endif

}  // namespace fec
