// `sorted`: the weights of a filter are read once, compressed, and sorted in registers. If tau is given, the entropy
// follows at once; otherwise the sorted numbers are stored until tau, the mean distance of the layer, is known.
//
//   channels     threads per filter        numbers per thread
//   1 to 512     32, 4 filters per block   1, 2, 4, 8, 16
//   to 1024      32, 4 filters per block   32, of float and for the similarity entropy; else 128 threads with 8
//   to 2048      128                       16
//   to 8192      512                       8, 16 (double: 8, to 4096)
//   more         512 per run of 8192 (double: 4096), which long_kernels.cuh merges
#pragma once

#include <type_traits>

#include "cuda/sorted/bitonic_sort.cuh"
#include "cuda/sorted/scan.cuh"

namespace fec::cuda {

constexpr int kNarrow = 4, kWide = 16;  // warps per block
template <class T>
constexpr int kRun = sizeof(T) == 8 ? 4096 : 8192;  // the longest filter that one block sorts

// The size of a filter in the workspace: a power of two, so that whole warps write and read it.
FEC_BOTH constexpr int64_t padded_channels(int64_t channels) {
  int64_t size = 32;
  while (size < channels) size *= 2;
  return size;
}
// Whether one warp sorts a filter. With 32 numbers per thread it takes half the instructions of four warps with 8; the
// moments of softmax, and numbers of double, would need more registers than there are.
FEC_BOTH constexpr bool a_warp_each(int64_t channels, bool of_double, Entropy entropy) {
  return channels <= (!of_double && entropy == Entropy::Similarity ? 1024 : 512);
}
FEC_BOTH constexpr bool is_wide(int64_t channels) { return channels > 2048; }

// Blocks of 16 warps have no shared memory left for stages.
template <class T, int warps>
using SortReader = std::conditional_t<warps == kWide, Reader<T, kRun<T> / (32 * kWide), false>,
                                      Reader<T, sizeof(T) == 8 ? 16 : 32, sizeof(T) == 4>>;

template <class T, int warps>
struct SortShared {
  union {
    SortReader<T, warps> readers[warps];
    T exchanged[warps * 32 * kExchanged];  // for exchanges between warps, after the numbers are read
  };
  WarpReach<T> reach;
  double sums[warps];
};

struct SortWork {
  Range range;
  Choice choice;
};
// Sorting comes first: its layers are arguments.
struct FirstSortWork {
  ShortTable table;
  Choice choice;
};
static_assert(sizeof(FirstSortWork) <= 4096);

// Sort: sort and store the numbers. Scan: the entropies from the stored numbers. Both: at once, where tau is given.
enum class Task { Sort, Scan, Both };
template <Task task>
using WorkOf = std::conditional_t<task == Task::Sort, FirstSortWork, SortWork>;

FEC_DEVICE Place find_place(const SortWork& work, Entry&) { return find_place(work.range, kMain); }
FEC_DEVICE Place find_place(const FirstSortWork& work, Entry& entry) { return find_place(work.table, entry); }

template <int warps>
FEC_DEVICE double group_sum(double x, double* shared) {
  return warps == 1 ? warp_sum(x) : block_sum(x, shared);
}

// Writes the entropy of a filter from its sorted numbers in registers.
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
  if (!(tau > 0)) {  // all points are equal, or a weight is not finite
    if ((warps == 1 ? lane() : static_cast<int>(threadIdx.x)) == 0) place.entry->out[filter] = tau * 0;
    return;
  }
  const T next = next_first<warps>(x[0], reach);
  if (E > 16 || choice.entropy == Entropy::Similarity) {
    finish_filter<E, warps, false>(place, filter, x, next, reach, sums);
  } else if constexpr (E <= 16) {
    finish_filter<E, warps, true>(place, filter, x, next, reach, sums);
  }
}

// Reads `count` channels a lane of a filter, or a run of one, that a warp or (`together`) a block is about to sort; the
// channels are those from `channel` up to `end`. Whether one of this lane's weights is not finite.
template <class T, int all_warps>
FEC_DEVICE bool read_filter(const Entry& layer, const Choice& choice, int32_t filter, int channel, int end, int count,
                            bool together, SortShared<T, all_warps>* shared) {
  const int step = together ? 32 * all_warps : 32, first = channel + (together ? 32 * warp() : 0);
  // Scaled by 1/2, so that the difference of two numbers is finite.
  return read_channels<T>(layer, choice.compress, T(0.5), filter, first, step, count, end, shared->readers + warp());
}

