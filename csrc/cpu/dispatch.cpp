// Chooses the instruction set: the widest one that the processor has, or one given by name.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace fec {
namespace {

const InstructionSet* detect() {
  static InstructionSet sets[] = {
      {"baseline", true},
#ifdef FEC_X86
      {"avx2", false},
      {"avx512", false},
#endif
      {nullptr, false}};
#ifdef FEC_X86
  __builtin_cpu_init();
  sets[1].usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets[2].usable = sets[1].usable && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return sets;
}

}  // namespace

const InstructionSet* instruction_sets() {
  static const InstructionSet* sets = detect();
  return sets;
}

namespace cpu {

const Kernels& kernels_named(const char* name) {
  const Kernels* built[] = {&baseline_kernels,
#ifdef FEC_X86
                            &avx2_kernels, &avx512_kernels
#endif
  };
  const Kernels* widest = nullptr;
  for (int i = 0; instruction_sets()[i].name != nullptr; ++i) {
    const InstructionSet& set = instruction_sets()[i];
    if (std::strcmp(set.name, name) == 0) {
      if (!set.usable) throw std::invalid_argument(std::string("this processor has no ") + name);
      return *built[i];
    }
    if (set.usable) widest = built[i];
  }
  if (*name != 0) throw std::invalid_argument(std::string("unknown instruction set ") + name);
  return *widest;
}

}  // namespace cpu
}  // namespace fec
