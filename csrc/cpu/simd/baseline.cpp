#define FEC_SET baseline
#define FEC_KERNELS baseline_kernels
#define FEC_BYTES 16
#include "cpu/simd/instruction_set-inl.h"
