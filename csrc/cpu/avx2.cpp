#define FEC_SET avx2
#define FEC_KERNELS avx2_kernels
#define FEC_BYTES 32
#include "instruction_set.h"
