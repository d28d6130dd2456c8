// The table of layers that every kernel reads: one launch processes all layers, and each block finds its layer here.
//
// The table reaches the device as kernel arguments, which CUDA copies at the launch. So no host memory has to outlive
// the call, there is no copy to wait for, and a CUDA graph keeps the table.
#pragma once

#include "fec.h"
#include "entropy_math.h"
#include "cuda/portable.h"

namespace fec::cuda {

// The three ways to divide a layer into blocks: by filters, for the main kernels, and by rows for the last kernels.
enum Cut { kFilters, kMain, kRows, kCuts };

struct Entry {
  const void* data;
  double* out;  // entropies, one per filter
  void* points;  // one number per channel, sorted or not
  void* spare;  // of long filters: where the sorted runs are merged to; of points: their squared lengths
  double* sums;  // of distances, one per block
  double* parts;  // of entropies, or sums of rows, one per part
  double denominator;  // the number of distances in the sums
  double scale;  // factor of the weights; 0: derived from the largest weight
  int64_t stride_outer, stride_inner, stride_channel, stride_tap;
  int32_t inner, filters, channels, taps;
  int32_t sums_count;
  DType dtype;
  uint32_t start[kCuts];  // the first block of this layer in a launch over its range of the table
  int32_t parts_a_filter;
};

// Values of a layer that are computed on the device.
struct State {
  unsigned long long most;  // the largest magnitude among its weights, as the bits of a double
  double tau;  // in units of the scaled weights; 0: all points are equal; NaN: a weight is not finite
  double power, rest;  // log2(e) / tau as a product of two numbers of the layer's type
};

// A range of the table.
struct Range {
  const Entry* entries;
  State* states;
  int count;
};

struct Choice {
  Compress compress;
  Entropy entropy;
  double tau, tau_scale;
};

constexpr int kCarried = 29;  // entries per launch: the arguments must fit in 4 KiB

struct Carried {
  Entry entries[kCarried];
  Entry* to;
  State* states;
  int count;
};
static_assert(sizeof(Carried) <= 4096);

static __global__ void upload(const Carried carried) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= carried.count) return;
  carried.to[i] = carried.entries[i];
  carried.states[i] = State{0, 0, 0, 0};
}

struct Place {
  const Entry* entry;
  State* state;
  uint32_t unit;  // of the layer
};

// Finds the layer of this block: the last one that starts at or before it. A layer without blocks has the start of the
// next layer.
FEC_DEVICE Place find_place(const Range& range, Cut cut) {
  const uint32_t block = blockIdx.x;
  int before = 0;
  for (int i = 0; i < range.count; i += 32) {
    const int own = i + lane();
    const bool at = own < range.count && range.entries[own].start[cut] <= block;
    before += __popc(__ballot_sync(kAll, at));
  }
  const Entry* entry = range.entries + (before - 1);
  return {entry, range.states + (before - 1), block - entry->start[cut]};
}

FEC_DEVICE int64_t filter_offset(const Entry& layer, int32_t filter) {
  return filter / layer.inner * layer.stride_outer + filter % layer.inner * layer.stride_inner;
}

}  // namespace fec::cuda
