// The instructions of sm_90a that multiply matrices in shared memory: `wgmma` of the PTX ISA, by the 128 threads of a
// warpgroup, and what orders it. It runs beside the threads that start it: until `wait_products` its sums are not to be
// touched, nor the matrices to be written.
#pragma once

#include "cuda/portable.h"

namespace fec::cuda {

constexpr int kProductRows = 64, kProductColumns = 128;  // of a warpgroup's product
constexpr int kProductSums = 64;  // of a thread

// A matrix in shared memory, as `wgmma` reads it: 16 coordinates of points whose rows have 128 bytes. Sixteen bytes of
// row r lie at chunk c ^ r % 8 of it (the 128-byte swizzle), so that eight points at one coordinate are in different
// banks. The rows begin at a multiple of 1024 bytes.
constexpr int kSwizzledRow = 128, kSwizzledRows = 8;
FEC_DEVICE uint64_t matrix_at(const void* rows) {
  const uint64_t start = (shared_address(rows) & 0x3ffff) >> 4;
  const uint64_t unused = 1;  // the offset between columns: a row is one piece
  const uint64_t stride = kSwizzledRow * kSwizzledRows >> 4;  // from eight points to the next eight
  const uint64_t swizzle = 1;  // of 128 bytes
  return start | unused << 16 | stride << 32 | swizzle << 62;
}
// The matrix some bytes further: along a row, or at other rows.
FEC_DEVICE uint64_t matrix_after(uint64_t matrix, int bytes) { return matrix + static_cast<uint64_t>(bytes >> 4); }

#ifndef FEC_EMULATOR
// Copies 16 bytes from global to shared memory as copy_async does, or writes zeros.
FEC_DEVICE void copy_or_zero(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// Shows what this thread has written to shared memory, by copies that it has waited for, to `wgmma`; a barrier follows.
FEC_DEVICE void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product into some sums: orders it after what the threads did to their registers.
FEC_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes the products since the last call a group.
FEC_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the last `pending` groups are on their way. The compiler does not know that the sums of those before
// them change meanwhile: it learns that here.
template <int pending>
FEC_DEVICE void wait_products(float (&sums)[kProductSums]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#pragma unroll
  for (int i = 0; i < kProductSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define FEC_EIGHT_SUMS(i)                                                                                          \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
// sums (+)= rows columns^T, 16 coordinates of both, all of the warpgroup's threads with the same matrices. Warp w of the
// four has rows 16 w on; of group j of eight columns lane 4g + q has columns 2q and 2q + 1 in sums[4 j] (row g) and
// sums[4 j + 2] (row g + 8).
FEC_DEVICE void start_product(float (&sums)[kProductSums], uint64_t rows, uint64_t columns, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}"  // neither negated nor transposed
      : FEC_EIGHT_SUMS(0), FEC_EIGHT_SUMS(8), FEC_EIGHT_SUMS(16), FEC_EIGHT_SUMS(24), FEC_EIGHT_SUMS(32),
        FEC_EIGHT_SUMS(40), FEC_EIGHT_SUMS(48), FEC_EIGHT_SUMS(56)
      : "l"(rows), "l"(columns), "r"(static_cast<int>(add)));
}
#undef FEC_EIGHT_SUMS
#endif

}  // namespace fec::cuda
