// `sorted`: filters side by side in the lanes of a vector, one row a channel. A sort of the rows gives the mean
// distance and, by two scans, every row sum of the similarity matrix, without the matrix.
#pragma once

template <class V>
FEC_INLINE void exchange(V& a, V& b) {
  const V low = smaller(a, b);
  b = larger(a, b);
  a = low;
}

// Sorts 8 rows in registers by the 19 exchanges of Batcher's network.
template <class V>
static void sort_eight(V* x) {
  V r0 = x[0], r1 = x[1], r2 = x[2], r3 = x[3], r4 = x[4], r5 = x[5], r6 = x[6], r7 = x[7];
  exchange(r0, r1), exchange(r2, r3), exchange(r4, r5), exchange(r6, r7);
  exchange(r0, r2), exchange(r1, r3), exchange(r4, r6), exchange(r5, r7);
  exchange(r1, r2), exchange(r5, r6);
  exchange(r0, r4), exchange(r1, r5), exchange(r2, r6), exchange(r3, r7);
  exchange(r2, r4), exchange(r3, r5);
  exchange(r1, r2), exchange(r3, r4), exchange(r5, r6);
  x[0] = r0, x[1] = r1, x[2] = r2, x[3] = r3, x[4] = r4, x[5] = r5, x[6] = r6, x[7] = r7;
}

template <class V>
FEC_INLINE void exchange_run(V* low, V* high, int64_t n) {
  for (int64_t i = 0; i < n; ++i) exchange(low[i], high[i]);
}

// Batcher's odd-even merge of every two neighbouring sorted runs of p rows. Rows at n and beyond count as infinite:
// every exchange puts the larger row last, so they would stay where they are and can be left out.
template <class V>
static void merge_runs(V* x, int64_t n, int64_t p) {
  for (int64_t start = 0; start + p < n; start += 2 * p) {
    const int64_t end = start + 2 * p < n ? start + 2 * p : n;
    exchange_run(x + start, x + start + p, end - start - p);
    for (int64_t k = p / 2; k >= 1; k /= 2) {
      for (int64_t j = start + k; j + k < end; j += 2 * k) {
        exchange_run(x + j, x + j + k, j + 2 * k <= end ? k : end - j - k);
      }
    }
  }
}

template <class V>
static void sort_rows(V* x, int64_t n) {
  constexpr int64_t resident = 32768 / int64_t(sizeof(V));  // rows that stay in the L1 cache: sorted there first
  for (int64_t start = 0; start < n; start += resident) {
    V* part = x + start;
    const int64_t rows = start + resident < n ? resident : n - start;
    int64_t whole = rows / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) sort_eight(part + i);
    for (int64_t p = 1; p < 8; p *= 2) merge_runs(part + whole, rows - whole, p);
    for (int64_t p = 8; p < rows; p *= 2) merge_runs(part, rows, p);
  }
  for (int64_t p = resident; p < n; p *= 2) merge_runs(x, n, p);
}

template <class T>
static double sort_block(const Job& job, int64_t first, int64_t count, void* memory) {
  using V = Vec<T>;
  constexpr int lanes = Of<T>::lanes;
  constexpr int64_t strip = 64;  // channels of all lanes at a time: source and destination both stay in the cache
  const Layer& layer = *job.layer;
  const int64_t channels = layer.channels;
  T* block = static_cast<T*>(memory);
  V* rows = static_cast<V*>(memory);
  if (count < lanes) {
    for (int64_t c = 0; c < channels; ++c) rows[c] = V{};
  }
  Readers<T>::visit(layer.dtype, [&](auto reader) {
    for (int64_t c = 0; c < channels; c += strip) {
      const int64_t n = channels - c < strip ? channels - c : strip;
      for (int64_t l = 0; l < count; ++l) {
        numbers_of<T, decltype(reader)>(job, filter_offset(layer, first + l), c, n, block + c * lanes + l, lanes);
      }
    }
  });
  sort_rows(rows, channels);

  // A gap between neighbours k and k + 1 lies inside k (C - k) pairs: only positive terms, no cancellation.
  double sum = 0;
  for (int64_t c = 1; c < channels; c += 8) {
    const int64_t end = c + 8 < channels ? c + 8 : channels;
    V part{};
    for (int64_t k = c; k < end; ++k) part += (rows[k] - rows[k - 1]) * T(double(k) * double(channels - k));
    for (int64_t l = 0; l < count; ++l) sum += part[l];
  }
  return 2 * sum;
}

template <class T>
static void scan_block(void* memory, void* scratch, int64_t channels, int64_t count, double inverse, double* out) {
  using K = Of<T>;
  using V = Vec<T>;
  using U = typename K::U;
  V* x = static_cast<V*>(memory);
  V* left = static_cast<V*>(scratch);
  const V scale = splat<T>(inverse < double(K::inverse_tau_limit) ? T(inverse) : K::inverse_tau_limit);
  const V size = splat<T>(T(channels));

  // left[k] = sum over rows before k of exp(-(x_k - x_e) / tau); x[k] becomes exp(-(x_{k+1} - x_k) / tau).
  V reach{}, here = x[0];
  for (int64_t k = 0; k + 1 < channels; ++k) {
    const V next = x[k + 1];
    const V decay = exp_minus<T>((next - here) * scale);
    left[k] = reach;
    x[k] = decay;
    reach = decay * reach + decay;
    here = next;
  }
  left[channels - 1] = reach;

  // The logarithms of all row means as one: a running product, its exponent taken out before it can underflow (four
  // factors of at least 2^-31 each).
  constexpr typename K::Bits fraction = (typename K::Bits(1) << K::mantissa) - 1;
  constexpr typename K::Bits one = typename K::Bits(K::bias) << K::mantissa;
  V product = splat<T>(1), right{};
  U exponents{};
  for (int64_t k = channels - 1; k >= 0; --k) {
    product *= (left[k] + right + 1) / size;
    if ((k & 3) == 0) {
      exponents += ((U)product >> K::mantissa) - typename K::Bits(K::bias);
      product = (V)(((U)product & fraction) | one);
    }
    if (k > 0) right = x[k - 1] * right + x[k - 1];
  }
  for (int64_t l = 0; l < count; ++l) {
    const double exponent = sizeof(T) == 4 ? double(int32_t(exponents[l])) : double(int64_t(exponents[l]));
    const double mean = (__builtin_log(double(product[l])) + exponent * 0.6931471805599453) / double(channels);
    out[l] = mean > 0 ? 0 : -mean;
  }
}
