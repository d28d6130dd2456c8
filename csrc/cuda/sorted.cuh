// `sorted`: the weights of a filter are read once, compressed, sorted in registers; then either the entropy at once
// (tau is given), or the sorted numbers are kept until tau, the mean distance over the whole layer, is known.
//
//   channels     threads                       numbers a thread
//   1 to 512     a warp a filter, 4 a block    1, 2, 4, 8, 16
//   to 2048      128, a block a filter         8, 16
//   to 8192      512                           8, 16 (of double 8, to 4096)
//   beyond       as the row before, in runs of so many, which long.cuh merges
#pragma once

#include "bitonic.cuh"
#include "scan.cuh"

namespace fec::cuda {

constexpr int kNarrow = 4, kWide = 16;  // warps a block
template <class T>
constexpr int kRun = sizeof(T) == 8 ? 4096 : 8192;  // the longest filter that a block sorts

// The numbers a filter takes in memory: a power of two, so that it is written and read back in whole warps.
constexpr int64_t padded_channels(int64_t channels) {
  int64_t size = 32;
  while (size < channels) size *= 2;
  return size;
}
FEC_BOTH constexpr bool a_warp_each(int64_t channels) { return channels <= 512; }
FEC_BOTH constexpr bool is_wide(int64_t channels) { return channels > 2048; }

template <class T, int warps>
struct SortShared {
  union {
    Reader<T> readers[warps];
    T exchanged[warps * 32 * kExchanged];  // between warps, once the numbers are read
  };
  WarpReach<T> reach;
  double sums[warps];
};
struct SortWork {
  Range range;
  Choice choice;
};

// What a kernel does: sort, and keep the sorted numbers; from them the entropies; or, where tau is given, all at once.
enum class Task { Sort, Scan, Both };

template <int warps>
FEC_DEVICE double group_sum(double x, double* shared) {
  return warps == 1 ? warp_sum(x) : block_sum(x, shared);
}

// Writes the entropy of a filter whose numbers lie sorted in registers.
template <int E, int warps, bool moments, class T>
FEC_DEVICE void finish_filter(const Place& place, int32_t filter, const T (&x)[E], T next, WarpReach<T>* reach,
                              double* sums) {
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x), channels = place.entry->channels;
  const Unit<T> unit(*place.state);
  Step<T> steps[E];
#pragma unroll
  for (int e = 0; e < E; ++e) steps[e] = step_over(unit.gap(x[e], e + 1 < E ? x[(e + 1) % E] : next));
  const Around<T> around = gather<E, warps, moments>(x, steps, unit, next, reach);
  const double part = row_entropies<E, moments>(steps, around, own * E, channels);
  const double total = group_sum<warps>(part, sums);
  if (own == 0) place.entry->out[filter] = clamped_entropy(total / channels, channels);
}

template <int E, int warps, class T>
FEC_DEVICE void entropy_of_sorted(const Place& place, const Choice& choice, int32_t filter, const T (&x)[E],
                                  WarpReach<T>* reach, double* sums) {
  const double tau = place.state->tau;
  if (!(tau > 0)) {  // all alike, or not finite
    if ((warps == 1 ? lane() : static_cast<int>(threadIdx.x)) == 0) place.entry->out[filter] = tau * 0;
    return;
  }
  const T next = next_first<warps>(x[0], reach);
  if (choice.entropy == Entropy::Similarity) {
    finish_filter<E, warps, false>(place, filter, x, next, reach, sums);
  } else {
    finish_filter<E, warps, true>(place, filter, x, next, reach, sums);
  }
}

// Reads and sorts `channels` channels of a filter from `channel` on; whether one of them is not finite.
template <int E, int warps, class T, int all_warps>
FEC_DEVICE bool sorted_numbers(const Entry& layer, const Choice& choice, int32_t filter, int channel, int channels,
                               T (&x)[E], SortShared<T, all_warps>* shared) {
  constexpr int threads = 32 * warps, part = E < kHeap ? E : kHeap;
  bool bad = false;
  Reader<T>* reader = shared->readers + warp();
  const int begin = channel + (warps == 1 ? 0 : 32 * warp()), end = channel + channels;
#pragma unroll
  for (int first = 0; first < E; first += part) {
    // Halves: the difference of two of them is finite.
    bad |= read_channels<T>(layer, choice.compress, T(0.5), filter, begin + first * threads, threads, part, end, reader);
    __syncwarp();
#pragma unroll
    for (int e = 0; e < part; ++e) x[first + e] = reader->numbers[32 * e + lane()];
    __syncwarp();
  }
  if constexpr (warps == 1) {
    bad = __any_sync(kAll, bad);
    sort_warp<E>(x);
  } else {
    bad = __syncthreads_or(bad) != 0;
    sort_block<E, threads>(x, shared->exchanged);
  }
  return bad;
}

