// The distances between filters as in product_tiles.cuh, by the tensor cores of sm_90a at their full rate, which
// `mma.sync` does not reach: a block of two warpgroups with 64 x 128 pairs each. Slices of 64 coordinates travel to shared
// memory by cp.async, with which a barrier per slice is enough: a slice of float32 takes its tensor cores 1,536 clocks, the
// copies 400 issue slots of 6,144. TMA would save these, but not the time, and needs maps or another layout of the points.
//
// Half a slice is one sum of the tensor cores, the small products first. Then a float32 sum, rounded to nearest, takes over
// (tensor_cores.cuh: why), while the other half is multiplied. Sums of whole slices were tried: with the worst rounding known
// of any tensor core they miss the tolerance where tau is given and all pairs are almost near.
#pragma once

#include "cuda/pairwise/product_tiles.cuh"
#include "cuda/pairwise/warpgroup.cuh"

namespace fec::cuda {

constexpr int kGroupSlice = kSwizzledRow / 2, kGroupStages = 3;  // coordinates per slice; slices on their way or in use
constexpr int kStep = 16;  // coordinates of one product
constexpr int kChunks = kSwizzledRow / 16;

struct GroupShared {
  union {
    uint16_t slices[kGroupStages][2][2][kSquare][kGroupSlice];  // stage, strip, part, point, coordinate (swizzled)
    DistanceShared distances;
  };
};
constexpr int kPart = kSquare * kSwizzledRow;  // bytes of a part of a strip's slice
// Shared memory begins at a multiple of 16 bytes; the swizzle wants 1024.
struct GroupMemory {
  unsigned char bytes[sizeof(GroupShared) + 1024 - 16];
};

FEC_DEVICE GroupShared* aligned(GroupMemory* memory) {
  return reinterpret_cast<GroupShared*>(memory->bytes + (1024 - shared_address(memory) % 1024) % 1024);
}

// The place of eight coordinates of a point.
FEC_DEVICE uint16_t* chunk_of(GroupShared* shared, int stage, int strip, int part, int point, int chunk) {
  return &shared->slices[stage][strip][part][point][8 * (chunk ^ (point % kSwizzledRows))];
}

// Starts the products of a slice, 64 rows by all columns: those of its first and of its second half, into sums of their
// own, the small ones first.
template <bool split>
FEC_DEVICE void start_slice(GroupShared* shared, int stage, int top, float (&sums)[2][kProductSums]) {
  const uint64_t rows = matrix_at(shared->slices[stage][0][0][top]), columns = matrix_at(shared->slices[stage][1][0][0]);
  constexpr int half = kSwizzledRow / 2, step = 2 * kStep;  // bytes
  begin_products();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if constexpr (split) {
#pragma unroll
      for (int k = h * half; k < (h + 1) * half; k += step) {
        start_product(sums[h], matrix_after(rows, kPart + k), matrix_after(columns, k), k > h * half);
        start_product(sums[h], matrix_after(rows, k), matrix_after(columns, kPart + k), true);
      }
    }
#pragma unroll
    for (int k = h * half; k < (h + 1) * half; k += step) {
      start_product(sums[h], matrix_after(rows, k), matrix_after(columns, k), split || k > h * half);
    }
    commit_products();
  }
}

// Adds the products of half a slice, once they are there, to the sums.
template <int pending>
FEC_DEVICE void add_half(float (&products)[kProductSums], float (&sums)[1][kProductSums / 4][4]) {
  wait_products<pending>(products);
#pragma unroll
  for (int i = 0; i < kProductSums; ++i) sums[0][i / 4][i % 4] += products[i];
}

static __global__ void __launch_bounds__(kSquareThreads, 1) warpgroup_tiles(const Range range, const bool compressed) {
  DYN_SHARED(GroupMemory, memory);
  GroupShared* const shared = aligned(memory);
  const Place place = find_place(range, kMain);
  const Entry& layer = *place.entry;
  const Share own = share_of(place, compressed);
  const int64_t pitch = own.scratch.pitch * 2, part_bytes = layer.filters * pitch;
  // One for the warp, as the compiler learns here: else it would wait for each product in turn.
  const bool split = __shfl_sync(kAll, static_cast<int>(own.scratch.parts), 0) == 2;
  const int t = static_cast<int>(threadIdx.x);
  const int coordinates = own.slices * kSlice, slices = (coordinates + kGroupSlice - 1) / kGroupSlice;
  // A thread copies one chunk of a row of every `apart`-th point.
  constexpr int apart = kSquareThreads / kChunks;
  const int point = t / kChunks, chunk = t % kChunks;
  const char* from[2];
  int points[2];
#pragma unroll
  for (int strip = 0; strip < 2; ++strip) {
    const int32_t first = (strip == 0 ? own.tile_row : own.tile_column) * kSquare;
    points[strip] = layer.filters - first;
    from[strip] = at_byte(layer, own.scratch.halves) + (first + point) * pitch + own.begin * kSlice * 2 + 16 * chunk;
  }
  // Points past the last one, and coordinates past those of this block, are 0.
  const auto start = [&](int slice) {
    if (slice < slices) {
      const bool inside = slice * kGroupSlice + 8 * chunk < coordinates;
#pragma unroll
      for (int strip = 0; strip < 2; ++strip) {
#pragma unroll
        for (int round = 0; round < kSquare / apart; ++round) {
          const int p = point + apart * round;
          const bool there = inside && p < points[strip];
          const char* at = from[strip] + apart * round * pitch + slice * kSwizzledRow;
          copy_or_zero(chunk_of(shared, slice % kGroupStages, strip, 0, p, chunk), at, there);
          if (split) copy_or_zero(chunk_of(shared, slice % kGroupStages, strip, 1, p, chunk), at + part_bytes, there);
        }
      }
    }
    commit_copies();  // also an empty group: the wait counts groups
  };
  const int top = warp() / 4 * kProductRows;
  float sums[1][kProductSums / 4][4] = {}, products[2][kProductSums];
#pragma unroll
  for (int slice = 0; slice < kGroupStages - 1; ++slice) start(slice);
  for (int slice = 0; slice < slices; ++slice) {
    wait_copies<kGroupStages - 2>();
    show_copies();
    __syncthreads();  // everybody's copies have arrived, and the slice before this one is multiplied
    if (split) start_slice<true>(shared, slice % kGroupStages, top, products);
    else start_slice<false>(shared, slice % kGroupStages, top, products);
    start(slice + kGroupStages - 1);
    add_half<1>(products[0], sums);
    add_half<0>(products[1], sums);
  }
  __syncthreads();  // the slices are no longer read, and none is on its way
  finish_tile(&shared->distances, place, own, compressed, 16 * warp(), 0, sums);
}

}  // namespace fec::cuda
