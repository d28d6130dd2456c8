// `sorted`, second pass: from sorted rows to entropies, by a scan from each end. With d a gap between neighbours and
// e = exp(-d), the sum over all points before a row follows from the row before it:
//   sum of exp(-x)        L' = e (L + 1)
//   sum of x exp(-x)      M' = e (M + d (L + 1))
//   sum of 1 - exp(-x)    Q' = Q + (1 - e) (n - Q), for n points before: positive terms only, exact near 0
#pragma once

template <class T>
static void similarity_scans(void* memory, void* scratch, int64_t channels, int64_t count, double inverse,
                             double* out) {
  using K = Of<T>;
  using V = Vec<T>;
  using U = typename K::U;
  V* x = static_cast<V*>(memory);
  V* left = static_cast<V*>(scratch);
  inverse *= kLog2e;
  const V scale = splat<T>(inverse < double(K::inverse_tau_limit) ? T(inverse) : K::inverse_tau_limit);
  const T size = T(channels), size4 = (size * size) * (size * size);

  // left[k] = sum over rows before k of exp(-(x_k - x_e) / tau); x[k] becomes exp(-(x_{k+1} - x_k) / tau).
  V reach{}, here = x[0];
  for (int64_t k = 0; k + 1 < channels; ++k) {
    const V next = x[k + 1];
    const V decay = exp2_minus<T>((next - here) * scale);
    left[k] = reach;
    x[k] = decay;
    reach = decay * reach + decay;
    here = next;
  }
  left[channels - 1] = reach;

  // One logarithm for all row means: a running product, whose exponent is removed before it can underflow (four factors
  // of at least 1 / C each, and C below 2^30).
  constexpr typename K::Bits fraction = (typename K::Bits(1) << K::mantissa) - 1;
  constexpr typename K::Bits bits_of_one = typename K::Bits(K::bias) << K::mantissa;
  V product = splat<T>(1), right{};
  U exponents{};
  const auto sum_of = [&](int64_t k) {
    const V sum = left[k] + right + 1;
    if (k > 0) right = x[k - 1] * right + x[k - 1];
    return sum;
  };
  const auto take_exponent = [&] {
    exponents += ((U)product >> K::mantissa) - typename K::Bits(K::bias);
    product = (V)(((U)product & fraction) | bits_of_one);
  };
  int64_t k = channels - 1;
  for (; k >= 3; k -= 4) {  // multiplied in the order of size4, so that equal channels give exactly 1
    const V first = sum_of(k), second = sum_of(k - 1), third = sum_of(k - 2), fourth = sum_of(k - 3);
    product *= ((first * second) * (third * fourth)) / size4;
    take_exponent();
  }
  for (; k >= 0; --k) product *= sum_of(k) / size;
  take_exponent();
  for (int64_t l = 0; l < count; ++l) {
    const double exponent = sizeof(T) == 4 ? double(int32_t(exponents[l])) : double(int64_t(exponents[l]));
    const double mean = (__builtin_log(double(product[l])) + exponent * 0.6931471805599453) / double(channels);
    out[l] = clamped_entropy(-mean, channels);
  }
}

// Adds up row entropies in double precision, after every 32 rows in the lanes.
template <class T, class RowEntropy>
static void mean_of_rows(int64_t channels, int64_t count, double* out, const RowEntropy& row_entropy) {
  double sums[Of<T>::lanes] = {};
  for (int64_t start = 0; start < channels; start += 32) {
    const int64_t end = start + 32 < channels ? start + 32 : channels;
    Vec<T> part{};
    for (int64_t k = start; k < end; ++k) part += row_entropy(k);
    for (int64_t l = 0; l < count; ++l) sums[l] += double(part[l]);
  }
  const double top = __builtin_log(double(channels));
  for (int64_t l = 0; l < count; ++l) {
    const double mean = sums[l] / double(channels);
    out[l] = mean < 0 ? 0 : mean > top ? top : mean;  // rounding may leave the range
  }
}

template <class T>
static void softmax_scans(void* memory, void* scratch, int64_t channels, int64_t count, double inverse, double* out) {
  using K = Of<T>;
  using V = Vec<T>;
  V* x = static_cast<V*>(memory);
  V* first = static_cast<V*>(scratch);
  V* second = first + channels;
  const V scale = splat<T>(inverse < double(K::inverse_tau_limit) ? T(inverse) : K::inverse_tau_limit);
  V reach{}, moment{};
  for (int64_t k = 0; k < channels; ++k) {
    first[k] = reach;
    second[k] = moment;
    if (k + 1 == channels) break;
    const V gap = smaller((x[k + 1] - x[k]) * scale, splat<T>(K::exp2_limit * T(kLn2)));
    const V decay = exp2_minus<T>(gap * T(kLog2e));
    x[k] = gap;
    moment = decay * (moment + gap * (reach + 1));
    reach = decay * (reach + 1);
  }
  reach = moment = V{};
  for (int64_t k = channels - 1; k >= 0; --k) {
    first[k] += reach + 1;
    second[k] += moment;
    if (k == 0) break;
    const V decay = exp2_minus<T>(x[k - 1] * T(kLog2e));
    moment = decay * (moment + x[k - 1] * (reach + 1));
    reach = decay * (reach + 1);
  }
  mean_of_rows<T>(channels, count, out, [&](int64_t k) { return logarithm<T>(first[k]) + second[k] / first[k]; });
}

