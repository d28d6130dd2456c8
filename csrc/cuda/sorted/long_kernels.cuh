// `sorted` for filters too long for one block. Runs of kRun numbers are sorted as in block_kernels.cuh, merged two by
// two in global memory, and scanned run by run: first the carry out of each run, then each run with the carries of the
// others.
#pragma once

#include "cuda/sorted/block_kernels.cuh"

namespace fec::cuda {

template <class T>
constexpr int kHeld = kRun<T> / (32 * kWide);  // numbers per thread

template <class T>
FEC_DEVICE int runs_of(const Entry& layer) { return (layer.channels + kRun<T> - 1) / kRun<T>; }

struct Run {
  int32_t filter;
  int first, count;
};

template <class T>
FEC_DEVICE Run run_of(const Place& place) {
  const int runs = runs_of<T>(*place.entry),
            first = static_cast<int>(place.unit % static_cast<uint32_t>(runs)) * kRun<T>;
  return {static_cast<int32_t>(place.unit / static_cast<uint32_t>(runs)), first,
          smaller_int(kRun<T>, place.entry->channels - first)};
}

template <class T>
__global__ void __launch_bounds__(32 * kWide) long_sort(const SortWork work) {
  using Shared = SortShared<T, kWide>;
  DYN_SHARED(Shared, shared);
  const Place place = find_place(work.range, kMain);
  const Entry& layer = *place.entry;
  const Run run = run_of<T>(place);
  T x[kHeld<T>];
  bool bad = read_filter<T>(layer, work.choice, run.filter, run.first, run.first + run.count, kHeld<T>, true, shared);
  bad = sorted_numbers<kHeld<T>, kWide>(bad, x, shared);
  T* to = static_cast<T*>(layer.points) + static_cast<int64_t>(run.filter) * layer.channels + run.first;
  const int own = static_cast<int>(threadIdx.x) * kHeld<T>;
#pragma unroll
  for (int e = 0; e < kHeld<T>; ++e) {
    if (own + e < run.count) to[own + e] = x[e];
  }
  if (threadIdx.x == 0) layer.parts[place.unit] = bad ? NAN : 0;
}

// One level of merging: sorted runs of `length` become sorted runs of twice that length. One thread per element. Its
// new index is its index in its run plus the number of elements of the other run before it; of equal elements, those of
// the first run are first.
template <class T>
__global__ void __launch_bounds__(256) long_merge(const Range range, int64_t length, bool back) {
  const Place place = find_place(range, kRows);
  const Entry& layer = *place.entry;
  const int64_t all = static_cast<int64_t>(layer.filters) * layer.channels;
  const int64_t at = static_cast<int64_t>(place.unit) * 256 + threadIdx.x;
  if (at >= all) return;
  const T* from = static_cast<const T*>(back ? layer.spare : layer.points) + at / layer.channels * layer.channels;
  T* to = static_cast<T*>(back ? layer.points : layer.spare) + at / layer.channels * layer.channels;
  const int64_t i = at % layer.channels, pair = i / (2 * length) * (2 * length);
  const bool second = i >= pair + length;
  const int64_t begin = second ? pair : pair + length;
  const int64_t end = begin + length < layer.channels ? begin + length : layer.channels;
  const T x = from[i];
  int64_t low = begin, high = end > begin ? end : begin;  // the first element of the other run behind x
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (from[middle] < x || (second && from[middle] == x)) low = middle + 1;
    else high = middle;
  }
  const int64_t rank = low - begin;
  to[i - (second ? length : 0) + rank] = x;
}

// Loads a run's sorted numbers, and the first number behind each thread's.
template <class T>
FEC_DEVICE const T* load_run(const Entry& layer, const Run& run, bool back, T (&x)[kHeld<T>], T& next) {
  const T* from = static_cast<const T*>(back ? layer.spare : layer.points) +
                  static_cast<int64_t>(run.filter) * layer.channels;
  const int own = run.first + static_cast<int>(threadIdx.x) * kHeld<T>;
#pragma unroll
  for (int e = 0; e < kHeld<T>; ++e) x[e] = own + e < layer.channels ? from[own + e] : static_cast<T>(INFINITY);
  next = own + kHeld<T> < layer.channels ? from[own + kHeld<T>] : static_cast<T>(INFINITY);
  return from;
}