// Sorts the numbers read over the threads of the warp or block. Returns true if a weight was not finite.
template <int E, int warps, class T, int all_warps>
FEC_DEVICE bool sorted_numbers(bool bad, T (&x)[E], SortShared<T, all_warps>* shared) {
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = shared->readers[warp()].numbers[32 * e + lane()];  // written by this same lane
  if constexpr (warps == 1) {
    bad = __any_sync(kAll, bad);
    sort_warp<E>(x);
  } else {
    bad = __syncthreads_or(bad) != 0;
    sort_block<E, 32 * warps>(x, shared->exchanged);
  }
  return bad;
}

template <int E, int warps, bool both, class T, int all_warps>
FEC_DEVICE void sort_filter(const Place& place, const Choice& choice, int32_t filter, bool bad,
                            SortShared<T, all_warps>* shared) {
  constexpr int threads = 32 * warps;
  const Entry& layer = *place.entry;
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x);
  T x[E];
  bad = sorted_numbers<E, warps>(bad, x, shared);
  if constexpr (both) {
    if (!bad) return entropy_of_sorted<E, warps>(place, choice, filter, x, &shared->reach, shared->sums);
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
FEC_DEVICE void scan_filter(const Place& place, const Choice& choice, int32_t filter, WarpReach<T>* reach,
                            double* sums) {
  constexpr int threads = 32 * warps;
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x);
  const T* kept = static_cast<const T*>(place.entry->points) + static_cast<int64_t>(filter) * (E * threads);
  T x[E];
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = kept[e * threads + own];
  entropy_of_sorted<E, warps>(place, choice, filter, x, reach, sums);
}

template <int E, int warps, Task task, class T, int all_warps>
FEC_DEVICE void do_filter(const Place& place, const Choice& choice, int32_t filter, bool bad,
                          SortShared<T, all_warps>* shared) {
  if constexpr (task != Task::Scan) {
    sort_filter<E, warps, task == Task::Both>(place, choice, filter, bad, shared);
  } else {
    scan_filter<E, warps, T>(place, choice, filter, &shared->reach, shared->sums);
  }
}

// How many blocks a multiprocessor has room for; before sm_80 its shared memory is the limit.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kNarrowBlocks = 3;
#else
constexpr int kNarrowBlocks = 5;
#endif

// The filters of up to 2048 channels.
template <class T, Task task>
__global__ void __launch_bounds__(32 * kNarrow, sizeof(T) == 8 ? 3 : kNarrowBlocks) narrow_filters(FEC_ARGUMENT WorkOf<task> work) {
  using Shared = SortShared<T, kNarrow>;
  DYN_SHARED(Shared, shared);
  Entry made;  // where the layers are arguments
  const Place place = find_place(work, made);
  const Entry& layer = *place.entry;
  const int channels = layer.channels, padded = static_cast<int>(padded_channels(channels));
  const bool together = !a_warp_each(channels, sizeof(T) == 8, work.choice.entropy);
  const int32_t filter = static_cast<int32_t>(place.unit) * (together ? 1 : kNarrow) + (together ? 0 : warp());
  if (filter >= layer.filters) return;
  bool bad = false;
  if constexpr (task != Task::Scan) {
    const int count = padded / (together ? 32 * kNarrow : 32);
    bad = read_filter<T>(layer, work.choice, filter, 0, channels, count, together, shared);
  }
  switch (padded) {
    case 32: return do_filter<1, 1, task>(place, work.choice, filter, bad, shared);
    case 64: return do_filter<2, 1, task>(place, work.choice, filter, bad, shared);
    case 128: return do_filter<4, 1, task>(place, work.choice, filter, bad, shared);
    case 256: return do_filter<8, 1, task>(place, work.choice, filter, bad, shared);
    case 512: return do_filter<16, 1, task>(place, work.choice, filter, bad, shared);
    case 1024:
      if constexpr (sizeof(T) == 4) {
        if (!together) return do_filter<32, 1, task>(place, work.choice, filter, bad, shared);
      }
      return do_filter<8, kNarrow, task>(place, work.choice, filter, bad, shared);
    default: return do_filter<16, kNarrow, task>(place, work.choice, filter, bad, shared);
  }
}

// The filters of up to kRun channels.
template <class T, Task task>
__global__ void __launch_bounds__(32 * kWide, 1) wide_filters(FEC_ARGUMENT WorkOf<task> work) {
  using Shared = SortShared<T, kWide>;
  DYN_SHARED(Shared, shared);
  Entry made;  // where the layers are arguments
  const Place place = find_place(work, made);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  const bool longer = kRun<T> > 4096 && layer.channels > 4096;
  bool bad = false;
  if constexpr (task != Task::Scan) {
    bad = read_filter<T>(layer, work.choice, filter, 0, layer.channels, longer ? 16 : 8, true, shared);
  }
  if constexpr (kRun<T> > 4096) {
    if (longer) return do_filter<16, kWide, task>(place, work.choice, filter, bad, shared);
  }
  do_filter<8, kWide, task>(place, work.choice, filter, bad, shared);
}

}  // namespace fec::cuda
