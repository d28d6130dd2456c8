// From sorted numbers to an entropy, by a scan from each end. For x_1 <= ... <= x_C, the sum of each element over all
// elements is the sum over those to its left (itself included) plus the sum over those to its right:
//   L_k = 1 + d L_{k-1}                with d = exp(-(x_k - x_{k-1}) / tau)
//   M_k = d (M_{k-1} + y L_{k-1})      sum of y exp(-y), with y the gap in units of tau (for softmax)
// Between threads, a carry is multiplied by exp(-distance), computed from the numbers and not as a product of many
// factors: however long the filter, a term is a product of at most E + log2(threads) rounded factors.
//
// Elements past the last one are infinite. The gap to them, and the gap between two of them (NaN), is limited to a
// value whose exponential is 0, so they add nothing.
#pragma once

#include "cuda/load_weights.cuh"

namespace fec::cuda {

// The factor from gaps to exponents of 2: log2(e) / tau as a product of two, because the quotient may overflow the
// type.
template <class T>
struct Unit {
  T power, rest;

  FEC_INSIDE explicit Unit(const State& state)
      : power(static_cast<T>(state.power)), rest(static_cast<T>(state.rest)) {}
  FEC_INSIDE T gap(T from, T to) const { return smaller((to - from) * power * rest, Limits<T>::far); }
};

// A gap and 2^-gap.
template <class T>
struct Step {
  T gap, decay;
};

template <class T>
FEC_DEVICE Step<T> step_over(T gap) {
  return {gap, exp2_minus(gap)};
}

// The sums over all elements on one side of a position: the carry of a scan.
template <class T>
struct Reach {
  T sum, moment;

  template <bool moments>
  FEC_INSIDE Reach over(const Step<T>& step) const {
    return {sum * step.decay, moments ? step.decay * (moment + step.gap * sum) : T(0)};
  }
  // Adds one element, then moves over a gap; and the other way round.
  template <bool moments>
  FEC_INSIDE Reach with_one_over(const Step<T>& step) const {
    return {sum * step.decay + step.decay, moments ? step.decay * (moment + step.gap * (sum + 1)) : T(0)};
  }
  template <bool moments>
  FEC_INSIDE Reach over_with_one(const Step<T>& step) const {
    return {sum * step.decay + 1, moments ? step.decay * (moment + step.gap * sum) : T(0)};
  }
};

template <class T>
FEC_DEVICE Reach<T> operator+(Reach<T> a, Reach<T> b) {
  return {a.sum + b.sum, a.moment + b.moment};
}

// Shared memory of a block: the carries out of each warp, and each warp's first number (infinity behind the last).
// Every entry is written once per kernel, so a write needs no barrier after earlier reads.
template <class T>
struct WarpReach {
  Reach<T> left[16], right[16];
  T first[17];
};

template <class T>
struct Around {
  Reach<T> left;   // at the thread's first element, from all elements before it
  Reach<T> right;  // at the next thread's first element, from it and all elements behind it
};

// The carries into each thread from all others. With `warps` 1 each warp has its own filter and `shared` is not used.
template <int E, int warps, bool moments, class T>
FEC_DEVICE Around<T> gather(const T (&x)[E], const Step<T> (&steps)[E], const Unit<T>& unit, T next,
                            WarpReach<T>* shared) {
  const T first = x[0];
  Reach<T> left{0, 0}, right{0, 0};
#pragma unroll
  for (int e = 0; e < E; ++e) left = left.template with_one_over<moments>(steps[e]);
#pragma unroll
  for (int e = E - 1; e >= 0; --e) right = right.template over_with_one<moments>(steps[e]);
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const T before = __shfl_up_sync(kAll, next, apart), after = __shfl_down_sync(kAll, first, apart);
    Reach<T> lower, upper{};
    lower.sum = __shfl_up_sync(kAll, left.sum, apart);
    lower.moment = moments ? __shfl_up_sync(kAll, left.moment, apart) : T(0);
    upper.sum = __shfl_down_sync(kAll, right.sum, apart);
    upper.moment = moments ? __shfl_down_sync(kAll, right.moment, apart) : T(0);
    if (lane() >= apart) left = left + lower.template over<moments>(step_over(unit.gap(before, next)));
    if (lane() + apart < 32) right = right + upper.template over<moments>(step_over(unit.gap(first, after)));
  }
  Around<T> around;
  around.left.sum = __shfl_up_sync(kAll, left.sum, 1);
  around.left.moment = moments ? __shfl_up_sync(kAll, left.moment, 1) : T(0);
  around.right.sum = __shfl_down_sync(kAll, right.sum, 1);
  around.right.moment = moments ? __shfl_down_sync(kAll, right.moment, 1) : T(0);
  if (lane() == 0) around.left = {0, 0};
  if (lane() == 31) around.right = {0, 0};
  if constexpr (warps > 1) {
    if (lane() == 31) shared->left[warp()] = left;
    if (lane() == 0) shared->right[warp()] = right;
    __syncthreads();
    Reach<T> carry{0, 0};
    for (int w = 0; w < warp(); ++w) {
      carry =
          carry.template over<moments>(step_over(unit.gap(shared->first[w], shared->first[w + 1]))) + shared->left[w];
    }
    around.left = around.left + carry.template over<moments>(step_over(unit.gap(shared->first[warp()], first)));
    carry = {0, 0};
    for (int w = warps - 1; w > warp(); --w) {
      carry =
          carry.template over<moments>(step_over(unit.gap(shared->first[w], shared->first[w + 1]))) + shared->right[w];
    }
    around.right = around.right + carry.template over<moments>(step_over(unit.gap(next, shared->first[warp() + 1])));
  }
  return around;
}

