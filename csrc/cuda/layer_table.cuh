// The table of layers that every kernel reads: one launch processes all layers, and each block finds its layer here.
//
// The table reaches the device as kernel arguments, which CUDA copies at the launch. So no host memory has to outlive
// the call, there is no copy to wait for, and a CUDA graph keeps the table. Where the first kernel of some layers needs
// nothing that is computed before it, the table is an argument of that kernel; else one of `upload`. Arguments have at
// most 4 KiB: with 32 KiB (CUDA 12.1) a driver older than R530 would refuse the kernels, and the wheels run from R525 on.
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

constexpr int kCarried = 29;  // entries per launch of `upload`: the arguments must fit in 4 KiB

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

// A layer of filters that one block sorts, as an argument of the kernel that sorts them; the rest of its entry follows.
struct ShortEntry {
  const void* data;
  double* out;
  int32_t stride_outer, stride_inner, stride_channel, stride_tap;
  int32_t inner, filters, channels, taps;
  uint32_t points, sums;  // in units of kUnit bytes from the beginning of the workspace
  uint32_t start;
  DType dtype;
};
static_assert(sizeof(ShortEntry) == 64);

constexpr int kShort = 63;  // with them, the other arguments of the kernel fit in 4 KiB
constexpr int64_t kUnit = 256;  // everything in the workspace begins at a multiple

struct ShortTable {
  ShortEntry entries[kShort];
  int count;
  uint32_t first_block;
  char* workspace;
  Entry* to;
  State* states;
};

// The entry of a layer whose tau is measured.
FEC_DEVICE Entry entry_of(const ShortEntry& from, char* workspace) {
  Entry entry{};
  entry.data = from.data;
  entry.out = from.out;
  entry.points = workspace + from.points * kUnit;
  entry.sums = reinterpret_cast<double*>(workspace + from.sums * kUnit);
  entry.denominator = from.filters;  // each sum is a mean already
  entry.scale = 0.5;
  entry.stride_outer = from.stride_outer;
  entry.stride_inner = from.stride_inner;
  entry.stride_channel = from.stride_channel;
  entry.stride_tap = from.stride_tap;
  entry.inner = from.inner;
  entry.filters = from.filters;
  entry.channels = from.channels;
  entry.taps = from.taps;
  entry.sums_count = from.filters;
  entry.dtype = from.dtype;
  entry.start[kMain] = from.start;
  return entry;
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

// Finds the layer of this block in a table among the arguments, and makes its entry. The first block of a layer writes
// it for the kernels that follow; nobody reads it in this one.
FEC_DEVICE Place find_place(const ShortTable& table, Entry& entry) {
  const uint32_t block = table.first_block + blockIdx.x;
  int at = 0;
  for (int step = 32; step > 0; step /= 2) {
    if (at + step < table.count && table.entries[at + step].start <= block) at += step;
  }
  const uint32_t unit = block - table.entries[at].start;
  if (unit == 0 && threadIdx.x == 0) {
    table.to[at] = entry_of(table.entries[at], table.workspace);
    table.states[at] = State{0, 0, 0, 0};
  }
  entry = entry_of(table.entries[at], table.workspace);
  return {&entry, table.states + at, unit};
}

FEC_DEVICE int64_t filter_offset(const Entry& layer, int32_t filter) {
  return filter / layer.inner * layer.stride_outer + filter % layer.inner * layer.stride_inner;
}

}  // namespace fec::cuda
