#include "cuda/sorted/sorted_launches.h"

namespace fec::cuda {
template void sort_layers<float>(const Call&);
template void finish_sorted<float>(const Call&);
}  // namespace fec::cuda
