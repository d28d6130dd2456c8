// The scratch of a layer whose filters are compared by products: its points, split, and the distances that are kept.
//
// In one piece behind Entry::spare:
//   lengths   float [filters]: squared lengths of the points, in scaled weights
//   halves    float16 [parts][filters][pitch]: hi, and lo of float32; coordinates past the last one are 0
//   kept      float [tiles][kSquare][kSquare]: distances of the tiles on the diagonal or right of it
//   partial   float [tiles][splits][kSquare * kSquare]: products of parts of the coordinates, if several blocks share a
//             tile; behind them uint32 [tiles]: how many of these blocks are done
#pragma once

#include "cuda/pairwise/tile_distances.cuh"

namespace fec::cuda {

constexpr int kSquare = 128;  // a block of `product_tiles` has kSquare x kSquare pairs
constexpr int kSlice = 16;  // coordinates per step of the tensor cores: the most in one sum

// The most slices of a block. A tile with more is shared by several blocks: it would else be the last one to end.
constexpr int kMostSlices = 96;

// Where the parts of a layer's scratch begin, in bytes.
struct Scratch {
  int64_t pitch, parts, tiles, splits, halves, kept, partial, done, bytes;

  FEC_BOTH Scratch(int64_t filters, int64_t coordinates, bool split)
      : pitch((coordinates + kSlice - 1) / kSlice * kSlice),
        parts(split ? 2 : 1),
        tiles((filters + kSquare - 1) / kSquare * ((filters + kSquare - 1) / kSquare + 1) / 2),
        splits((pitch / kSlice + kMostSlices - 1) / kMostSlices),
        halves((filters * 4 + 255) / 256 * 256),
        kept(halves + (parts * filters * pitch * 2 + 255) / 256 * 256),
        partial(kept + tiles * kSquare * kSquare * 4),
        done(partial + (splits > 1 ? tiles * splits * kSquare * kSquare * 4 : 0)),
        bytes(done + (splits > 1 ? tiles * 4 : 0)) {}
};

FEC_DEVICE Scratch scratch_of(const Entry& layer, bool compressed) {
  const int64_t coordinates = compressed ? layer.channels : static_cast<int64_t>(layer.channels) * layer.taps;
  return Scratch(layer.filters, coordinates, compressed || layer.dtype == DType::F32);
}

FEC_DEVICE char* at_byte(const Entry& layer, int64_t offset) { return static_cast<char*>(layer.spare) + offset; }

}  // namespace fec::cuda
