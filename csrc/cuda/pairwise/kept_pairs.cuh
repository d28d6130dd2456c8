// The second pass over distances that were kept: the terms of an entropy, summed by row and by column of each tile.
#pragma once

#include "cuda/pairwise/product_tiles.cuh"

namespace fec::cuda {

struct KeptShared {
  float columns[2][kSquareThreads / 32][kSquare];  // the first and the second sums, by warp
};

constexpr int kRowsAtOnce = 4;  // rows of a warp whose loads are in flight at a time

// A warp's rows: 16, of which each lane has four neighbouring columns.
template <Terms terms>
FEC_DEVICE void add_rows_of_tile(const Entry& layer, const float* kept, int32_t row, int32_t column, float factor,
                                 KeptShared* shared, RowSums* parts) {
  constexpr int rows = kSquare / (kSquareThreads / 32);
  const int c = 4 * lane(), there = smaller_int(kSquare, layer.filters - column) - c;
  float first[4] = {}, second[4] = {};
#pragma unroll 1
  for (int begin = 0; begin < rows; begin += kRowsAtOnce) {
    FourFloats held[kRowsAtOnce];  // also of rows past the last one, which hold something
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      held[i] = *reinterpret_cast<const FourFloats*>(kept + (rows * warp() + begin + i) * kSquare + c);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int own = row + rows * warp() + begin + i;
      if (own >= layer.filters) break;
      float of_row = 0, of_row2 = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float a = 0, b = 0;
        if (e < there) add_terms(terms, held[i].x[e], factor, a, b);
        first[e] += a;
        second[e] += b;
        of_row += a;
        of_row2 += b;
      }
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) {
        of_row += __shfl_xor_sync(kAll, of_row, apart);
        if (terms != Terms::Similarity) of_row2 += __shfl_xor_sync(kAll, of_row2, apart);
      }
      if (lane() == 0) parts[own] = {static_cast<double>(of_row), static_cast<double>(of_row2) * kLn2};
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    shared->columns[0][warp()][c + e] = first[e];
    shared->columns[1][warp()][c + e] = second[e];
  }
}

static __global__ void __launch_bounds__(kSquareThreads) kept_pairs(const Range range, const bool compressed,
                                                                    const Terms terms) {
  DYN_SHARED(KeptShared, shared);
  const Place place = find_place(range, kMain);
  const Entry& layer = *place.entry;
  const double tau = place.state->tau;
  if (!(tau > 0)) return;  // `finish_rows` writes the entropies
  const Scratch scratch = scratch_of(layer, compressed);
  const uint32_t tile = place.unit / static_cast<uint32_t>(scratch.splits);
  if (place.unit % static_cast<uint32_t>(scratch.splits) != 0) return;  // one block per tile
  int tile_row, tile_column;
  tile_of(tile, (layer.filters + kSquare - 1) / kSquare, tile_row, tile_column);
  const int32_t row = tile_row * kSquare, column = tile_column * kSquare;
  const float* kept = reinterpret_cast<const float*>(at_byte(layer, scratch.kept)) +
                      static_cast<int64_t>(tile) * kSquare * kSquare;
  const float factor = pair_scale<float>(terms, tau);
  RowSums* parts = reinterpret_cast<RowSums*>(layer.parts);
  RowSums* of_rows = parts + static_cast<int64_t>(tile_column) * layer.filters;
  if (terms == Terms::Similarity) {
    add_rows_of_tile<Terms::Similarity>(layer, kept, row, column, factor, shared, of_rows);
  } else if (terms == Terms::Softmax) {
    add_rows_of_tile<Terms::Softmax>(layer, kept, row, column, factor, shared, of_rows);
  } else {
    add_rows_of_tile<Terms::Distance>(layer, kept, row, column, factor, shared, of_rows);
  }
  if (tile_row == tile_column) return;  // a tile on the diagonal holds both orders of its pairs
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  if (t >= kSquare || column + t >= layer.filters) return;
  double first = 0, second = 0;
#pragma unroll
  for (int w = 0; w < kSquareThreads / 32; ++w) {
    first += static_cast<double>(shared->columns[0][w][t]);
    second += static_cast<double>(shared->columns[1][w][t]);
  }
  parts[static_cast<int64_t>(tile_row) * layer.filters + column + t] = {first, second * kLn2};
}

}  // namespace fec::cuda
