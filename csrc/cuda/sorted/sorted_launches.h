// The launches of `sorted`, for one type.
#pragma once

#include "cuda/launches.h"
#include "cuda/layer_kernels.cuh"

namespace fec::cuda {

// The launches over a group of layers: for `Sort`, whose table is an argument, one for every kShort layers.
template <Task task, class F>
void for_each_table(const Call& call, const Group& group, F launch) {
  if constexpr (task == Task::Sort) {
    for (int first = 0; first < group.count; first += kShort) {
      const auto [table, blocks] = call.plan.short_table(group, first);
      launch(FirstSortWork{table, call.choice}, blocks);
    }
  } else if (group.count > 0) {
    launch(SortWork{call.plan.range(group), call.choice}, group.blocks[kMain]);
  }
}

template <class T, Task task>
void launch_filters(const Call& call) {
  for_each_table<task>(call, call.plan.groups[int(Way::Narrow)][sizeof(T) == 8], [&](const auto& work, uint32_t count) {
    LAUNCH((narrow_filters<T, task>), count, 32 * kNarrow, sizeof(SortShared<T, kNarrow>), call.stream, work);
    check_launch("narrow_filters");
  });
  for_each_table<task>(call, call.plan.groups[int(Way::Wide)][sizeof(T) == 8], [&](const auto& work, uint32_t count) {
    LAUNCH((wide_filters<T, task>), count, 32 * kWide, sizeof(SortShared<T, kWide>), call.stream, work);
    check_launch("wide_filters");
  });
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
