// The plan of a call: the kernels for each layer, their numbers of blocks, and the layout of the workspace. Host code
// only; no call of the CUDA runtime.
#pragma once

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cuda/sorted/long_kernels.cuh"
#include "cuda/pairwise/scratch.cuh"
#include "cuda/pairwise/tile_kernels.cuh"

namespace fec::cuda {

// The kernels for a layer. The first three are `sorted`, Long also for strides past 32 bits; the last two are between
// filters, with distances that are computed for every use, or once and kept.
enum class Way { Narrow, Wide, Long, Line, Channels, Filters, Products };
constexpr int kWays = 7;

// Bytes of memory for points that are split and distances that are kept: of more layers than fit into it, some are
// processed after the others in the same memory. A layer that does not fit alone keeps nothing.
constexpr int64_t kMostScratch = int64_t(512) << 20;

inline int64_t run_of_type(DType dtype) { return dtype == DType::F64 ? kRun<double> : kRun<float>; }

// The coordinates of a filter that is compared with others.
inline int64_t coordinates_of(const Layer& layer, const Formula& formula) {
  return formula.compress == Compress::None ? layer.channels * layer.taps : layer.channels;
}

inline Scratch scratch_of(const Layer& layer, const Formula& formula) {
  const bool split = formula.compress != Compress::None || layer.dtype == DType::F32;
  return Scratch(layer.filters(), coordinates_of(layer, formula), split);
}

// The bytes of scratch with which the filters of a layer are compared by products; 0 if they are not.
inline int64_t scratch_bytes(const Layer& layer, const Formula& formula) {
  if (layer.algorithm != Algorithm::Pairwise || formula.axis != Axis::Filters || layer.dtype == DType::F64) return 0;
  if (layer.filters() == 0 || coordinates_of(layer, formula) < kProducts) return 0;
  return scratch_of(layer, formula).bytes;
}

// Whether the strides of a layer fit in the table that is an argument of the sort.
inline bool has_short_strides(const Layer& layer) {
  const auto is_short = [](int64_t stride) { return stride == static_cast<int32_t>(stride); };
  return is_short(layer.stride_outer) && is_short(layer.stride_inner) && is_short(layer.stride_channel) &&
         is_short(layer.stride_tap);
}

inline Way way_of(const Layer& layer, const Formula& formula, int64_t most_scratch) {
  if (layer.algorithm == Algorithm::Pairwise) {
    if (formula.axis == Axis::Filters) {
      const int64_t bytes = scratch_bytes(layer, formula);
      return bytes > 0 && bytes <= most_scratch ? Way::Products : Way::Filters;
    }
    return formula.compress != Compress::None || layer.taps == 1 ? Way::Line : Way::Channels;
  }
  if (!sortable(layer, formula) || formula.entropy == Entropy::Distance) {
    throw std::invalid_argument(
        "sorted needs axis=channels, one number per channel, and on CUDA an entropy other than distance");
  }
  if (layer.channels > run_of_type(layer.dtype) || !has_short_strides(layer)) return Way::Long;
  return is_wide(layer.channels) ? Way::Wide : Way::Narrow;
}

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Consecutive layers of the table that use the same kernels.
struct Group {
  int first = 0, count = 0;
  uint32_t blocks[kCuts] = {};
  int64_t most_channels = 0;
};

// How many of some layers are processed together: as many as have room for their scratch, at least one.
inline int64_t together(const Layer* layers, int64_t count, const Formula& formula, int64_t most_scratch) {
  int64_t taken = 0, bytes = 0;
  for (; taken < count; ++taken) {
    const int64_t more = scratch_bytes(layers[taken], formula);
    if (more > most_scratch) continue;  // it keeps nothing
    if (bytes + more > most_scratch) break;
    bytes += more;
  }
  return taken;
}

class Plan {
 public:
  Plan(const Layer* layers, int64_t count, const Formula& formula, char* workspace, int64_t most_scratch)
      : measured(!(formula.tau > 0) || formula.entropy == Entropy::Distance), workspace_(workspace) {
    if (count >= int64_t(1) << 20) throw std::invalid_argument("too many layers for one call");
    std::vector<std::pair<int, const Layer*>> order;
    order.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      const Layer& layer = layers[i];
      if (layer.filters() == 0 || layer.channels == 0 || layer.taps == 0) continue;
      const int way = static_cast<int>(way_of(layer, formula, most_scratch));
      order.emplace_back(way * 2 + (layer.dtype == DType::F64 ? 1 : 0), &layer);
    }
    // Layers with long filters first: their blocks take longest, and would else be alone at the end of a launch. Blocks
    // that share a tile have parts of a filter.
    const auto length = [&](const auto& kind_and_layer) {
      const Layer& layer = *kind_and_layer.second;
      const bool shared = kind_and_layer.first / 2 == static_cast<int>(Way::Products);
      return layer.channels * layer.taps / (shared ? scratch_of(layer, formula).splits : 1);
    };
    std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : length(a) > length(b);
    });
    table = static_cast<Entry*>(take(static_cast<int64_t>(order.size() * sizeof(Entry))));
    states = static_cast<State*>(take(static_cast<int64_t>(order.size() * sizeof(State))));
    for (const auto& [kind, layer] : order) {
      Group& group = groups[kind / 2][kind % 2];
      if (group.count == 0) group.first = static_cast<int>(entries.size());
      ++group.count;
      add(*layer, formula, static_cast<Way>(kind / 2), group);
    }
  }

  int64_t bytes() const { return taken_; }
  Range range(const Group& group) const { return {table + group.first, states + group.first, group.count}; }
  Range all() const { return {table, states, static_cast<int>(entries.size())}; }

  // A table of some layers that one block sorts each, and the number of blocks of their launch.
  std::pair<ShortTable, uint32_t> short_table(const Group& group, int first) const {
    ShortTable made{};
    made.count = std::min(group.count - first, kShort);
    made.workspace = workspace_;
    made.to = table + group.first + first;
    made.states = states + group.first + first;
    const auto units = [&](const void* at) {
      return static_cast<uint32_t>((static_cast<const char*>(at) - workspace_) / kUnit);
    };
    for (int i = 0; i < made.count; ++i) {
      const Entry& e = entries[static_cast<size_t>(group.first + first + i)];
      made.entries[i] = {e.data, e.out, static_cast<int32_t>(e.stride_outer), static_cast<int32_t>(e.stride_inner),
                         static_cast<int32_t>(e.stride_channel), static_cast<int32_t>(e.stride_tap), e.inner,
                         e.filters, e.channels, e.taps, units(e.points), units(e.sums), e.start[kMain], e.dtype};
    }
    made.first_block = made.entries[0].start;
    const int next = first + made.count;
    const uint32_t end = next < group.count ? entries[static_cast<size_t>(group.first + next)].start[kMain]
                                            : group.blocks[kMain];
    return {made, end - made.first_block};
  }

  // The number of layers, the first ones, whose table is an argument of the kernel that sorts them.
  int carried_by_sorts() const {
    int carried = 0;
    for (const Way way : {Way::Narrow, Way::Wide}) {
      for (const Group& group : groups[static_cast<int>(way)]) carried += measured ? group.count : 0;
    }
    return carried;
  }

  bool measured;  // tau is measured: the mean distance is needed
  std::vector<Entry> entries;
  Group groups[kWays][2];  // by kernels, then float and double
  Entry* table;
  State* states;

 private:
  void* take(int64_t size) {
    char* at = workspace_ + taken_;
    taken_ += blocks(size, kUnit) * kUnit;
    return at;
  }

  static uint32_t advance(uint32_t& total, int64_t more) {
    const uint32_t start = total;
    if (more > 0x7fffffff - static_cast<int64_t>(total)) throw std::invalid_argument("too many blocks for one launch");
    total += static_cast<uint32_t>(more);
    return start;
  }

  static int32_t small(int64_t n) {
    if (n > 0x3fffffff) throw std::invalid_argument("a layer with a dimension above 2^30");
    return static_cast<int32_t>(n);
  }

  void add(const Layer& layer, const Formula& formula, Way way, Group& group) {
    const int64_t size = layer.dtype == DType::F64 ? 8 : 4, n = layer.filters(), c = layer.channels;
    Entry entry{};
    entry.data = layer.data;
    entry.out = layer.out;
    entry.stride_outer = layer.stride_outer;
    entry.stride_inner = layer.stride_inner;
    entry.stride_channel = layer.stride_channel;
    entry.stride_tap = layer.stride_tap;
    entry.inner = small(layer.inner);
    entry.filters = small(n);
    entry.channels = small(c);
    entry.taps = small(layer.taps);
    entry.dtype = layer.dtype;
    const int64_t tile = size == 8 ? kTile<double> : kTile<float>;
    int64_t main = n, sums = n, parts = 0, points = 0;  // counts of blocks, sums, doubles, numbers
    const double pairs = static_cast<double>(c) * static_cast<double>(c) * static_cast<double>(n);
    entry.denominator = pairs;
    switch (way) {
      case Way::Narrow:
      case Way::Wide:
        main = a_warp_each(c, size == 8, formula.entropy) ? blocks(n, kNarrow) : n;
        points = measured ? n * padded_channels(c) : 0;
        entry.denominator = static_cast<double>(n);  // each sum is a mean already
        entry.scale = 0.5;
        break;
      case Way::Long:
        main = sums = n * blocks(c, run_of_type(layer.dtype));
        points = n * c;
        parts = main + main * 2 * 2;  // entropies, and two carries of two numbers
        entry.spare = take(points * size);
        entry.denominator = static_cast<double>(n);
        entry.scale = 0.5;
        entry.parts_a_filter = small(blocks(c, run_of_type(layer.dtype)));
        break;
      case Way::Line:
      case Way::Channels:
        entry.parts_a_filter =
            small(blocks(c, way == Way::Line ? int64_t(kLineThreads) * rows_a_thread(c) : tile));
        main = sums = parts = n * entry.parts_a_filter;
        points = way == Way::Line ? n * c : 0;
        if (way == Way::Channels && layer.taps >= kProducts) entry.spare = take(n * c * size);
        break;
      case Way::Filters:
      case Way::Products: {
        const int64_t strips = blocks(n, way == Way::Products ? int64_t(kSquare) : tile);
        sums = strips * (strips + 1) / 2;
        main = sums * (way == Way::Products ? scratch_of(layer, formula).splits : 1);
        parts = strips * n * 2;
        entry.parts_a_filter = small(strips);
        points = formula.compress == Compress::None ? 0 : n * c;
        entry.denominator = static_cast<double>(n) * static_cast<double>(n);
        entry.spare = take(way == Way::Products ? scratch_bytes(layer, formula) : n * size);
        break;
      }
    }
    entry.points = take(points * size);
    entry.sums = static_cast<double*>(take(sums * 8));
    entry.parts = static_cast<double*>(take(parts * 8));
    entry.sums_count = measured || way == Way::Long ? small(sums) : 0;
    entry.start[kFilters] = advance(group.blocks[kFilters], n);
    entry.start[kMain] = advance(group.blocks[kMain], main);
    entry.start[kRows] = advance(group.blocks[kRows], way == Way::Long ? blocks(n * c, 256) : blocks(n, 128));
    group.most_channels = std::max(group.most_channels, c);
    entries.push_back(entry);
  }

  char* workspace_;
  int64_t taken_ = 0;
};

}  // namespace fec::cuda