template <class T>
__global__ void __launch_bounds__(32 * kWide) long_distances(const Range range, bool spare) {
  DYN_SHARED(double, sums);
  const Place place = find_place(range, kMain);
  const Run run = run_of<T>(place);
  T x[kHeld<T>], next;
  load_run(*place.entry, run, spare, x, next);
  const double part = mean_distance_part<kHeld<T>>(x, next, run.first + static_cast<int>(threadIdx.x) * kHeld<T>,
                                                   place.entry->channels);
  const double half = block_sum(part, sums);
  if (threadIdx.x == 0) place.entry->sums[place.unit] = 2 * half + place.entry->parts[place.unit];
}

struct LongWork {
  Range range;
  Entropy entropy;
  bool spare;  // the sorted numbers are in `spare`
  bool reaching;  // first pass: the carry out of each run; second pass: the entropies
};

template <class T, bool moments>
FEC_DEVICE void long_scan(const Place& place, const LongWork& work, SortShared<T, kWide>* shared) {
  const Entry& layer = *place.entry;
  const Run run = run_of<T>(place);
  const int runs = runs_of<T>(layer), own = run.first / kRun<T>;
  T x[kHeld<T>], next;
  const T* all = load_run(layer, run, work.spare, x, next);
  const Unit<T> unit(*place.state);
  Step<T> steps[kHeld<T>];
#pragma unroll
  for (int e = 0; e < kHeld<T>; ++e)
    steps[e] = step_over(unit.gap(x[e], e + 1 < kHeld<T> ? x[(e + 1) % kHeld<T>] : next));
  if (lane() == 0) shared->reach.first[warp()] = x[0];
  if (threadIdx.x == blockDim.x - 1) shared->reach.first[kWide] = next;  // `gather` waits before it reads them
  Around<T> around = gather<kHeld<T>, kWide, moments>(x, steps, unit, next, &shared->reach);
  // Stored behind the partial entropies, two per run: the carry to the right of the run, and the one to its left.
  Reach<T>* reaches = reinterpret_cast<Reach<T>*>(layer.parts + static_cast<int64_t>(layer.filters) * runs) +
                      static_cast<int64_t>(run.filter) * runs * 2;
  if (work.reaching) {
    if (threadIdx.x == blockDim.x - 1) {
      Reach<T> last = around.left;
#pragma unroll
      for (int e = 0; e < kHeld<T>; ++e) last = last.template with_one_over<moments>(steps[e]);
      reaches[2 * own] = last;
    }
    if (threadIdx.x == 0) {
      Reach<T> first = around.right;
#pragma unroll
      for (int e = kHeld<T> - 1; e >= 0; --e) first = first.template over_with_one<moments>(steps[e]);
      reaches[2 * own + 1] = first;
    }
    return;
  }
  const auto first_of = [&](int r) {
    const int64_t at = static_cast<int64_t>(r) * kRun<T>;
    return at < layer.channels ? all[at] : static_cast<T>(INFINITY);
  };
  Reach<T> carry{0, 0};
  for (int r = 0; r < own; ++r) {
    carry = carry.template over<moments>(step_over(unit.gap(first_of(r), first_of(r + 1)))) + reaches[2 * r];
  }
  around.left = around.left + carry.template over<moments>(step_over(unit.gap(first_of(own), x[0])));
  carry = {0, 0};
  for (int r = runs - 1; r > own; --r) {
    carry = carry.template over<moments>(step_over(unit.gap(first_of(r), first_of(r + 1)))) + reaches[2 * r + 1];
  }
  around.right = around.right + carry.template over<moments>(step_over(unit.gap(next, first_of(own + 1))));
  const int place_of_first = run.first + static_cast<int>(threadIdx.x) * kHeld<T>;
  const double total = block_sum(row_entropies<kHeld<T>, moments>(steps, around, place_of_first, layer.channels),
                                 shared->sums);
  if (threadIdx.x == 0) layer.parts[place.unit] = total;
}

template <class T>
__global__ void __launch_bounds__(32 * kWide) long_scans(const LongWork work) {
  using Shared = SortShared<T, kWide>;
  DYN_SHARED(Shared, shared);
  const Place place = find_place(work.range, kMain);
  if (!(place.state->tau > 0)) return;  // `finish_parts` writes the entropies
  if (work.entropy == Entropy::Similarity) long_scan<T, false>(place, work, shared);
  else long_scan<T, true>(place, work, shared);
}

}  // namespace fec::cuda
