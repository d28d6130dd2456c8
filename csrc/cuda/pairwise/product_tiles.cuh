// The distances between the filters of a layer, each pair once, by products on tensor cores: 128 x 128 pairs per block
// of 8 warps with 64 x 32 pairs each. Slices of 16 coordinates of both strips of points travel to shared memory while
// the slices before them are multiplied. The distances are kept; their sum gives tau.
//
// Near pairs are computed by differences (tensor_cores.cuh: why): a few by their warp, a tile with many of them as a
// whole.
#pragma once

#include "cuda/pairwise/split_points.cuh"

namespace fec::cuda {

constexpr int kSquareThreads = 256, kStages = 3;
constexpr int kWarpRows = 64, kWarpColumns = 32;  // pairs of a warp

// Shared memory for what follows the products.
union DistanceShared {
  float lengths[2][kSquare];
  float strips[2][kSlice][kSquare + 4];  // of a tile that is computed by differences
  double sums[kSquareThreads / 32];
  uint32_t done;  // blocks of the tile that were done before this one
};

// Shared memory: slices on their way or in use; then, for the distances, what is needed of the points.
struct ProductShared {
  union {
    uint16_t slices[kStages][2][2][kSquare][kSlice];  // stage, strip, part, point, coordinate
    DistanceShared distances;
  };
};

// The place of eight coordinates of a point: the two halves of a slice are exchanged in every second group of four
// points, so that eight neighbouring points lie in different banks.
FEC_DEVICE uint16_t* slice_half(ProductShared* shared, int stage, int strip, int part, int point, int half) {
  return &shared->slices[stage][strip][part][point][8 * (half ^ (point >> 2 & 1))];
}

// Multiplies one slice: a warp's rows by its columns.
template <bool split>
FEC_DEVICE void multiply_slice(ProductShared* shared, int stage, int top, int left, float (&sums)[4][4][4]) {
  constexpr int parts = split ? 2 : 1;
  ColumnFragment b[parts][4];
#pragma unroll
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t words[4];
      const int point = left + 16 * pair + (lane() >> 4) * 8 + (lane() & 7);
      load_matrices(words, slice_half(shared, stage, 1, part, point, lane() >> 3 & 1));
      b[part][2 * pair] = {{words[0], words[1]}};
      b[part][2 * pair + 1] = {{words[2], words[3]}};
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    RowFragment a[parts];
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      load_matrices(a[part].words, slice_half(shared, stage, 0, part, top + 16 * m + (lane() & 15), lane() >> 4));
    }
    float c[4][4] = {};  // the small products first
    if constexpr (split) {
#pragma unroll
      for (int n = 0; n < 4; ++n) multiply_add(c[n], a[1], b[0][n]);
#pragma unroll
      for (int n = 0; n < 4; ++n) multiply_add(c[n], a[0], b[1][n]);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) multiply_add(c[n], a[0], b[0][n]);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] += c[n][i];
    }
  }
}

// What a block multiplies: a tile, or its share of the coordinates of one.
struct Share {
  Scratch scratch;
  uint32_t unit;  // the tile
  int share, tile_row, tile_column;
  int begin, slices;  // of kSlice coordinates
};

FEC_DEVICE Share share_of(const Place& place, bool compressed) {
  const Scratch scratch = scratch_of(*place.entry, compressed);
  Share own{scratch, place.unit / static_cast<uint32_t>(scratch.splits),
            static_cast<int>(place.unit % static_cast<uint32_t>(scratch.splits)), 0, 0, 0, 0};
  tile_of(own.unit, (place.entry->filters + kSquare - 1) / kSquare, own.tile_row, own.tile_column);
  const int all = static_cast<int>(scratch.pitch / kSlice), most = (all - 1) / static_cast<int>(scratch.splits) + 1;
  own.begin = own.share * most;
  own.slices = smaller_int(most, all - own.begin);
  return own;
}

// A tile of a layer.
struct Tile {
  const Entry* layer;
  int32_t row, column;  // its first ones
  float* kept;  // its distances
  bool compressed;
  float scale;
};

// The squared distance of two points by differences, computed by a warp.
FEC_DEVICE double warp_square(const Points& points, int32_t a, int32_t b, float scale) {
  double sum = 0;
  with_points<float>(points, [&](const auto* data) {
    const auto* from = data + point_offset(points, a);
    const auto* to = data + point_offset(points, b);
    for (int64_t k = lane(); k < points.coordinates; k += 32) {
      const int64_t at = coordinate_offset(points, k);
      const float gap = (value_of(from[at]) - value_of(to[at])) * scale;
      sum += static_cast<double>(gap * gap);
    }
  });
  return warp_sum(sum);
}

