// The pieces of the formula that every kernel shares.
//
// Everything here has internal linkage: the same text is compiled with several sets of instruction flags, and a
// function shared between those objects would let the linker pick the one this processor cannot run.
#pragma once

#include "fec.h"

namespace fec {

// What one point's distances to all points (itself included) are reduced to. With x = d / tau and z = exp(-x):
// similarity: first = sum z; softmax: first = sum z, second = sum z x; distance: first = sum x, second = sum x ln x.
struct RowSums {
  double first, second;
};

// The entropy, in nats, of a point from its sums over `points` points.
static inline double row_entropy(Entropy entropy, RowSums sums, int64_t points) {
  const double top = __builtin_log(static_cast<double>(points));
  double nats = 0;
  if (entropy == Entropy::Similarity) {
    nats = -__builtin_log(sums.first / static_cast<double>(points));
  } else if (entropy == Entropy::Softmax) {
    nats = __builtin_log(sums.first) + sums.second / sums.first;  // ln p = -x - ln S: no logarithm a pair
  } else if (sums.first > 0) {
    nats = __builtin_log(sums.first) - sums.second / sums.first;
  }
  return nats < 0 ? 0 : nats > top ? top : nats;  // rounding may step over either end
}

// 1 / n!
static constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

// e^r by Horner's rule, |r| <= ln(2) / 2: Taylor to 7 terms leaves 5e-9, to 13 terms 4e-18.
template <class V, int Terms>
static inline __attribute__((always_inline)) V exp_reduced(V r) {
  using T = decltype(r[0] + 0);
  V sum = r * T(inverse_factorial(Terms)) + T(inverse_factorial(Terms - 1));
#pragma GCC unroll 16
  for (int n = Terms - 2; n >= 0; --n) sum = sum * r + T(inverse_factorial(n));
  return sum;
}

}  // namespace fec
