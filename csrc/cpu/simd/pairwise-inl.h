// `pairwise`: the parts that both axes share. Points lie in packed panels (pack_points-inl.h).
//
// Three methods for a distance, all of them exactly 0 between a point and itself:
//   line        one coordinate: |a - b|
//   difference  sum of (a - b)^2, also exactly 0 between duplicates
//   product     |a|^2 + |b|^2 - 2 ab, half the work. It cancels where points are near one another: near pairs are
//               computed again by `difference`.
#pragma once

template <class T>
struct Panel {
  static constexpr int64_t width = 2 * Of<T>::lanes;  // points packed side by side
  // Points of the other panel that are held in registers: as many as fit (see vector-inl.h).
  static constexpr int64_t rows = kManyRegisters && width >= 8 ? 8 : 4;
  static_assert(width % rows == 0);
};

// Pairs closer than 1/16 of their length are near. For the others, rounding changes a distance by less than 4 eps of
// the length.
constexpr double kNear = 1.0 / 256;

enum class Way { Difference, Product };

// Coordinates that are added one after the other; then their sum is added to that of the others. One chain over all
// coordinates would round as often as there are coordinates, and all in one direction where they are alike.
constexpr int64_t kChain = 16;

// sum[row] += (a - b)^2, or += ab, over one chain: Panel::rows points of one panel with all of another panel.
template <class T, Way way>
FEC_INLINE void accumulate_chain(const T* rows, const T* columns, int64_t depth, Vec<T> (*sum)[2]) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width;
  for (int64_t k = 0; k < depth; ++k) {
    const V c0 = load(columns + k * width), c1 = load(columns + k * width + Of<T>::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Panel<T>::rows; ++r) {
      const V p = splat(rows[k * width + r]);
      if constexpr (way == Way::Product) {
        sum[r][0] += p * c0;
        sum[r][1] += p * c1;
      } else {
        const V d0 = p - c0, d1 = p - c1;
        sum[r][0] += d0 * d0;
        sum[r][1] += d1 * d1;
      }
    }
  }
}

// The same over any number of coordinates, chain by chain.
template <class T, Way way>
FEC_INLINE void accumulate(const T* rows, const T* columns, int64_t depth, Vec<T> (*sum)[2]) {
  if (depth <= kChain) return accumulate_chain<T, way>(rows, columns, depth, sum);
  constexpr int64_t width = Panel<T>::width;
  const auto add_chain = [&](int64_t k, int64_t length) __attribute__((always_inline)) {
    Vec<T> chain[Panel<T>::rows][2] = {};
    accumulate_chain<T, way>(rows + k * width, columns + k * width, length, chain);
#pragma GCC unroll 8
    for (int r = 0; r < Panel<T>::rows; ++r) {
      sum[r][0] += chain[r][0];
      sum[r][1] += chain[r][1];
    }
  };
  int64_t k = 0;
  for (; k + kChain <= depth; k += kChain) add_chain(k, kChain);  // a constant length: unrolled
  if (k < depth) add_chain(k, depth - k);
}

// norms[p] += |p|^2 over `depth` coordinates of the points of some panels.
template <class T>
static void add_norms(const T* panels, int64_t points, int64_t depth, T* norms) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  for (int64_t p = 0; p < points; p += width, panels += depth * width) {
    Vec<T> a{}, b{};
    for (int64_t k = 0; k < depth; k += kChain) {
      Vec<T> chain_a{}, chain_b{};
      for (int64_t i = k; i < depth && i < k + kChain; ++i) {
        const Vec<T> x = load(panels + i * width), y = load(panels + i * width + lanes);
        chain_a += x * x;
        chain_b += y * y;
      }
      a += chain_a;
      b += chain_b;
    }
    store(norms + p, load(norms + p) + a);
    store(norms + p + lanes, load(norms + p + lanes) + b);
  }
}

// The terms that a distance adds to the sums of a row (entropy_math.h).
template <class T, Entropy entropy>
FEC_INLINE void pair_terms(Vec<T> scaled, Vec<T>& first, Vec<T>& second) {
  if constexpr (entropy == Entropy::Distance) {
    first = scaled;
    second = scaled * logarithm<T>(scaled);
  } else {
    first = exp2_minus<T>(scaled);
    if constexpr (entropy == Entropy::Softmax) second = first * smaller(scaled, splat<T>(Of<T>::exp2_limit));
  }
}

// The factor of the distances before `pair_terms`, and that of the second sum after it: powers are of 2.
template <class T>
static T pair_scale(Entropy entropy, double inverse_tau) {
  constexpr double limit = Of<T>::inverse_tau_limit;  // and 1 / limit: below, the padding would add something
  const double scale = entropy == Entropy::Distance ? inverse_tau : inverse_tau * kLog2e;
  return T(scale > limit ? limit : scale < 1 / limit ? 1 / limit : scale);
}

static constexpr double second_unit(Entropy entropy) { return entropy == Entropy::Softmax ? kLn2 : 1; }
