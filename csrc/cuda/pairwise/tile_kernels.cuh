// `pairwise` for points of several coordinates: the channels of each filter (compress none), or the filters of a layer.
#pragma once

#include "cuda/pairwise/tile_distances.cuh"

namespace fec::cuda {

struct PairWork {
  Range range;
  Terms terms;
  bool compressed;  // the points are the compressed channels, else the weights
};

// The squared lengths of the points; one block per filter. Of the filter itself, or (inside) of its channels, one warp
// per channel.
template <class T, bool inside>
__global__ void __launch_bounds__(128) squared_lengths(const PairWork work) {
  DYN_SHARED(double, sums);
  const Place place = find_place(work.range, kFilters);
  const Entry& layer = *place.entry;
  const int32_t filter = static_cast<int32_t>(place.unit);
  const T scale = work.compressed ? T(1) : scale_of<T>(*place.state);
  const Points points = inside ? channels_of<T>(layer, filter) : filters_of<T>(layer, work.compressed);
  if (points.coordinates < kProducts) return;
  T* lengths = static_cast<T*>(const_cast<void*>(points.lengths));
  const int32_t first = inside ? warp() : filter, end = inside ? points.count : filter + 1;
  const int from = inside ? lane() : static_cast<int>(threadIdx.x), step = inside ? 32 : static_cast<int>(blockDim.x);
  for (int32_t p = first; p < end; p += static_cast<int>(blockDim.x) / 32) {
    double sum = 0;
    with_points<T>(points, [&](const auto* data) {
      const auto* own = data + point_offset(points, p);
      for (int64_t k = from; k < points.coordinates; k += step) {
        const double x = static_cast<double>(static_cast<T>(value_of(own[coordinate_offset(points, k)])) * scale);
        sum += x * x;
      }
    });
    sum = inside ? warp_sum(sum) : block_sum(sum, sums);
    if (from == 0) lengths[p] = static_cast<T>(sum);
  }
}

// Sums row i of a thread's pairs over the eight threads that share it.
template <class T>
FEC_DEVICE void sum_rows(TileSums<T>& sums, int i) {
#pragma unroll
  for (int apart = 1; apart < 8; apart *= 2) {
    sums.of_rows[0][i] += __shfl_xor_sync(kAll, sums.of_rows[0][i], apart);
    sums.of_rows[1][i] += __shfl_xor_sync(kAll, sums.of_rows[1][i], apart);
  }
}

// The channels of a filter. A block compares one strip of channels with all channels, so their sums are complete at its
// end.
template <class T>
__global__ void __launch_bounds__(kTileThreads) channel_pairs(const PairWork work) {
  DYN_SHARED(TileShared<T>, shared);
  const Place place = find_place(work.range, kMain);
  const Entry& layer = *place.entry;
  constexpr int side = kSide<T>, tile = kTile<T>;
  const int t = static_cast<int>(threadIdx.x), strips = (layer.channels + tile - 1) / tile;
  const int32_t filter = static_cast<int32_t>(place.unit / static_cast<uint32_t>(strips));
  const int32_t row = static_cast<int32_t>(place.unit % static_cast<uint32_t>(strips)) * tile;
  const double tau = work.terms == Terms::Distances ? 1 : place.state->tau;
  if (!(tau > 0)) return;  // `finish_parts` writes the entropies
  if (t == 0) shared->points = channels_of<T>(layer, filter);
  if (t < tile) shared->rows[t] = {0, 0};
  const T scale = scale_of<T>(*place.state), factor = pair_scale<T>(work.terms, tau);
  for (int32_t column = 0; column < layer.channels; column += tile) {
    T d[side][side];
    tile_distances<T>(shared, row, column, scale, d);
    TileSums<T> sums = tile_sums<T>(work.terms, layer.channels, row, column, factor, d);
#pragma unroll
    for (int i = 0; i < side; ++i) {
      sum_rows(sums, i);
      if (t % 8 != 0) continue;  // one thread writes each row
      shared->rows[t / 8 * side + i].first += static_cast<double>(sums.of_rows[0][i]);
      shared->rows[t / 8 * side + i].second += static_cast<double>(sums.of_rows[1][i]) * kLn2;
    }
  }
  __syncthreads();
  double total = 0;
  if (t < tile && row + t < layer.channels) {
    const RowSums sums = shared->rows[t];
    total = work.terms == Terms::Distances ? sums.first : row_entropy(entropy_of(work.terms), sums, layer.channels);
  }
  total = block_sum(total, shared->sums);
  if (t == 0) (work.terms == Terms::Distances ? layer.sums : layer.parts)[place.unit] = total;
}

// The filters of a layer: one tile per block, each pair of filters once. A tile writes the sums of its rows and columns
// to its own place, parts[strip][filter]. They are added up in the order of the strips, so the bits are always the
// same.
template <class T>
__global__ void __launch_bounds__(kTileThreads, 6) filter_pairs(const PairWork work) {
  DYN_SHARED(TileShared<T>, shared);
  const Place place = find_place(work.range, kMain);
  const Entry& layer = *place.entry;
  constexpr int side = kSide<T>, tile = kTile<T>;
  const int t = static_cast<int>(threadIdx.x), strips = (layer.filters + tile - 1) / tile;
  int tile_row, tile_column;
  tile_of(place.unit, strips, tile_row, tile_column);
  const int32_t row = tile_row * tile, column = tile_column * tile;
  const double tau = work.terms == Terms::Distances ? 1 : place.state->tau;
  if (!(tau > 0)) return;  // `finish_rows` writes the entropies
  if (t == 0) shared->points = filters_of<T>(layer, work.compressed);
  const T scale = work.compressed ? T(1) : scale_of<T>(*place.state), factor = pair_scale<T>(work.terms, tau);
  T d[side][side];
  tile_distances<T>(shared, row, column, scale, d);
  TileSums<T> sums = tile_sums<T>(work.terms, shared->points.count, row, column, factor, d);
  if (work.terms == Terms::Distances) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < side; ++i) sum += static_cast<double>(sums.of_rows[0][i]);
    sum = block_sum(sum, shared->sums);
    if (t == 0) layer.sums[place.unit] = row == column ? sum : 2 * sum;
    return;
  }
  RowSums* parts = reinterpret_cast<RowSums*>(layer.parts);
