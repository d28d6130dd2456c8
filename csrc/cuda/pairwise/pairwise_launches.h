// The launches of `pairwise`, for one type.
#pragma once

#include "cuda/launches.h"
#include "cuda/layer_kernels.cuh"

namespace fec::cuda {

template <class T>
void launch_line(const Call& call, const Group& group, Terms terms) {
  const auto kernel = terms == Terms::Distances    ? line_pairs<T, Terms::Distances>
                      : terms == Terms::Similarity ? line_pairs<T, Terms::Similarity>
                      : terms == Terms::Softmax    ? line_pairs<T, Terms::Softmax>
                                                   : line_pairs<T, Terms::Distance>;
  LAUNCH(kernel, group.blocks[kMain], kLineThreads, sizeof(LineShared<T>), call.stream, call.plan.range(group));
  check_launch("line_pairs");
}

template <class T>
void launch_pairs(const Call& call, Terms terms) {
  const auto& groups = call.plan.groups;
  constexpr int type = sizeof(T) == 8;
  const bool compressed = call.choice.compress != Compress::None;
  if (const Group& line = groups[int(Way::Line)][type]; line.count > 0) launch_line<T>(call, line, terms);
  if (const Group& channels = groups[int(Way::Channels)][type]; channels.count > 0) {
    LAUNCH((channel_pairs<T>), channels.blocks[kMain], kTileThreads, sizeof(TileShared<T>), call.stream,
           PairWork{call.plan.range(channels), terms, false});
    check_launch("channel_pairs");
  }
  if (const Group& filters = groups[int(Way::Filters)][type]; filters.count > 0) {
    LAUNCH((filter_pairs<T>), filters.blocks[kMain], kTileThreads, sizeof(TileShared<T>), call.stream,
           PairWork{call.plan.range(filters), terms, compressed});
    check_launch("filter_pairs");
  }
}

template <class T>
void measure_pairs(const Call& call) {
  for (const Way way : {Way::Line, Way::Channels, Way::Filters}) {
    const Group& group = call.plan.groups[int(way)][sizeof(T) == 8];
    if (group.count == 0) continue;
    const Range range = call.plan.range(group);
    LAUNCH((largest_weights<T>), group.blocks[kFilters], 128, 4 * sizeof(unsigned long long), call.stream, range);
    check_launch("largest_weights");
    if (way == Way::Line || (way == Way::Filters && call.choice.compress != Compress::None)) {
      LAUNCH((compress<T>), group.blocks[kFilters], 128, 4 * sizeof(SmallReader<T>), call.stream, range,
             call.choice.compress);
      check_launch("compress");
    }
    if (way == Way::Line) continue;
    const auto lengths = way == Way::Channels ? squared_lengths<T, true> : squared_lengths<T, false>;
    const bool compressed = call.choice.compress != Compress::None;
    LAUNCH(lengths, group.blocks[kFilters], 128, 4 * sizeof(double), call.stream,
           PairWork{range, Terms::Distances, compressed});
    check_launch("squared_lengths");
  }
  if (call.plan.measured) launch_pairs<T>(call, Terms::Distances);
}

template <class T>
void finish_pairs(const Call& call) {
  launch_pairs<T>(call, terms_of(call.choice.entropy));
  for (const Way way : {Way::Line, Way::Channels, Way::Filters}) {
    const Group& group = call.plan.groups[int(way)][sizeof(T) == 8];
    if (group.count == 0) continue;
    if (way == Way::Filters) {
      LAUNCH(finish_rows, group.blocks[kRows], 128, 0, call.stream, call.plan.range(group), call.choice.entropy);
      check_launch("finish_rows");
    } else {
      LAUNCH(finish_parts, group.blocks[kRows], 128, 0, call.stream, call.plan.range(group));
      check_launch("finish_parts");
    }
  }
}

}  // namespace fec::cuda
