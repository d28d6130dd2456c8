// CUDA for g++: runs kernels and launches on the CPU, from the same sources that nvcc compiles. README.md in this
// folder says what it can detect.
#pragma once

#ifndef FEC_EMULATOR
#error "emulator.h is chosen by FEC_EMULATOR"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#define __global__ __attribute__((unused))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define FEC_ARGUMENT const
#define FEC_CALLED static __attribute__((noinline, unused))
#define LAUNCH(kernel, grid, block, shared, stream, ...)                     \
  ::emulator::launch(#kernel, reinterpret_cast<const void*>(kernel), (grid), (block), (shared), (stream), [&](auto... arguments) { \
    return [=] { kernel(arguments...); };                                    \
  }(__VA_ARGS__))
#define FEC_SEEN(what) __atomic_fetch_add(&::emulator::seen.what, threadIdx.x % 32 == 0, __ATOMIC_RELAXED)
#define DYN_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emulator::shared_memory(sizeof(T)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// --- the runtime: a fake that records its calls and fails where a test wants it to --------------------------------

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorLaunchOutOfResources = 701,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  int numRegs;
};
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t emulated_attributes(cudaFuncAttributes* attributes);
template <class F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, F) {
  return emulated_attributes(attributes);
}
cudaError_t emulated_most_shared(const void* kernel, int bytes);
template <class F>
cudaError_t cudaFuncSetAttribute(F kernel, cudaFuncAttribute, int bytes) {
  return emulated_most_shared(reinterpret_cast<const void*>(kernel), bytes);
}

namespace emulator {

// --- the interface for tests ---

struct Settings {
  unsigned seed = 1;  // of the order in which threads run
  int devices = 1;
  cudaError_t no_devices = cudaSuccess;  // the result of cudaGetDeviceCount
  int fail_launch = -1;  // the number of the launch that fails, counted from the last `reset`
  cudaError_t failure = cudaErrorLaunchOutOfResources;
  const char* removed_file = "";  // the end of its path: the barrier that is removed, as a planted bug
  int removed_line = 0;
  uint64_t wrong_bits = 0;  // of the descriptors of matrices (warpgroup.h), as a planted bug
};
extern Settings settings;

struct Seen {
  int device = 0;  // the current one
  int launches = 0;
  unsigned long long threads = 0;
  int near_warps = 0, near_tiles = 0;  // that computed some pairs, or all, by differences (product_tiles.cuh)
  int races = 0;  // that the thread sanitizer has reported
  bool other_stream = false, other_device = false;  // a launch on another stream or device than `expect`ed
  char fault[512] = "";  // the first wrong use of CUDA by a kernel
};
extern Seen seen;
extern cudaError_t pending_error;  // what cudaGetLastError will return

// The barriers in the sources that kernels have reached so far.
struct Barrier {
  const char* file;
  int line;
};
extern Barrier barriers[256];
extern int barriers_count;
bool has_barrier(const char* file, int line);

void expect(void* stream, int device);
void reset();

// --- inside a kernel ---

struct Coordinates {
  dim3 thread, block, threads, blocks;
};
extern Coordinates here;  // of the fiber that runs

unsigned char* shared_memory(size_t least);
const void* shared_base();
size_t most_shared(const void* kernel);  // bytes
void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

void launch(const char* name, const void* kernel, unsigned grid, unsigned block, size_t shared, cudaStream_t stream,
            const std::function<void()>& thread);

enum class Meeting { Shuffle, Sync, Ballot, Mma, Matrices, Product };
// Waits for all lanes of the mask; returns their values, by lane.
const uint64_t* meet(unsigned mask, Meeting kind, uint64_t brought);
int meet_block(int vote);  // __syncthreads; how many threads voted

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = meet(mask, Meeting::Shuffle, bits);
  if (source < 0 || source > 31) return value;
  if (!(mask >> source & 1)) {
    fault("shuffle from lane %d, which is not in the mask %08x", source, mask);
    return value;
  }
  std::memcpy(&value, &all[source], sizeof(T));
  return value;
}

// Copies to shared memory that a thread has started; `finished` takes those out that a wait is for.
struct Copy {
  void* to;
  const void* from;  // null: zeros
};
void start_copy(const Copy& copy);
void commit_copies();
bool next_finished(int pending, Copy& copy);

// The products of warpgroups (warpgroup.h).
void begin_products(size_t first_fiber, size_t fibers, size_t shared_bytes);  // a block begins
void end_products();  // a thread ends
void compare_warpgroups();  // a block ends
void hide_copy(void* to);  // a copy has arrived, which only the thread's own fence shows to products

