// `pairwise` between the channels of a filter, one number per channel: all pairs, nothing stored. The distance entropy
// uses it, and it is the kernel that `sorted` is checked and timed against.
#pragma once

#include "cuda/load_weights.cuh"

namespace fec::cuda {

// The terms of the sums: distances, for tau, or the terms of an entropy (entropy_math.h).
enum class Terms { Distances, Similarity, Softmax, Distance };

static inline Terms terms_of(Entropy entropy) {
  return entropy == Entropy::Similarity ? Terms::Similarity
         : entropy == Entropy::Softmax  ? Terms::Softmax
                                        : Terms::Distance;
}
FEC_DEVICE Entropy entropy_of(Terms terms) {
  return terms == Terms::Similarity ? Entropy::Similarity
         : terms == Terms::Softmax  ? Entropy::Softmax
                                    : Entropy::Distance;
}

// Adds the terms of one distance. Powers and logarithms have base 2, so the second sum is in units of ln 2.
template <class T>
FEC_DEVICE void add_terms(Terms terms, T d, T scale, T& first, T& second) {
  if (terms == Terms::Distances) {
    first += d;
    return;
  }
  const T y = d * scale;
  if (terms == Terms::Distance) {
    first += y;
    second += y > 0 ? y * log2_of(y) : T(0);
    return;
  }
  const T z = exp2_minus(y);
  first += z;
  if (terms == Terms::Softmax) second += z * smaller(y, Limits<T>::far);
}

// The factor that distances get before `add_terms`.
template <class T>
FEC_DEVICE T pair_scale(Terms terms, double tau) {
  const double scale = (terms == Terms::Distance ? 1 : kLog2e) / tau;
  return static_cast<T>(scale < Limits<T>::inverse_limit ? scale : Limits<T>::inverse_limit);
}

constexpr int kLineThreads = 128, kLineColumns = 256;
FEC_BOTH constexpr int rows_a_thread(int64_t channels) { return channels > 256 ? 4 : 1; }

// The entropies of `rows` points of a thread, over all points of its filter; or the sum of their distances.
template <class T, Terms terms, int R>
FEC_DEVICE void line_rows(const Place& place, T* columns, double* sums) {
  const Entry& layer = *place.entry;
  const int channels = layer.channels, strips = (channels + kLineThreads * R - 1) / (kLineThreads * R);
  const int strip = static_cast<int>(place.unit % static_cast<uint32_t>(strips));
  const int32_t filter = static_cast<int32_t>(place.unit / static_cast<uint32_t>(strips));
  const T* all = static_cast<const T*>(layer.points) + static_cast<int64_t>(filter) * channels;
  const double tau = terms == Terms::Distances ? 1 : place.state->tau;
  if (!(tau > 0)) return;  // `finish_parts` writes the entropies
  const T scale = pair_scale<T>(terms, tau);
  T x[R];
  double first[R] = {}, second[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int own = (strip * R + r) * kLineThreads + static_cast<int>(threadIdx.x);
    x[r] = own < channels ? all[own] : T(0);
  }
  for (int from = 0; from < channels; from += kLineColumns) {
    const int count = smaller_int(kLineColumns, channels - from);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kLineThreads) columns[i] = all[from + i];
    __syncthreads();
    T part[R] = {}, part2[R] = {};
    const int whole = count & ~3;
    for (int c = 0; c < whole; c += 4) {
      T y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = columns[c + i];  // one 16-byte load (two for double), for all threads
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) add_terms(terms, magnitude(x[r] - y[i]), scale, part[r], part2[r]);
      }
    }
    for (int c = whole; c < count; ++c) {
#pragma unroll
      for (int r = 0; r < R; ++r) add_terms(terms, magnitude(x[r] - columns[c]), scale, part[r], part2[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      first[r] += static_cast<double>(part[r]);
      second[r] += static_cast<double>(part2[r]);
    }
  }
  double total = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int own = (strip * R + r) * kLineThreads + static_cast<int>(threadIdx.x);
    if (own >= channels) continue;
    const RowSums row{first[r], second[r] * kLn2};
    total += terms == Terms::Distances ? first[r] : row_entropy(entropy_of(terms), row, channels);
  }
  total = block_sum(total, sums);
  if (threadIdx.x == 0) (terms == Terms::Distances ? layer.sums : layer.parts)[place.unit] = total;
}

template <class T>
struct LineShared {
  T columns[kLineColumns];
  double sums[kLineThreads / 32];
};

template <class T, Terms terms>
__global__ void __launch_bounds__(kLineThreads, 6) line_pairs(const Range range) {
  DYN_SHARED(LineShared<T>, shared);
  const Place place = find_place(range, kMain);
  if (rows_a_thread(place.entry->channels) == 1) line_rows<T, terms, 1>(place, shared->columns, shared->sums);
  else line_rows<T, terms, 4>(place, shared->columns, shared->sums);
}

}  // namespace fec::cuda
