// `sorted`, first pass: filters side by side in the lanes of a vector, one row per channel. The sorted rows give the
// mean distance here and, by scans (scan-inl.h), every row sum of the distance matrix, without the matrix.
#pragma once

template <class V>
FEC_INLINE void exchange(V& a, V& b) {
  const V low = smaller(a, b);
  b = larger(a, b);
  a = low;
}

// Batcher's network for 8 rows: 19 exchanges.
template <class V>
FEC_INLINE void sort_eight(V* r) {
  exchange(r[0], r[1]), exchange(r[2], r[3]), exchange(r[4], r[5]), exchange(r[6], r[7]);
  exchange(r[0], r[2]), exchange(r[1], r[3]), exchange(r[4], r[6]), exchange(r[5], r[7]);
  exchange(r[1], r[2]), exchange(r[5], r[6]);
  exchange(r[0], r[4]), exchange(r[1], r[5]), exchange(r[2], r[6]), exchange(r[3], r[7]);
  exchange(r[2], r[4]), exchange(r[3], r[5]);
  exchange(r[1], r[2]), exchange(r[3], r[4]), exchange(r[5], r[6]);
}

// Sorts up to 16 rows in registers: two eights, then Batcher's odd-even merge; 63 exchanges. Missing rows count
// as the largest number, here and below: every exchange puts the larger row last, so they never move forward.
template <class T>
static void sort_sixteen(Vec<T>* x, int64_t n) {
  Vec<T> r[16];
  if (n == 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = x[i];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = i < n ? x[i] : splat<T>(Of<T>::huge);
  }
  sort_eight(r), sort_eight(r + 8);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange(r[i], r[i + 8]);
#pragma GCC unroll 4
  for (int i = 4; i < 8; ++i) exchange(r[i], r[i + 4]);
#pragma GCC unroll 3
  for (int i = 2; i < 14; i += 4) exchange(r[i], r[i + 2]), exchange(r[i + 1], r[i + 3]);
#pragma GCC unroll 7
  for (int i = 1; i < 15; i += 2) exchange(r[i], r[i + 1]);
  if (n == 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = r[i];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i < n) x[i] = r[i];
    }
  }
}

// Exchanges at distances R/2, R/4 ... 1 among R rows in registers.
template <int R, class V>
FEC_INLINE void halve(V* r) {
  if constexpr (R >= 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) exchange(r[i], r[i + 4]);
  }
  if constexpr (R >= 4) {
#pragma GCC unroll 4
    for (int i = 0; i < R; i += 4) exchange(r[i], r[i + 2]), exchange(r[i + 1], r[i + 3]);
  }
  if constexpr (R >= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < R; i += 2) exchange(r[i], r[i + 1]);
  }
}

// The first stages of a merge of two sorted runs of p rows, H rows of each at a time in registers: row i of the first
// against row i from the end of the second, after which everything in the first run is at most everything in the
// second; then distances p/2 ... p/H in both runs. `n` rows exist.
template <class T, int H>
FEC_INLINE void merge_ends(Vec<T>* x, int64_t n, int64_t p) {
  const int64_t step = p / H;
  for (int64_t i = 0; i < step; ++i) {
    Vec<T> r[2 * H];
    Vec<T>* low = x + i;
    Vec<T>* high = x + p + step - 1 - i;
    const bool whole = n == 2 * p;
#pragma GCC unroll 4
    for (int q = 0; q < H; ++q) {
      r[q] = low[q * step];
      r[H + q] = whole || high + q * step < x + n ? high[q * step] : splat<T>(Of<T>::huge);
    }
#pragma GCC unroll 4
    for (int q = 0; q < H; ++q) exchange(r[q], r[2 * H - 1 - q]);
    halve<H>(r), halve<H>(r + H);
#pragma GCC unroll 4
    for (int q = 0; q < H; ++q) {
      low[q * step] = r[q];
      if (whole || high + q * step < x + n) high[q * step] = r[H + q];
    }
  }
}

// Three further stages: distances k, k/2 and k/4 in every 2k rows.
template <class T>
static void merge_thirds(Vec<T>* x, int64_t n, int64_t k) {
  const int64_t step = k / 4;
  for (int64_t start = 0; start < n; start += 2 * k) {
    const bool whole = start + 2 * k <= n;
    for (int64_t i = start; i < start + step && i < n; ++i) {
      Vec<T> r[8];
      if (whole) {
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) r[q] = x[i + q * step];
        halve<8>(r);
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) x[i + q * step] = r[q];
      } else {
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) r[q] = i + q * step < n ? x[i + q * step] : splat<T>(Of<T>::huge);
        halve<8>(r);
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) {
          if (i + q * step < n) x[i + q * step] = r[q];
        }
      }
    }
  }
}

// Merges every two neighbouring sorted runs of p rows. Three of the log2(2p) stages are done in registers at a
// time, which saves two of three loads and stores; the first pass does the remaining ones.
template <class T>
static void merge_runs(Vec<T>* x, int64_t n, int64_t p) {
  int left = 0;  // stages after the first
  while ((p >> left) > 1) ++left;
  for (int64_t start = 0; start + p < n; start += 2 * p) {
    Vec<T>* pair = x + start;
    const int64_t rows = n - start < 2 * p ? n - start : 2 * p;
    int64_t k = p / 2;
    switch (left % 3) {
      case 0: merge_ends<T, 1>(pair, rows, p); break;
      case 1: merge_ends<T, 2>(pair, rows, p), k /= 2; break;
      default: merge_ends<T, 4>(pair, rows, p), k /= 4;
    }
    for (; k >= 4; k /= 8) merge_thirds<T>(pair, rows, k);
  }
}

template <class T>
static void sort_rows(Vec<T>* x, int64_t n) {
  constexpr int64_t resident = 32768 / int64_t(sizeof(Vec<T>));  // rows that stay in the L1 cache: sorted there first
  for (int64_t start = 0; start < n; start += resident) {
    Vec<T>* part = x + start;
    const int64_t rows = n - start < resident ? n - start : resident;
    for (int64_t i = 0; i < rows; i += 16) sort_sixteen<T>(part + i, rows - i < 16 ? rows - i : 16);
    for (int64_t p = 16; p < rows; p *= 2) merge_runs<T>(part, rows, p);
  }
  for (int64_t p = resident; p < n; p *= 2) merge_runs<T>(x, n, p);
}

template <class T>
static double sort_block(const Job& job, int64_t first, int64_t count, void* memory) {
  using V = Vec<T>;
  const int64_t channels = job.layer->channels;
  V* rows = static_cast<V*>(memory);
  columns_of<T>(job, lanes_of<T>(*job.layer, first, count), channels, static_cast<T*>(memory), Of<T>::lanes);
  sort_rows<T>(rows, channels);

  // A gap between neighbours k and k + 1 lies inside k (C - k) pairs: only positive terms, no cancellation.
  double sum = 0;
  for (int64_t c = 1; c < channels; c += 32) {
    const int64_t end = c + 32 < channels ? c + 32 : channels;
    V part[2] = {};
    for (int64_t k = c; k < end; ++k) part[k & 1] += (rows[k] - rows[k - 1]) * T(double(k) * double(channels - k));
    for (int64_t l = 0; l < count; ++l) sum += double(part[0][l]) + double(part[1][l]);
  }
  return 2 * sum;
}
