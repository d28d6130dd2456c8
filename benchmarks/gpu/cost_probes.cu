// Probes: pieces of the kernels, each compiled without loops (FEC_COUNTED), for cost.py to count. Never run.
#include "cuda/sorted/long_kernels.cuh"
#include "cuda/pairwise/product_tiles.cuh"

using namespace fec::cuda;

template <int E>
__global__ void __launch_bounds__(128, 5) probe_sort_warp(float* data) {
  float x[E];
  for (int e = 0; e < E; ++e) x[e] = data[e * 32 + lane()];
  sort_warp<E>(x);
  for (int e = 0; e < E; ++e) data[e * 32 + lane()] = x[e];
}

template <int E, int threads>
__global__ void __launch_bounds__(threads) probe_sort_block(float* data) {
  DYN_SHARED(float, shared);
  float x[E];
  for (int e = 0; e < E; ++e) x[e] = data[e * threads + threadIdx.x];
  sort_block<E, threads>(x, shared);
  for (int e = 0; e < E; ++e) data[e * threads + threadIdx.x] = x[e];
}

template <int E, int warps>
__global__ void __launch_bounds__(128) probe_scan(const Place place, const float* data) {
  using Shared = SortShared<float, kNarrow>;
  DYN_SHARED(Shared, shared);
  constexpr int threads = 32 * warps;
  const int own = warps == 1 ? lane() : static_cast<int>(threadIdx.x);
  float x[E];
  for (int e = 0; e < E; ++e) x[e] = data[e * threads + own];
  const float next = next_first<warps>(x[0], &shared->reach);
  finish_filter<E, warps, false>(place, 0, x, next, &shared->reach, shared->sums);
}

// The mean distance, which is computed after the sort if tau is measured.
template <int E>
__global__ void __launch_bounds__(128) probe_mean(const float* data, double* out, int channels) {
  float x[E];
  for (int e = 0; e < E; ++e) x[e] = data[e * 32 + lane()];
  const float next = next_first<1, float>(x[0], nullptr);
  const double half = warp_sum(mean_distance_part<E>(x, next, lane() * E, channels));
  if (lane() == 0) *out = half;
}

// Reading and compressing 8 channels per lane.
template <int taps>
__global__ void __launch_bounds__(128, 5) probe_read(const float* data, float* out) {
  DYN_SHARED(SmallReader<float>, reader);
  Entry layer{};
  layer.data = data;
  layer.dtype = fec::DType::F32;
  layer.inner = layer.filters = 1;
  layer.channels = 256;
  layer.taps = taps;
  layer.stride_channel = taps;
  layer.stride_tap = 1;
  const bool bad = read_channels<float>(layer, fec::Compress::Rms, 0.5f, 0, 0, 32, 8, 256, reader);
  __syncwarp();
  for (int i = 0; i < 8; ++i) out[i * 32 + lane()] = bad ? 0 : reader->numbers[i * 32 + lane()];
}

// A slice of 16 coordinates in a block of 128 x 128 pairs: copied, waited for and multiplied. And float32 multiply-adds
// instead, without the loads.
template <bool split>
__global__ void __launch_bounds__(kSquareThreads, 2) probe_slice(const char* halves, float* data) {
  DYN_SHARED(ProductShared, shared);
  const int t = static_cast<int>(threadIdx.x);
  float sums[4][4][4];
  for (int i = 0; i < 64; ++i) sums[i / 16][i / 4 % 4][i % 4] = data[256 * i + t];
  for (int strip = 0; strip < 2; ++strip) {
    for (int part = 0; part < (split ? 2 : 1); ++part) {
      copy_async(slice_half(shared, 0, strip, part, t / 2, t % 2), halves + 16 * t + 4096 * (2 * strip + part));
    }
  }
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  multiply_slice<split>(shared, 0, warp() % 2 * kWarpRows, warp() / 2 * kWarpColumns, sums);
  for (int i = 0; i < 64; ++i) data[256 * i + t] = sums[i / 16][i / 4 % 4][i % 4];
}
__global__ void __launch_bounds__(64) probe_fma(float* data, int chunks) {
  DYN_SHARED(TileShared<float>, shared);
  float d[8][8] = {};
  const int t = static_cast<int>(threadIdx.x);
  for (int i = 0; i < chunks; ++i) {
    __syncthreads();
    add_coordinates<float, true>(shared, t / 8 * 8, t % 8 * 8, d);
  }
  for (int i = 0; i < 64; ++i) data[64 * i + t] = d[i / 8][i % 8];
}
template __global__ void probe_slice<true>(const char*, float*);
template __global__ void probe_slice<false>(const char*, float*);
template __global__ void probe_sort_warp<1>(float*);
template __global__ void probe_sort_warp<2>(float*);
template __global__ void probe_sort_warp<4>(float*);
template __global__ void probe_sort_warp<8>(float*);
template __global__ void probe_sort_warp<16>(float*);
template __global__ void probe_sort_warp<32>(float*);
template __global__ void probe_sort_block<16, 128>(float*);
template __global__ void probe_scan<1, 1>(const Place, const float*);
template __global__ void probe_scan<2, 1>(const Place, const float*);
template __global__ void probe_scan<4, 1>(const Place, const float*);
template __global__ void probe_scan<8, 1>(const Place, const float*);
template __global__ void probe_scan<16, 1>(const Place, const float*);
template __global__ void probe_scan<32, 1>(const Place, const float*);
template __global__ void probe_scan<16, 4>(const Place, const float*);
template __global__ void probe_mean<1>(const float*, double*, int);
template __global__ void probe_mean<2>(const float*, double*, int);
template __global__ void probe_mean<4>(const float*, double*, int);
template __global__ void probe_mean<8>(const float*, double*, int);
template __global__ void probe_mean<16>(const float*, double*, int);
template __global__ void probe_mean<32>(const float*, double*, int);
template __global__ void probe_read<1>(const float*, float*);
template __global__ void probe_read<9>(const float*, float*);
template __global__ void probe_read<49>(const float*, float*);
