// Replaces the CPU kernels in an extension that is built for its emulated CUDA kernels only.
#include "fec.h"

namespace fec {

const InstructionSet* instruction_sets() {
  static const InstructionSet none{nullptr, false};
  return &none;
}

int64_t entropies(const Layer*, int64_t, const Formula&, const Options&) { return -1; }

}  // namespace fec