// Replaces the distances of a warp's near pairs. `near` has one bit per pair of this lane, in the order of its sums; the
// warp has `across` groups of eight columns. Returns this lane's part of their sum.
template <int across>
FEC_CALLED float replace_near(const Tile& tile, int top, int left, unsigned long long near) {
  FEC_SEEN(near_warps);
  const Points points = filters_of<float>(*tile.layer, tile.compressed);
  float sum = 0;
  unsigned waiting;
  while ((waiting = __ballot_sync(kAll, near != 0)) != 0) {
    const int owner = __ffs(static_cast<int>(waiting)) - 1;
    const int bit = __shfl_sync(kAll, __ffsll(static_cast<long long>(near)), owner) - 1;
    const int r = top + 16 * (bit / 4 / across) + owner / 4 + bit % 4 / 2 * 8;
    const int c = left + 8 * (bit / 4 % across) + owner % 4 * 2 + bit % 2;
    const double square = warp_square(points, tile.row + r, tile.column + c, tile.scale);
    if (lane() != owner) continue;
    near &= near - 1;
    const float d = root(static_cast<float>(square));
    tile.kept[r * kSquare + c] = d;
    sum += d;
  }
  return sum;
}

// Computes a whole tile by differences. Returns this thread's part of the sum of its distances.
FEC_CALLED double replace_tile(DistanceShared* shared, const Tile& tile) {
  if (threadIdx.x < 32) FEC_SEEN(near_tiles);
  const Points points = filters_of<float>(*tile.layer, tile.compressed);
  const int t = static_cast<int>(threadIdx.x), r0 = t / 16 * 8, c0 = t % 16 * 8;
  float d[8][8] = {};
  for (int64_t k = 0; k < points.coordinates; k += kSlice) {
    __syncthreads();
    with_points<float>(points, [&](const auto* data) {
      for (int i = t; i < 2 * kSquare * kSlice; i += kSquareThreads) {
        const int strip = i / (kSquare * kSlice), rest = i % (kSquare * kSlice);
        const int p = points.neighbours ? rest % kSquare : rest / kSlice;
        const int c = points.neighbours ? rest / kSquare : rest % kSlice;
        const int32_t own = smaller_int((strip == 0 ? tile.row : tile.column) + p, points.count - 1);
        float x = 0;
        if (k + c < points.coordinates) {
          x = value_of(data[point_offset(points, own) + coordinate_offset(points, k + c)]) * tile.scale;
        }
        shared->strips[strip][c][p] = x;
      }
    });
    __syncthreads();
    for (int c = 0; c < kSlice; ++c) {
      float a[8], b[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = shared->strips[0][c][r0 + i];
#pragma unroll
      for (int i = 0; i < 8; ++i) b[i] = shared->strips[1][c][c0 + i];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float gap = a[i] - b[j];
          d[i][j] += gap * gap;
        }
      }
    }
  }
  double sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float of_row = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float distance = root(d[i][j]);
      tile.kept[(r0 + i) * kSquare + c0 + j] = distance;
      const bool there = tile.row + r0 + i < points.count && tile.column + c0 + j < points.count;
      of_row += there ? distance : 0;
    }
    sum += static_cast<double>(of_row);
  }
  return sum;
}

struct alignas(8) TwoFloats {
  float x[2];
};

// From products to distances: |a|^2 + |b|^2 - 2 ab, of a warp's down x across squares of 16 x 8 pairs. Returns this
// thread's part of the sum of the tile's distances.
template <int down, int across>
FEC_DEVICE double keep_distances(DistanceShared* shared, const Tile& tile, int top, int left,
                                 const float (&sums)[down][across][4]) {
  const int t = static_cast<int>(threadIdx.x), g = lane() / 4, q = lane() % 4, count = tile.layer->filters;
  const float* lengths = static_cast<const float*>(tile.layer->spare);
  const int32_t own = t < kSquare ? tile.row + t : tile.column + t - kSquare;
  // Points past the last one are near no other.
  shared->lengths[t / kSquare][t % kSquare] = own < count ? lengths[own] : static_cast<float>(INFINITY);
  __syncthreads();
  unsigned long long near = 0;
  float sum = 0;
#pragma unroll
  for (int m = 0; m < down; ++m) {
#pragma unroll
    for (int n = 0; n < across; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = top + 16 * m + g + 8 * half, c = left + 8 * n + 2 * q;
        TwoFloats d;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float both = shared->lengths[0][r] + shared->lengths[1][c + i];
          const float product = sums[m][n][2 * half + i] * (1 / (kHalfScale * kHalfScale));
          const bool same = tile.row + r == tile.column + c + i;
          const float square = same ? 0 : both - 2 * product;
          const bool is_near = !same && square < both * static_cast<float>(kNear);
          near |= static_cast<unsigned long long>(is_near) << (4 * (across * m + n) + 2 * half + i);
          d.x[i] = root(square);
          sum += !is_near && tile.row + r < count && tile.column + c + i < count ? d.x[i] : 0;
        }
        *reinterpret_cast<TwoFloats*>(tile.kept + r * kSquare + c) = d;
      }
    }
  }
  if (__syncthreads_or(__popc(static_cast<unsigned>(near)) + __popc(static_cast<unsigned>(near >> 32)) > kMostNear)) {
    return replace_tile(shared, tile);
  }
  if (__any_sync(kAll, near != 0)) sum += replace_near<across>(tile, top, left, near);
  return static_cast<double>(sum);
}