// Returns the next thread's first number. In a block, it also stores all warps' first numbers in `shared`.
template <int warps, class T>
FEC_DEVICE T next_first(T first, WarpReach<T>* shared) {
  T next = __shfl_down_sync(kAll, first, 1);
  if constexpr (warps > 1) {
    if (lane() == 0) shared->first[warp()] = first;
    if (threadIdx.x == 0) shared->first[warps] = static_cast<T>(INFINITY);
    __syncthreads();
    return lane() == 31 ? shared->first[warp() + 1] : next;
  }
  return lane() == 31 ? static_cast<T>(INFINITY) : next;
}

// Adds up the logarithms of row means: for the similarity entropy one logarithm per product of four.
template <class T>
class Logarithms {
 public:
  FEC_INSIDE explicit Logarithms(int channels) : size_(static_cast<T>(channels)) {
    const T square = size_ * size_;
    fourth_ = square * square;
  }

  // Adds n <= 4 rows, of which the first `there` exist. Equal channels give exactly 0.
  template <int n>
  FEC_INSIDE void similarity(const T* sums, int there) {
    if constexpr (n == 4) {
      const T a = there > 0 ? sums[0] : size_, b = there > 1 ? sums[1] : size_;
      const T c = there > 2 ? sums[2] : size_, d = there > 3 ? sums[3] : size_;
      total_ -= logarithm(((a * b) * (c * d)) / fourth_);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) total_ -= i < there ? logarithm(sums[i] / size_) : T(0);
    }
  }

  FEC_INSIDE void softmax(Reach<T> row) {
    total_ += logarithm(row.sum) + row.moment / row.sum * static_cast<T>(kLn2);
  }

  FEC_INSIDE double total() const { return static_cast<double>(total_); }

 private:
  T size_, fourth_, total_ = 0;
};

// The sum of the entropies of this thread's rows. `first_index` is the index of its first element in the sorted filter.
template <int E, bool moments, class T>
FEC_DEVICE double row_entropies(const Step<T> (&steps)[E], const Around<T>& around, int first_index, int channels) {
  Reach<T> rows[E], carry = around.left;
#pragma unroll
  for (int e = 0; e < E; ++e) {  // from the left, without the element itself
    rows[e] = carry;
    carry = carry.template with_one_over<moments>(steps[e]);
  }
  Logarithms<T> logarithms(channels);
  const int there = channels - first_index;
  constexpr int group = E < 4 ? E : 4;
  T sums[E];
  carry = around.right;
#pragma unroll
  for (int e = E - 1; e >= 0; --e) {
    carry = carry.template over_with_one<moments>(steps[e]);
    const Reach<T> row = rows[e] + carry;
    if constexpr (moments) {
      if (e < there) logarithms.softmax(row);
    } else {
      sums[e] = row.sum;
      if (e % group == 0) logarithms.template similarity<group>(sums + e, there - e);
    }
  }
  return logarithms.total();
}

// This thread's part of half the mean distance of a filter's pairs. A gap between neighbours k and k + 1 lies inside
// k (C - k) pairs: only positive terms, no cancellation.
template <int E, class T>
FEC_DEVICE double mean_distance_part(const T (&x)[E], T next, int first_index, int channels) {
  const T size = static_cast<T>(channels), inverse = 1 / (size * size);
  T sum = 0;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const int k = first_index + e + 1;
    const T gap = (e + 1 < E ? x[(e + 1) % E] : next) - x[e];
    const T pairs = static_cast<T>(k) * (size - static_cast<T>(k)) * inverse;
    sum += k < channels ? gap * pairs : T(0);
  }
  return static_cast<double>(sum);
}

}  // namespace fec::cuda
