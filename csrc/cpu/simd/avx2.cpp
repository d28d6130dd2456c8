#define FEC_SET avx2
#define FEC_KERNELS avx2_kernels
#define FEC_BYTES 32
#include "cpu/simd/instruction_set-inl.h"