template <int E, int warps, bool both, class T, int all_warps>
FEC_DEVICE void sort_filter(const Place& place, const SortWork& work, int32_t filter, SortShared<T, all_warps>* shared) {
  constexpr int threads = 32 * warps;
  const Entry& layer = *place.entry;
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x);
  T x[E];
  const bool bad = sorted_numbers<E, warps>(layer, work.choice, filter, 0, layer.channels, x, shared);
  if constexpr (both) {
    if (!bad) return entropy_of_sorted<E, warps>(place, work.choice, filter, x, &shared->reach, shared->sums);
    if (own == 0) layer.out[filter] = NAN;
  } else {
    T* kept = static_cast<T*>(layer.points) + static_cast<int64_t>(filter) * (E * threads);
#pragma unroll
    for (int e = 0; e < E; ++e) kept[e * threads + own] = x[e];
    const T next = next_first<warps>(x[0], &shared->reach);
    const double part = mean_distance_part<E>(x, next, own * E, layer.channels);
    const double half = group_sum<warps>(part, shared->sums);
    if (own == 0) layer.sums[filter] = bad ? NAN : 2 * half;
  }
}

template <int E, int warps, class T>
FEC_DEVICE void scan_filter(const Place& place, const SortWork& work, int32_t filter, WarpReach<T>* reach,
                            double* sums) {
  constexpr int threads = 32 * warps;
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x);
  const T* kept = static_cast<const T*>(place.entry->points) + static_cast<int64_t>(filter) * (E * threads);
  T x[E];
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = kept[e * threads + own];
  entropy_of_sorted<E, warps>(place, work.choice, filter, x, reach, sums);
}

template <int E, int warps, Task task, class T, int all_warps>
FEC_DEVICE void do_filter(const Place& place, const SortWork& work, int32_t filter, SortShared<T, all_warps>* shared) {
  if constexpr (task != Task::Scan) {
    sort_filter<E, warps, task == Task::Both>(place, work, filter, shared);
  } else {
    scan_filter<E, warps, T>(place, work, filter, &shared->reach, shared->sums);
  }
}

// The filters of up to 2048 channels.
template <class T, Task task>
__global__ void __launch_bounds__(32 * kNarrow, sizeof(T) == 8 ? 3 : 5) narrow_filters(const SortWork work) {
  using Shared = SortShared<T, kNarrow>;
  DYN_SHARED(Shared, shared);
  const Place found = place(work.range, kMain);
  const int channels = found.entry->channels;
  if (a_warp_each(channels)) {
    const int32_t filter = static_cast<int32_t>(found.unit) * kNarrow + warp();
    if (filter >= found.entry->filters) return;
    if (channels <= 32) return do_filter<1, 1, task>(found, work, filter, shared);
    if (channels <= 64) return do_filter<2, 1, task>(found, work, filter, shared);
    if (channels <= 128) return do_filter<4, 1, task>(found, work, filter, shared);
    if (channels <= 256) return do_filter<8, 1, task>(found, work, filter, shared);
    return do_filter<16, 1, task>(found, work, filter, shared);
  }
  const int32_t filter = static_cast<int32_t>(found.unit);
  if (channels <= 1024) return do_filter<8, kNarrow, task>(found, work, filter, shared);
  do_filter<16, kNarrow, task>(found, work, filter, shared);
}

// The filters of up to kRun channels.
template <class T, Task task>
__global__ void __launch_bounds__(32 * kWide) wide_filters(const SortWork work) {
  using Shared = SortShared<T, kWide>;
  DYN_SHARED(Shared, shared);
  const Place found = place(work.range, kMain);
  const int channels = found.entry->channels;
  const int32_t filter = static_cast<int32_t>(found.unit);
  if constexpr (kRun<T> > 4096) {
    if (channels > 4096) return do_filter<16, kWide, task>(found, work, filter, shared);
  }
  do_filter<8, kWide, task>(found, work, filter, shared);
}

}  // namespace fec::cuda
