#define FEC_SET avx512
#define FEC_KERNELS avx512_kernels
#define FEC_BYTES 64
#include "cpu/simd/instruction_set-inl.h"
