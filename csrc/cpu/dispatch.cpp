// Chooses the instruction set: one given by name, else the fastest that the processor has.
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/self_timing.h"

namespace fec {
namespace {

InstructionSet* detect() {
  static InstructionSet sets[] = {
      {"baseline", true, 0},
#ifdef FEC_X86
      {"avx2", false, 0},
      {"avx512", false, 0},
#endif
      {nullptr, false, 0}};
#ifdef FEC_X86
  __builtin_cpu_init();
  sets[1].usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets[2].usable = sets[1].usable && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return sets;
}

const cpu::Kernels* const kBuilt[] = {&cpu::baseline_kernels,
#ifdef FEC_X86
                                      &cpu::avx2_kernels, &cpu::avx512_kernels
#endif
};

// The sets with their timings, and the index of the one that runs. The baseline is not timed where there is another:
// it has vectors of half the width and no multiply-add.
struct Choice {
  std::vector<InstructionSet> sets;
  int index = 0;

  Choice() {
    std::vector<int> usable;
    for (const InstructionSet* set = instruction_sets(); set->name != nullptr; ++set) {
      if (set->usable) usable.push_back(static_cast<int>(sets.size()));
      sets.push_back(*set);
    }
    index = usable.back();
    if (usable.size() > 2) {
      usable.erase(usable.begin());
      std::vector<const cpu::Kernels*> kernels;
      for (const int i : usable) kernels.push_back(kBuilt[i]);
      std::vector<double> seconds(usable.size());
      cpu::time_kernels(kernels.data(), static_cast<int>(kernels.size()), seconds.data());
      for (size_t i = 0; i < usable.size(); ++i) sets[static_cast<size_t>(usable[i])].seconds = seconds[i];
      index = usable[static_cast<size_t>(cpu::fastest_of(seconds.data(), static_cast<int>(seconds.size())))];
    }
    sets.push_back({nullptr, false, 0});
  }
};

// Made at first use, by one thread while others wait for it.
const Choice& choice() {
  static const Choice made;
  return made;
}

}  // namespace

const InstructionSet* instruction_sets() {
  static const InstructionSet* sets = detect();
  return sets;
}

const InstructionSet* timed_instruction_sets() { return choice().sets.data(); }

const char* fastest_instruction_set() { return choice().sets[static_cast<size_t>(choice().index)].name; }

namespace cpu {

const Kernels& kernels_named(const char* name) {
  if (*name == 0) return *kBuilt[choice().index];
  int i = 0;
  for (const InstructionSet* set = instruction_sets(); set->name != nullptr; ++set, ++i) {
    if (std::strcmp(set->name, name) != 0) continue;
    if (!set->usable) throw std::invalid_argument(std::string("this processor has no ") + name);
    return *kBuilt[i];
  }
  throw std::invalid_argument(std::string("unknown instruction set ") + name);
}

}  // namespace cpu
}  // namespace fec