// x ln x on [0, 1] as a x - sum over t of c(t) (1 - exp(-t x)), each exponential a pair of scans. It is the integral of
// (a(t) x - (1 - exp(-t x)) / t) dt / t by the trapezoidal rule in ln t, whose error falls like exp(-pi^2 / h) with the
// step h = ln 2 / chains (Stenger): 2e-7 x for one chain, 1e-14 x for two. Inside a chain t doubles, and
// 1 - exp(-2 t x) = y (2 - y) with y = 1 - exp(-t x): one exponential begins the chain, squarings do the rest.
template <class T>
struct Chains {
  static constexpr bool wide = sizeof(T) == 8;
  static constexpr int count = wide ? 2 : 1, nodes = wide ? 60 : 30, group = 6;
  static constexpr int smallest = wide ? -10 : -5;  // t from 2^smallest to 2^(smallest + nodes - 1)
  static_assert(nodes % group == 0);

  double start[count];
  T weight[count][nodes];
  double slope = 0;  // a: x ln x is 0 at 1

  Chains() {
    // The t below the smallest, a geometric series of terms smooth in t, by extrapolation from the first four.
    constexpr double below[] = {709.0 / 315, -251.0 / 315, 29.0 / 315, -1.0 / 315};
    for (int chain = 0; chain < count; ++chain) {
      double t = start[chain] = __builtin_ldexp(chain == 0 ? 1.0 : 1.4142135623730951, smallest);
      for (int i = 0; i < nodes; ++i, t *= 2) {
        // Above the largest t every pair is far apart or the same point: with its own, its terms are 1 + 1/2 + 1/4 ...
        const double terms = i < 4 ? 1 + below[i] : i == nodes - 1 ? 2 : 1;
        const double c = 0.6931471805599453 / count * terms / t;
        weight[chain][i] = T(c);
        slope -= c * __builtin_expm1(-t);
      }
    }
  }
};

// sums[k] += weighted scans of one group of nodes, from either end; y (of the gaps) moves on to the next group.
template <class T>
static void scan_group(Vec<T>* y, Vec<T>* sums, int64_t channels, const T* weight) {
  using V = Vec<T>;
  constexpr int group = Chains<T>::group;
  const auto step = [&](V gap, V n, V* q, V& sum) {
#pragma GCC unroll 6
    for (int i = 0; i < group; ++i) {
      q[i] += gap * (n - q[i]);
      sum += q[i] * weight[i];
      gap *= 2 - gap;
    }
    return gap;
  };
  V up[group] = {}, down[group] = {}, n{};
  for (int64_t k = 1; k < channels; ++k) {
    n += 1;
    step(y[k - 1], n, up, sums[k]);
  }
  n = V{};
  for (int64_t k = channels - 2; k >= 0; --k) {
    n += 1;
    y[k] = step(y[k], n, down, sums[k]);
  }
}

static constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

template <class T>
static void distance_scans(void* memory, void* scratch, int64_t channels, int64_t count, double* out) {
  using K = Of<T>;
  using V = Vec<T>;
  static const Chains<T> chains;
  V* x = static_cast<V*>(memory);
  V* gaps = static_cast<V*>(scratch);
  V* sums = gaps + channels;
  // Every filter in units of its own range: the entropy does not depend on the scale.
  const V range = x[channels - 1] - x[0];
  const V inverse = 1 / larger(range, splat<T>(1 / K::inverse_tau_limit));
  for (int64_t k = 0; k + 1 < channels; ++k) gaps[k] = (x[k + 1] - x[k]) * inverse;
  for (int64_t k = 0; k < channels; ++k) sums[k] = V{};
  for (int chain = 0; chain < Chains<T>::count; ++chain) {
    const T t = T(chains.start[chain]);
    for (int64_t k = 0; k + 1 < channels; ++k) {
      const V a = gaps[k] * t;
      V power = splat<T>(T(inverse_factorial(K::exp_terms)));
#pragma GCC unroll 16
      for (int i = K::exp_terms - 1; i > 0; --i) power = T(inverse_factorial(i)) - power * a;
      x[k] = power * a;
    }
    for (int i = 0; i < Chains<T>::nodes; i += Chains<T>::group) {
      scan_group<T>(x, sums, channels, chains.weight[chain] + i);
    }
  }
  // The row sums of the distances, where the chain was.
  V sum{}, n{};
  x[0] = sum;
  for (int64_t k = 1; k < channels; ++k) {
    n += 1;
    sum += gaps[k - 1] * n;
    x[k] = sum;
  }
  sum = n = V{};
  for (int64_t k = channels - 2; k >= 0; --k) {
    n += 1;
    sum += gaps[k] * n;
    x[k] += sum;
  }
  const V alike = range > 0 ? V{} : splat<T>(1);
  const T slope = T(chains.slope);
  mean_of_rows<T>(channels, count, out, [&](int64_t k) {
    return logarithm<T>(x[k] + alike) + (sums[k] / (x[k] + alike) - slope);
  });
  for (int64_t l = 0; l < count; ++l) {
    if (!(range[l] > 0)) out[l] = 0;
  }
}

template <class T>
static void scan_block(Entropy entropy, void* block, void* scratch, int64_t channels, int64_t count, double inverse_tau,
                       double* out) {
  switch (entropy) {
    case Entropy::Similarity: return similarity_scans<T>(block, scratch, channels, count, inverse_tau, out);
    case Entropy::Softmax: return softmax_scans<T>(block, scratch, channels, count, inverse_tau, out);
    case Entropy::Distance: return distance_scans<T>(block, scratch, channels, count, out);
  }
}
