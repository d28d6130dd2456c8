// From sorted numbers to an entropy, by scans from either end. For x_1 <= ... <= x_C, each element's sums over all
// elements are what reaches it from the left, itself included, and from the right:
//   L_k = 1 + d L_{k-1}                with d = exp(-(x_k - x_{k-1}) / tau)
//   M_k = d (M_{k-1} + y L_{k-1})      sum of y exp(-y), with y the gap in units of tau (for softmax)
// Between threads, what has been gathered is moved by exp(-distance), taken from the numbers themselves and not from a
// product of many: however long the filter, a term is a product of at most E + log2(threads) rounded factors.
//
// Elements past the last are infinite: the gap to them is so large, and a gap between two of them (not a number) is
// taken for so large, that nothing crosses it.
#pragma once

#include "cuda/load_weights.cuh"

namespace fec::cuda {

// What turns gaps into exponents of 2: 1 / tau as a product, since the inverse itself need not be a number of the type.
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

// What has been gathered up to some point.
template <class T>
struct Reach {
  T sum, moment;

  template <bool moments>
  FEC_INSIDE Reach over(const Step<T>& step) const {
    return {sum * step.decay, moments ? step.decay * (moment + step.gap * sum) : T(0)};
  }
  // With one element more, then moved; and the other way round.
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

// Room of a block: what each warp's elements reach, and each warp's first number (and infinity behind the last).
// Written once a kernel: what writes it does not wait for who may have read it.
template <class T>
struct WarpReach {
  Reach<T> left[16], right[16];
  T first[17];
};

template <class T>
struct Around {
  Reach<T> left,
      right;  // arriving at the thread's first element from before it; at the next thread's first, from there
};

// What arrives at every thread from the others. `warps` 1: each warp is for itself, `shared` is not used.
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

// The next thread's first number. In a block, all warps' first numbers come to lie in `shared`.
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

// Logarithms of row means, added up: of a product of four where only the sums count.
template <class T>
class Logarithms {
 public:
  FEC_INSIDE explicit Logarithms(int channels) : size_(static_cast<T>(channels)) {
    const T square = size_ * size_;
    fourth_ = square * square;
  }

  // Of n <= 4 rows; equal channels come to exactly 0. `there` counts the rows that are real.
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

// The sum over this thread's rows of their entropies. `first_index` is the place of its first element in the order.
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

// The mean distance of the pairs of a filter: a gap between neighbours k and k + 1 lies inside k (C - k) pairs. Only
// positive terms, no cancellation; this thread's part of half of it.
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
