// Products of a tile's points on tensor cores, with the precision of float32.
//
// Weights are scaled by a power of two, the largest to [2^14, 2^15), and become sums of two float16: w = hi + lo. The
// error is 2^-23 of w, or 2^-39 of the largest weight, whichever is larger: the error of float32 itself. float16 and
// bfloat16 weights have hi only. Then a b = hi hi + hi lo + lo hi; lo lo, at most 2^-22 of it and of either sign, is
// left out.
//
// A tensor core accumulates in float32, but rounds towards zero and truncates each addend at the last place of the
// largest one (Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021), or some
// bits below it: V100 four products at a time and no extra bit, A100 eight and one, H100 sixteen and two (Khattak &
// Mikaitis, Accurate models of NVIDIA tensor cores, arXiv:2512.07004, 2025). Such errors all have the same sign. So a
// sum covers at most 16 coordinates on the tensor core; then it is added to a float32 sum, rounded to nearest. For 16
// equal products the truncation is up to 4.5 * 2^-23 = 5e-7 of ab on a V100 (older than the supported GPUs; the
// emulator does the same) and 2^-23 = 1.2e-7 on an A100. These maxima were found by trying inputs; the
// sum of all truncated places is 7.5 and 3.8 * 2^-23.
//
// Where pairs are not near (points.cuh), the squared distance |a|^2 + |b|^2 - 2 ab is at least 1/32 of |a|^2 + |b|^2.
// So its relative error is 32 times the one above, and that of the distance half as much (V100: 8e-6, A100: 2e-6), if
// all products are positive and the pair is almost near. The error is equal for all pairs, so it cancels where tau is
// their mean. Weights of both signs have an error below 1e-6.
#pragma once

#include "cuda/pairwise/points.cuh"

namespace fec::cuda {

constexpr float kHalfScale = 0x1p14f;

// A lane's part of a matrix: `mma.m16n8k16` of the PTX ISA, with two float16 per word.
struct RowFragment {
  uint32_t words[4];  // rows g and g + 8, coordinates 2q and 2q + 1; the same with coordinates 8 on (lane = 4g + q)
};
struct ColumnFragment {
  uint32_t words[2];  // column g, coordinates 2q and 2q + 1; and 8 on
};

// c += a b: rows g (c[0], c[1]) and g + 8 of columns 2q and 2q + 1.
FEC_DEVICE void multiply_add(float (&c)[4], const RowFragment& a, const ColumnFragment& b) {
#ifdef FEC_EMULATOR
  emulated_mma(c, a.words, b.words);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.words[2 * half]), "r"(a.words[2 * half + 1]), "r"(b.words[half]));
  }
#endif
}

// Two numbers as float16, the first in the lower half. The remainders replace the numbers.
FEC_DEVICE uint32_t take_halves(float& x, float& y) {
  F16 low, high;
#ifdef FEC_EMULATOR
  low.bits = emulated_half_of(x);
  high.bits = emulated_half_of(y);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(low.bits) : "f"(x));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(high.bits) : "f"(y));
#endif
  x -= value_of(low);
  y -= value_of(high);
  return static_cast<uint32_t>(high.bits) << 16 | low.bits;
}