inline int own_lane() { return static_cast<int>(here.thread.x & 31); }

}  // namespace emulator

#define threadIdx (::emulator::here.thread)
#define blockIdx (::emulator::here.block)
#define blockDim (::emulator::here.threads)
#define gridDim (::emulator::here.blocks)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (::emulator::has_barrier(file, line)) ::emulator::meet_block(0);
}
inline int __syncthreads_or(int vote) { return ::emulator::meet_block(vote != 0) != 0; }
inline void __syncwarp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (::emulator::has_barrier(file, line)) ::emulator::meet(0xffffffffu, ::emulator::Meeting::Sync, 0);
}

namespace fec::cuda {

// Asynchronous copies (portable.h) arrive as late as they may: at the wait. Until then their place holds NaN.
static inline void copy_async(void* to, const void* from) {
  std::memset(to, 0xff, 16);
  ::emulator::start_copy({to, from});
}
static inline void commit_copies() { ::emulator::commit_copies(); }
template <int pending>
static inline void wait_copies(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!::emulator::has_barrier(file, line)) return;
  ::emulator::Copy copy;
  while (::emulator::next_finished(pending, copy)) {
    if (copy.from == nullptr) std::memset(copy.to, 0, 16);
    else std::memcpy(copy.to, copy.from, 16);
    ::emulator::hide_copy(copy.to);
  }
}
static inline void load_matrices(uint32_t (&words)[4], const void* row) {
  const uint64_t* rows = ::emulator::meet(0xffffffffu, ::emulator::Meeting::Matrices, reinterpret_cast<uint64_t>(row));
  if (::emulator::seen.fault[0] != 0) return;  // the lanes have not met
  const int own = ::emulator::own_lane();
  for (int i = 0; i < 4; ++i) {
    const auto* from = reinterpret_cast<const unsigned char*>(rows[8 * i + own / 4]);
    if (reinterpret_cast<uint64_t>(from) % 16 != 0) ::emulator::fault("a row of a matrix is not aligned to 16 bytes");
    std::memcpy(&words[i], from + own % 4 * 4, 4);
  }
}

}  // namespace fec::cuda

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return ::emulator::shuffle(mask, value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart) {
  return ::emulator::shuffle(mask, value, ::emulator::own_lane() ^ apart);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int apart) {
  return ::emulator::shuffle(mask, value, ::emulator::own_lane() - apart);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int apart) {
  return ::emulator::shuffle(mask, value, ::emulator::own_lane() + apart);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const uint64_t* votes = ::emulator::meet(mask, ::emulator::Meeting::Ballot, vote != 0);
  unsigned bits = 0;
  for (int l = 0; l < 32; ++l) bits |= (mask >> l & 1) && votes[l] ? 1u << l : 0u;
  return bits;
}
inline bool __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  unsigned long long before = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) { return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL); }
inline void __threadfence() {}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, 8);
  return bits;
}

// The approximate instructions with the largest error that the PTX ISA allows, up or down depending on a hash of the
// argument, so that a tolerance that holds here holds on a device. Exact where the ISA says so.
inline float emulated_error(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits *= 2654435761u;
  return (bits >> 16 & 1) ? 0x1p-22f : -0x1p-22f;
}
inline float emulated_exp2(float x) {
  if (x == 0) return 1;
  const float z = std::exp2(x) * (1 + emulated_error(x));
  return z < std::numeric_limits<float>::min() ? 0 : z;
}
inline float emulated_log2(float x) {
  const float y = std::log2(x);
  return x == 1 ? 0 : x > 0.5f && x < 2 ? y + emulated_error(x) : y * (1 + emulated_error(x));
}
// To the nearest float16, ties to even.
inline uint16_t emulated_half_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const float size = std::fabs(x);
  if (!(size < 65520)) return static_cast<uint16_t>(sign | (size >= 65520 ? 0x7c00u : 0x7e00u));
  if (size < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f)));
  bits &= 0x7fffffffu;
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}
// mma.m16n8k16 on float16 with float32 sums, with the worst rounding known of a tensor core: four products at a time,
// each addend truncated (towards zero) at the last place of the largest one, and the sum likewise.
void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
inline float emulated_half(uint16_t x) {
  const uint32_t size = x & 0x7fffu;
  if (size >= 0x7c00u) return size > 0x7c00u ? NAN : x & 0x8000u ? -INFINITY : INFINITY;
  const float small = static_cast<float>(size) * 0x1p-24f;
  const float value = size < 0x400u ? small : __uint_as_float((size << 13) + (112u << 23));
  return x & 0x8000u ? -value : value;
}

#include "warpgroup.h"
