// Which instruction set is the fastest here, by a timing of the kernels themselves. The widest one is not always: a
// processor may compute 64 bytes in two halves, or lower its clock for them.
#pragma once

#include "cpu/kernels.h"

namespace fec::cpu {

// A wider instruction set is left only for one that is faster by this factor: below it the choice would be noise.
constexpr double kMargin = 1.05;

// The seconds of one round of work in each set: the shortest of several, in turns. Well under a millisecond in all.
void time_kernels(const Kernels* const* sets, int count, double* seconds);

// The index of the set that runs, of `count` from the narrowest to the widest.
inline int fastest_of(const double* seconds, int count) {
  int best = count - 1;
  for (int i = count - 2; i >= 0; --i) {
    if (seconds[i] * kMargin < seconds[best]) best = i;
  }
  return best;
}

}  // namespace fec::cpu
