// The launches of `sorted`, for one type.
#pragma once

#include "cuda/launches.h"
#include "cuda/layer_kernels.cuh"

namespace fec::cuda {

template <class T, Task task>
void launch_filters(const Call& call) {
  const Group& narrow = call.plan.groups[int(Way::Narrow)][sizeof(T) == 8];
  const Group& wide = call.plan.groups[int(Way::Wide)][sizeof(T) == 8];
  if (narrow.count > 0) {
    LAUNCH((narrow_filters<T, task>), narrow.blocks[kMain], 32 * kNarrow, sizeof(SortShared<T, kNarrow>),
           call.stream, SortWork{call.plan.range(narrow), call.choice});
    check_launch("narrow_filters");
  }
  if (wide.count > 0) {
    LAUNCH((wide_filters<T, task>), wide.blocks[kMain], 32 * kWide, sizeof(SortShared<T, kWide>), call.stream,
           SortWork{call.plan.range(wide), call.choice});
    check_launch("wide_filters");
  }
}

// The number of levels of merging.
template <class T>
int merges(const Group& group) {
  int levels = 0;
  for (int64_t length = kRun<T>; length < group.most_channels; length *= 2) ++levels;
  return levels;
}

template <class T>
void sort_layers(const Call& call) {
  if (call.plan.measured) launch_filters<T, Task::Sort>(call);
  const Group& group = call.plan.groups[int(Way::Long)][sizeof(T) == 8];
  if (group.count == 0) return;
  const Range range = call.plan.range(group);
  constexpr int threads = 32 * kWide;
  LAUNCH((long_sort<T>), group.blocks[kMain], threads, sizeof(SortShared<T, kWide>), call.stream,
         SortWork{range, call.choice});
  check_launch("long_sort");
  const int levels = merges<T>(group);
  for (int level = 0; level < levels; ++level) {
    LAUNCH((long_merge<T>), group.blocks[kRows], 256, 0, call.stream, range, int64_t(kRun<T>) << level, level % 2 == 1);
    check_launch("long_merge");
  }
  LAUNCH((long_distances<T>), group.blocks[kMain], threads, kWide * sizeof(double), call.stream, range,
         levels % 2 == 1);
  check_launch("long_distances");
}

template <class T>
void finish_sorted(const Call& call) {
  if (call.plan.measured) launch_filters<T, Task::Scan>(call);
  else launch_filters<T, Task::Both>(call);
  const Group& group = call.plan.groups[int(Way::Long)][sizeof(T) == 8];
  if (group.count == 0) return;
  const Range range = call.plan.range(group);
  for (const bool reaching : {true, false}) {
    LAUNCH((long_scans<T>), group.blocks[kMain], 32 * kWide, sizeof(SortShared<T, kWide>), call.stream,
           LongWork{range, call.choice.entropy, merges<T>(group) % 2 == 1, reaching});
    check_launch("long_scans");
  }
  LAUNCH(finish_parts, group.blocks[kRows], 128, 0, call.stream, range);
  check_launch("finish_parts");
}

}  // namespace fec::cuda
