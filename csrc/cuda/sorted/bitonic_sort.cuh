// Sorts E numbers per thread, ascending over the threads: a bitonic network in registers, with shuffles between the
// lanes of a warp and shared memory between warps.
//
// Every merge begins with the mirror image (i against size - 1 - i), so that all comparisons point the same way and
// only the side of the pair that a thread is on decides between smaller and larger.
#pragma once

#include "cuda/portable.h"

namespace fec::cuda {

template <class T>
FEC_DEVICE void exchange(T& a, T& b) {
  const T low = smaller(a, b);
  b = larger(a, b);
  a = low;
}

template <class T>
FEC_DEVICE T pick(bool upper, T a, T b) {
  return upper ? larger(a, b) : smaller(a, b);
}

// Distances `from`, from / 2 ... 1 inside each thread.
template <int E, int from, class T>
FEC_DEVICE void halve(T (&x)[E]) {
#pragma unroll
  for (int apart = from; apart > 0; apart /= 2) {
#pragma unroll
    for (int i = 0; i < E; ++i) {
      if ((i & apart) == 0) exchange(x[i], x[i | apart]);
    }
  }
}

template <int E, class T>
FEC_DEVICE void sort_thread(T (&x)[E]) {
#pragma unroll
  for (int size = 2; size <= E; size *= 2) {
#pragma unroll
    for (int i = 0; i < E; ++i) {
      if ((i & (size / 2)) == 0) exchange(x[i], x[i ^ (size - 1)]);
    }
#pragma unroll
    for (int apart = size / 4; apart > 0; apart /= 2) {
#pragma unroll
      for (int i = 0; i < E; ++i) {
        if ((i & apart) == 0) exchange(x[i], x[i | apart]);
      }
    }
  }
}

// Element e of the lane `mask` away, or its mirror image.
template <int E, bool mirrored, class T>
FEC_DEVICE void exchange_lanes(T (&x)[E], int mask, bool upper) {
  if constexpr (mirrored && E > 1) {
#pragma unroll
    for (int e = 0; e < E / 2; ++e) {
      const T first = __shfl_xor_sync(kAll, x[E - 1 - e], mask), last = __shfl_xor_sync(kAll, x[e], mask);
      x[e] = pick(upper, x[e], first);
      x[E - 1 - e] = pick(upper, x[E - 1 - e], last);
    }
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) x[e] = pick(upper, x[e], __shfl_xor_sync(kAll, x[e], mask));
  }
}

// Short bodies are unrolled completely, long ones not at all: a loop costs them little and saves compile time.
#ifdef FEC_COUNTED  // by benchmarks/gpu/cost.py, which counts every instruction once
template <int E>
constexpr int kUnrolled = 5;
#else
template <int E>
constexpr int kUnrolled = E <= 4 ? 5 : 1;
#endif

// The distances `from`, from / 2 ... 1 between lanes, then those inside each thread.
template <int E, class T>
FEC_DEVICE void halve_lanes(T (&x)[E], int from) {
#pragma unroll kUnrolled<E>
  for (int apart = from; apart > 0; apart /= 2) exchange_lanes<E, false>(x, apart, (lane() & apart) != 0);
  halve<E, E / 2>(x);
}

template <int E, class T>
FEC_DEVICE void sort_warp(T (&x)[E]) {
  sort_thread<E>(x);
#pragma unroll kUnrolled<E>
  for (int lanes = 2; lanes <= 32; lanes *= 2) {
    exchange_lanes<E, true>(x, lanes - 1, (lane() & (lanes / 2)) != 0);
    halve_lanes<E>(x, lanes / 4);
  }
}

constexpr int kExchanged = 8;  // numbers per thread in shared memory at a time: four and their mirror images

// Exchanges with the thread `mask` away through shared memory, which holds kExchanged numbers per thread.
template <int E, int threads, bool mirrored, class T>
FEC_DEVICE void exchange_warps(T (&x)[E], int mask, bool upper, T* shared) {
  constexpr int half = kExchanged / 2;
  static_assert(E % kExchanged == 0);
  const int own = static_cast<int>(threadIdx.x), other = own ^ mask;
#pragma unroll
  for (int first = 0; first < E / 2; first += half) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < half; ++i) {
      shared[i * threads + own] = x[first + i];
      shared[(half + i) * threads + own] = x[E - 1 - first - i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T low = shared[(mirrored ? half + i : i) * threads + other];
      const T high = shared[(mirrored ? i : half + i) * threads + other];
      x[first + i] = pick(upper, x[first + i], low);
      x[E - 1 - first - i] = pick(upper, x[E - 1 - first - i], high);
    }
  }
}

// Sorts over all threads of the block.
template <int E, int threads, class T>
FEC_DEVICE void sort_block(T (&x)[E], T* shared) {
  sort_warp<E>(x);
#pragma unroll kUnrolled<E>
  for (int warps = 2; warps <= threads / 32; warps *= 2) {
    exchange_warps<E, threads, true>(x, 32 * warps - 1, (warp() & (warps / 2)) != 0, shared);
#pragma unroll kUnrolled<E>
    for (int apart = warps / 4; apart > 0; apart /= 2) {
      exchange_warps<E, threads, false>(x, 32 * apart, (warp() & apart) != 0, shared);
    }
    halve_lanes<E>(x, 16);
  }
}

}  // namespace fec::cuda
