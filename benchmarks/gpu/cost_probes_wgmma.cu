// As cost_probes.cu, for sm_90a: a slice of 64 coordinates in a block of 128 x 128 pairs, copied, waited for and multiplied.
#include "cuda/pairwise/warpgroup_tiles.cuh"

using namespace fec::cuda;

template <bool split>
__global__ void __launch_bounds__(kSquareThreads, 1) probe_warpgroup_slice(const char* halves, int64_t pitch,
                                                                           int points, float* data) {
  DYN_SHARED(GroupMemory, memory);
  GroupShared* const shared = aligned(memory);
  const int t = static_cast<int>(threadIdx.x), point = t / kChunks, chunk = t % kChunks;
  float sums[1][kProductSums / 4][4], products[2][kProductSums];
  for (int i = 0; i < kProductSums; ++i) sums[0][i / 4][i % 4] = data[256 * i + t];
  for (int strip = 0; strip < 2; ++strip) {
    for (int p = point; p < point + kSquare; p += kSquareThreads / kChunks) {
      for (int part = 0; part < (split ? 2 : 1); ++part) {
        copy_or_zero(chunk_of(shared, 0, strip, part, p, chunk), halves + (p + 256 * part) * pitch, p < points);
      }
    }
  }
  commit_copies();
  wait_copies<0>();
  show_copies();
  __syncthreads();
  start_slice<split>(shared, 0, warp() / 4 * kProductRows, products);
  add_half<1>(products[0], sums);
  add_half<0>(products[1], sums);
  for (int i = 0; i < kProductSums; ++i) data[256 * i + t] = sums[0][i / 4][i % 4];
}
template __global__ void probe_warpgroup_slice<true>(const char*, int64_t, int, float*);
template __global__ void probe_warpgroup_slice<false>(const char*, int64_t, int, float*);