// A thread's part of a strip as float16, two coordinates of a point at a time: those of one point (across), or the same
// two coordinates of several points.
template <bool across, class S>
FEC_DEVICE void load_pairs(TileShared<float>* shared, const S* data, int strip, bool split) {
  constexpr int tile = kTile<float>, words = kChunk / 2, batch = 4, turns = tile * words / kTileThreads;
  constexpr int more_p = across ? 0 : kTileThreads / words, more_w = across ? kTileThreads / tile : 0;
  const int t = static_cast<int>(threadIdx.x), p = across ? t % tile : t / words, w = across ? t / tile : t % words;
  const int64_t* offsets = shared->offsets[strip] + p;
  const int64_t* steps = shared->steps + 2 * w;
  const float* factors = shared->factors + 2 * w;
  auto* high = &shared->room.halves[strip][0][p][w];
  auto* low = &shared->room.halves[strip][1][p][w];
  const int64_t offset = offsets[0], step[2] = {steps[0], steps[1]};  // the constant ones
  const float factor[2] = {factors[0], factors[1]};
#pragma unroll 1
  for (int begin = 0; begin < turns; begin += batch) {
    float held[batch][2];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = 2 * (begin + i) * more_w;
      const S* from = data + (across ? offset : offsets[(begin + i) * more_p]);
#pragma unroll
      for (int e = 0; e < 2; ++e) held[i][e] = value_of(from[across ? steps[at + e] : step[e]]);
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = 2 * (begin + i) * more_w, to = (begin + i) * (more_p * kRow + more_w);
      float x = held[i][0] * (across ? factors[at] : factor[0]);
      float y = held[i][1] * (across ? factors[at + 1] : factor[1]);
      high[to] = take_halves(x, y);
      if (split) low[to] = take_halves(x, y);
    }
  }
}

// Loads the current coordinates of a strip of points as float16. Neighbouring threads read neighbouring addresses.
FEC_CALLED void load_halves(TileShared<float>* shared, int strip) {
  const bool split = shared->points.dtype == DType::F32;
  with_points<float>(shared->points, [&](const auto* data) {
    if (shared->points.neighbours) load_pairs<true>(shared, data, strip, split);
    else load_pairs<false>(shared, data, strip, split);
  });
}

// Adds 16 coordinates, from word `word`, to a warp's half of the tile: 32 rows from row `top`, all columns.
template <bool split>
FEC_DEVICE void add_products(const TileShared<float>* shared, int top, int word, float (&sums)[2][8][4]) {
  const int g = lane() / 4, q = word + lane() % 4;
  const auto& halves = shared->room.halves;
  constexpr int parts = split ? 2 : 1;
  RowFragment a[parts][2];
#pragma unroll
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int r = top + 16 * m + g;
      a[part][m] = {{halves[0][part][r][q], halves[0][part][r + 8][q], halves[0][part][r][q + 4],
                     halves[0][part][r + 8][q + 4]}};
    }
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    ColumnFragment b[parts];
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      b[part] = {{halves[1][part][8 * n + g][q], halves[1][part][8 * n + g][q + 4]}};
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float c[4] = {};
      if constexpr (split) {
        multiply_add(c, a[1][m], b[0]);
        multiply_add(c, a[0][m], b[1]);
      }
      multiply_add(c, a[0][m], b[0]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] += c[i];
    }
  }
}

// The products of a thread's pairs.
FEC_DEVICE void tile_products(TileShared<float>* shared, float scale, int r0, int c0,
                              float (&d)[kSide<float>][kSide<float>]) {
  const int top = 32 * warp(), g = lane() / 4, q = lane() % 4;
  const bool split = shared->points.dtype == DType::F32;
  float sums[2][8][4] = {};
  for (int64_t k = 0; k < shared->points.coordinates; k += kChunk) {
    set_steps(shared, k, kChunk, scale * kHalfScale);
    __syncthreads();
    load_halves(shared, 0);
    load_halves(shared, 1);
    __syncthreads();
    for (int word = 0; word < kChunk / 2; word += 8) {
      if (split) add_products<true>(shared, top, word, sums);
      else add_products<false>(shared, top, word, sums);
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared->room.products[top + 16 * m + g + i / 2 * 8][8 * n + 2 * q + i % 2] = sums[m][n][i];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSide<float>; ++i) {
#pragma unroll
    for (int j = 0; j < kSide<float>; ++j) {
      d[i][j] = shared->room.products[r0 + i][c0 + j] * (1 / (kHalfScale * kHalfScale));
    }
  }
}

}  // namespace fec::cuda
