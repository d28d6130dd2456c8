// The table of layers that every kernel works from: one launch does all layers, a block finds its own.
//
// It reaches the device as arguments of a kernel, which are copied when the launch is made: no host memory that would
// have to outlive the call, no copy to wait for, and a CUDA graph keeps it.
#pragma once

#include "fec.h"
#include "entropy_math.h"
#include "cuda/portable.h"

namespace fec::cuda {

// The work of a layer comes in three cuts: by filters, by blocks of the main kernels, by rows of the last one.
enum Cut { kFilters, kMain, kRows, kCuts };

struct Entry {
  const void* data;
  double* out;  // entropies, one a filter
  void* points;  // one number a channel, sorted or not
  void* spare;  // of long filters: where the sorted runs are merged to; of points: their squared lengths
  double* sums;  // of distances, one a block
  double* parts;  // of entropies, or sums of rows, one a part
  double denominator;  // how many distances the sums are of
  double scale;  // of the weights before anything else; 0: as the largest weight has it
  int64_t stride_outer, stride_inner, stride_channel, stride_tap;
  int32_t inner, filters, channels, taps;
  int32_t sums_count;
  DType dtype;
  uint32_t start[kCuts];  // the first block of this layer in a launch over its range of the table
  int32_t parts_a_filter;
};

// What is found out about a layer on the device.
struct State {
  unsigned long long most;  // the largest magnitude among its weights, as the bits of a double
  double tau;  // in units of the scaled weights; 0: all alike; NaN: a weight is not finite
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

constexpr int kCarried = 29;  // entries a launch: its arguments stay within 4 KiB

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

// The layer of this block: the last one that starts at or before it. Layers without work have the next one's start.
FEC_DEVICE Place place(const Range& range, Cut cut) {
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
