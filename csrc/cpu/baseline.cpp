#define FEC_SET baseline
#define FEC_KERNELS baseline_kernels
#define FEC_BYTES 16
#include "instruction_set.h"