#pragma unroll
  for (int i = 0; i < side; ++i) {
    sum_rows(sums, i);
    const int32_t own = row + t / 8 * side + i;
    if (t % 8 == 0 && own < layer.filters) {
      parts[static_cast<int64_t>(tile_column) * layer.filters + own] = {
          static_cast<double>(sums.of_rows[0][i]), static_cast<double>(sums.of_rows[1][i]) * kLn2};
    }
  }
  if (row == column) return;  // a tile on the diagonal holds both orders of its pairs
#pragma unroll
  for (int j = 0; j < side; ++j) {
    for (int apart = 8; apart < 32; apart *= 2) {
      sums.of_columns[0][j] += __shfl_xor_sync(kAll, sums.of_columns[0][j], apart);
      sums.of_columns[1][j] += __shfl_xor_sync(kAll, sums.of_columns[1][j], apart);
    }
    if (lane() < 8) {
      shared->across[warp()][0][lane() * side + j] = sums.of_columns[0][j];
      shared->across[warp()][1][lane() * side + j] = sums.of_columns[1][j];
    }
  }
  __syncthreads();
  const int32_t own = column + t;
  if (t >= tile || own >= layer.filters) return;
  const double first = static_cast<double>(shared->across[0][0][t]) + static_cast<double>(shared->across[1][0][t]);
  const double second = static_cast<double>(shared->across[0][1][t]) + static_cast<double>(shared->across[1][1][t]);
  parts[static_cast<int64_t>(tile_row) * layer.filters + own] = {first, second * kLn2};
}

// The entropies of filters from the sums of their rows; one thread per filter.
static __global__ void __launch_bounds__(128) finish_rows(const Range range, Entropy entropy) {
  const Place place = find_place(range, kRows);
  const Entry& layer = *place.entry;
  const int32_t own = static_cast<int32_t>(place.unit * blockDim.x + threadIdx.x);
  if (own >= layer.filters) return;
  const double tau = place.state->tau;
  if (!(tau > 0)) {
    layer.out[own] = tau * 0;
    return;
  }
  const RowSums* parts = reinterpret_cast<const RowSums*>(layer.parts);
  RowSums sum{0, 0};
  for (int s = 0; s < layer.parts_a_filter; ++s) {
    sum.first += parts[static_cast<int64_t>(s) * layer.filters + own].first;
    sum.second += parts[static_cast<int64_t>(s) * layer.filters + own].second;
  }
  layer.out[own] = row_entropy(entropy, sum, layer.filters);
}

}  // namespace fec::cuda
