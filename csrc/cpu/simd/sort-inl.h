// `sorted`, first pass: filters side by side in the lanes of a vector, one row per channel. The sorted rows give the
// mean distance here and, by scans (scan-inl.h), every row sum of the distance matrix, without the matrix.
#pragma once

// The network, for numbers of any sign or for those that are not negative.
template <class T, bool positive>
struct Network {
  using V = Vec<T>;

  // Numbers that are not negative are ordered like their bits. The minimum of numbers and the maximum of integers use
  // different units of some processors, where two of the same kind would wait for one another.
  FEC_INLINE void exchange(V& a, V& b) {
    const V low = smaller(a, b);
    if constexpr (positive) b = (V)larger((typename Of<T>::I)a, (typename Of<T>::I)b);
    else b = larger(a, b);
    a = low;
  }

  // Batcher's network for 8 rows: 19 exchanges.
  FEC_INLINE void sort_eight(V* r) {
    exchange(r[0], r[1]), exchange(r[2], r[3]), exchange(r[4], r[5]), exchange(r[6], r[7]);
    exchange(r[0], r[2]), exchange(r[1], r[3]), exchange(r[4], r[6]), exchange(r[5], r[7]);
    exchange(r[1], r[2]), exchange(r[5], r[6]);
    exchange(r[0], r[4]), exchange(r[1], r[5]), exchange(r[2], r[6]), exchange(r[3], r[7]);
    exchange(r[2], r[4]), exchange(r[3], r[5]);
    exchange(r[1], r[2]), exchange(r[3], r[4]), exchange(r[5], r[6]);
  }

  // Two eights, then Batcher's odd-even merge; 63 exchanges.
  FEC_INLINE void sort_sixteen(V* r) {
    sort_eight(r), sort_eight(r + 8);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) exchange(r[i], r[i + 8]);
#pragma GCC unroll 4
    for (int i = 4; i < 8; ++i) exchange(r[i], r[i + 4]);
#pragma GCC unroll 3
    for (int i = 2; i < 14; i += 4) exchange(r[i], r[i + 2]), exchange(r[i + 1], r[i + 3]);
#pragma GCC unroll 7
    for (int i = 1; i < 15; i += 2) exchange(r[i], r[i + 1]);
  }

  // Exchanges at distances R/2, R/4 ... 1 among R rows in registers.
  template <int R>
  FEC_INLINE void halve(V* r) {
    if constexpr (R > 1) {
#pragma GCC unroll 8
      for (int i = 0; i < R / 2; ++i) exchange(r[i], r[i + R / 2]);
      halve<R / 2>(r), halve<R / 2>(r + R / 2);
    }
  }

  // Sorts 32 rows: two sixteens and their merge without a store between them. What does not fit in the registers is
  // still less than a pass over memory.
  static void sort_whole(V* x) {
    V r[32];
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) r[i] = x[i];
    sort_sixteen(r), sort_sixteen(r + 16);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) exchange(r[i], r[31 - i]);
    halve<16>(r), halve<16>(r + 16);
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) x[i] = r[i];
  }

  // Sorts up to 16 rows. Missing rows count as the largest number, here and below: every exchange puts the larger row
  // last, so they never move forward.
  static void sort_few(V* x, int64_t n) {
    V r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = i < n ? x[i] : splat<T>(Of<T>::huge);
    sort_sixteen(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i < n) x[i] = r[i];
    }
  }

  // The first stages of a merge of two sorted runs of p rows, H rows of each at a time in registers: row i of the first
  // against row i from the end of the second, after which everything in the first run is at most everything in the
  // second; then distances p/2 ... p/H in both runs. `n` rows exist.
  template <int H, bool whole>
  FEC_INLINE void merge_ends(V* x, int64_t n, int64_t p) {
    const int64_t step = p / H;
    for (int64_t i = 0; i < step; ++i) {
      V r[2 * H];
      V* low = x + i;
      V* high = x + p + step - 1 - i;
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

  // The first pass of a merge: as many stages as leave a multiple of three.
  template <bool whole>
  FEC_INLINE void merge_first(V* x, int64_t n, int64_t p, int stages) {
    switch (stages) {
      case 1: return merge_ends<1, whole>(x, n, p);
      case 2: return merge_ends<2, whole>(x, n, p);
      default: return merge_ends<4, whole>(x, n, p);
    }
  }

  // Three further stages: distances k, k/2 and k/4 in every 2k rows.
  static void merge_thirds(V* x, int64_t n, int64_t k) {
    const int64_t step = k / 4;
    for (int64_t start = 0; start < n; start += 2 * k) {
      const bool whole = start + 2 * k <= n;
      for (int64_t i = start; i < start + step && i < n; ++i) {
        V r[8];
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
  static void merge_runs(V* x, int64_t n, int64_t p) {
    int left = 0;  // stages after the first
    while ((p >> left) > 1) ++left;
    const int first = 1 + left % 3;
    for (int64_t start = 0; start + p < n; start += 2 * p) {
      V* pair = x + start;
      const int64_t rows = n - start < 2 * p ? n - start : 2 * p;
      // Compiled twice: without the questions whether a row exists, the rows stay in registers.
      if (rows == 2 * p) merge_first<true>(pair, rows, p, first);
      else merge_first<false>(pair, rows, p, first);
      for (int64_t k = p >> first; k >= 4; k /= 8) merge_thirds(pair, rows, k);
    }
  }

  static void sort(V* x, int64_t n) {
    constexpr int64_t resident = 32768 / int64_t(sizeof(V));  // rows that stay in the L1 cache: sorted there first
    for (int64_t start = 0; start < n; start += resident) {
      V* part = x + start;
      const int64_t rows = n - start < resident ? n - start : resident;
      const int64_t whole = rows / 32 * 32;
      for (int64_t i = 0; i < whole; i += 32) sort_whole(part + i);
      for (int64_t i = whole; i < rows; i += 16) sort_few(part + i, rows - i < 16 ? rows - i : 16);
      merge_runs(part + whole, rows - whole, 16);
      for (int64_t p = 32; p < rows; p *= 2) merge_runs(part, rows, p);
    }
    for (int64_t p = resident; p < n; p *= 2) merge_runs(x, n, p);
  }
};

template <class T>
static double sort_block(const Job& job, int64_t first, int64_t count, void* memory) {
  using V = Vec<T>;
  const int64_t channels = job.layer->channels;
  V* rows = static_cast<V*>(memory);
  columns_of<T>(job, lanes_of<T>(*job.layer, first, count), channels, static_cast<T*>(memory), Of<T>::lanes);
  // With vectors of 16 bytes there is nothing to gain; of 64-bit integers not every processor has a maximum.
  constexpr bool ordered_by_bits = sizeof(T) == 4 && FEC_BYTES > 16;
  const Compress compress = job.formula.compress;
  if (ordered_by_bits && (compress == Compress::Rms || compress == Compress::AbsMean)) {
    Network<T, ordered_by_bits>::sort(rows, channels);
  } else {
    Network<T, false>::sort(rows, channels);
  }

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