// Adds up the products of the blocks that share a tile, in the order of their coordinates. Returns false in all blocks but
// the last one to get here, which goes on with the sums.
template <int down, int across>
FEC_DEVICE bool add_splits(DistanceShared* shared, const Entry& layer, const Share& own,
                           float (&sums)[down][across][4]) {
  const int t = static_cast<int>(threadIdx.x);
  const Scratch& scratch = own.scratch;
  float* partial = reinterpret_cast<float*>(at_byte(layer, scratch.partial)) +
                   static_cast<int64_t>(own.unit) * scratch.splits * (kSquare * kSquare) + t;
  float* mine = partial + static_cast<int64_t>(own.share) * (kSquare * kSquare);
#pragma unroll
  for (int i = 0; i < 64; ++i) mine[i * kSquareThreads] = sums[i / 4 / across][i / 4 % across][i % 4];
  __threadfence();
  __syncthreads();
  if (t == 0) shared->done = atomicAdd(reinterpret_cast<uint32_t*>(at_byte(layer, scratch.done)) + own.unit, 1u);
  __syncthreads();
  const bool last = shared->done == static_cast<uint32_t>(scratch.splits) - 1;
  __syncthreads();  // `done` is read: its memory is used for other things
  if (!last) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i / 4 / across][i / 4 % across][i % 4] = 0;
#pragma unroll 1
  for (int64_t s = 0; s < scratch.splits; ++s) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      sums[i / 4 / across][i / 4 % across][i % 4] += partial[s * (kSquare * kSquare) + i * kSquareThreads];
    }
  }
  return true;
}

// From a block's products to the distances of its tile, which are kept, and their sum.
template <int down, int across>
FEC_DEVICE void finish_tile(DistanceShared* shared, const Place& place, const Share& own, bool compressed, int top,
                            int left, float (&sums)[down][across][4]) {
  static_assert(down * across * 4 * kSquareThreads == kSquare * kSquare);
  const Entry& layer = *place.entry;
  if (own.scratch.splits > 1 && !add_splits(shared, layer, own, sums)) return;
  const Tile tile{&layer, own.tile_row * kSquare, own.tile_column * kSquare,
                  reinterpret_cast<float*>(at_byte(layer, own.scratch.kept)) +
                      static_cast<int64_t>(own.unit) * kSquare * kSquare,
                  compressed, compressed ? 1 : scale_of<float>(*place.state)};
  double sum = keep_distances(shared, tile, top, left, sums);
  __syncthreads();
  sum = block_sum(sum, shared->sums);
  if (threadIdx.x == 0) layer.sums[own.unit] = own.tile_row == own.tile_column ? sum : 2 * sum;
}

static __global__ void __launch_bounds__(kSquareThreads, 2) product_tiles(const Range range, const bool compressed) {
  DYN_SHARED(ProductShared, shared);
  const Place place = find_place(range, kMain);
  const Entry& layer = *place.entry;
  const Share own = share_of(place, compressed);
  const Scratch& scratch = own.scratch;
  const bool split = scratch.parts == 2;
  const int t = static_cast<int>(threadIdx.x), slices = own.slices;
  // A thread copies one half of the slices of one point per strip and part.
  const int point = t / 2, half = t % 2;
  const int64_t part_bytes = layer.filters * scratch.pitch * 2;
  const char* from[2];
#pragma unroll
  for (int strip = 0; strip < 2; ++strip) {
    const int32_t row = smaller_int((strip == 0 ? own.tile_row : own.tile_column) * kSquare + point, layer.filters - 1);
    from[strip] = at_byte(layer, scratch.halves) + (row * scratch.pitch + own.begin * kSlice + 8 * half) * 2;
  }
  const auto start = [&](int slice) {
    if (slice < slices) {
#pragma unroll
      for (int strip = 0; strip < 2; ++strip) {
        const char* at = from[strip] + static_cast<int64_t>(slice) * kSlice * 2;
        copy_async(slice_half(shared, slice % kStages, strip, 0, point, half), at);
        if (split) copy_async(slice_half(shared, slice % kStages, strip, 1, point, half), at + part_bytes);
      }
    }
    commit_copies();  // also an empty group: the wait counts groups
  };
  const int top = warp() % 2 * kWarpRows, left = warp() / 2 * kWarpColumns;
  // Warps without points have nothing to multiply.
  const bool there = own.tile_row * kSquare + top < layer.filters && own.tile_column * kSquare + left < layer.filters;
  float sums[4][4][4] = {};
#pragma unroll
  for (int slice = 0; slice < kStages - 1; ++slice) start(slice);
  for (int slice = 0; slice < slices; ++slice) {
    wait_copies<kStages - 2>();
    __syncthreads();  // everybody's copies have arrived, and the slice before this one is no longer read
    start(slice + kStages - 1);
    if (!there) continue;
    if (split) multiply_slice<true>(shared, slice % kStages, top, left, sums);
    else multiply_slice<false>(shared, slice % kStages, top, left, sums);
  }
  __syncthreads();  // the slices are no longer read, and none is on its way
  finish_tile(&shared->distances, place, own, compressed, top, left, sums);
}

}  // namespace fec::cuda
