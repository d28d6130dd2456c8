// The parts of CUDA that the kernels and launches use: from nvcc, or from the emulator (tests/kernels/cpp/emulator),
// which compiles the same sources with g++.
#pragma once

#include <cstdint>

#ifdef FEC_EMULATOR
#include "emulator.h"
#else
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DYN_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char fec_shared[]; \
  T* const name = reinterpret_cast<T*>(fec_shared)
#define FEC_SEEN(what)  // counted by the emulator
#define FEC_ARGUMENT const __grid_constant__  // a large argument of a kernel, which is read where it is
// A function that is compiled once and called, not inlined.
#define FEC_CALLED static __device__ __noinline__
#endif

#define FEC_DEVICE static __device__ __forceinline__
#define FEC_INSIDE __device__ __forceinline__  // of a class

namespace fec::cuda {

constexpr unsigned kAll = 0xffffffffu;  // the mask of a whole warp
constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

FEC_DEVICE int smaller_int(int a, int b) { return a < b ? a : b; }
FEC_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31); }
FEC_DEVICE int warp() { return static_cast<int>(threadIdx.x >> 5); }

// 2^-y for y >= 0, exactly 1 at 0. In float32 one instruction, off by at most 2^-22 of the result (PTX ISA,
// ex2.approx).
FEC_DEVICE float exp2_minus(float y) {
#ifndef FEC_EMULATOR
  float z;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(z) : "f"(-y));
  return z;
#else
  return emulated_exp2(-y);
#endif
}
FEC_DEVICE double exp2_minus(double y) { return exp2(-y); }

// log2 of y > 0; in float32 off by at most 2^-22, of the result or (around 1) of 1.
FEC_DEVICE float log2_of(float y) {
#ifndef FEC_EMULATOR
  float z;
  asm("lg2.approx.f32 %0, %1;" : "=f"(z) : "f"(y));
  return z;
#else
  return emulated_log2(y);
#endif
}
FEC_DEVICE double log2_of(double y) { return log2(y); }

FEC_DEVICE float smaller(float a, float b) { return fminf(a, b); }
FEC_DEVICE double smaller(double a, double b) { return fmin(a, b); }
FEC_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
FEC_DEVICE double larger(double a, double b) { return fmax(a, b); }
FEC_DEVICE float magnitude(float x) { return fabsf(x); }
FEC_DEVICE double magnitude(double x) { return fabs(x); }
FEC_DEVICE float root(float x) { return sqrtf(x); }
FEC_DEVICE double root(double x) { return sqrt(x); }
FEC_DEVICE float logarithm(float x) { return logf(x); }
FEC_DEVICE double logarithm(double x) { return log(x); }

#ifndef FEC_EMULATOR
FEC_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// Copies 16 bytes from global to shared memory, both aligned to 16, without waiting for them: before sm_80, at once.
FEC_DEVICE void copy_async(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}

// Makes this thread's copies since the last call a group.
FEC_DEVICE void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last `pending` groups of this thread's copies are on their way.
template <int pending>
FEC_DEVICE void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// `ldmatrix` of the PTX ISA: four matrices of 8 rows of 16 bytes. Lane 8 i + r gives the address of row r of matrix i;
// lane l gets word l % 4 of row l / 4 of every matrix.
FEC_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row)));
}
#endif

// Sum over a warp, the same bits in every lane.
FEC_DEVICE double warp_sum(double x) {
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(kAll, x, apart);
  return x;
}

// Sum over a block, valid in thread 0, always in the same order. `shared` has one number per warp and no other use.
FEC_DEVICE double block_sum(double x, double* shared) {
  x = warp_sum(x);
  if (lane() == 0) shared[warp()] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += shared[w];
  }
  return sum;
}

}  // namespace fec::cuda
