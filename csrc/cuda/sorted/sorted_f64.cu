#include "cuda/sorted/sorted_launches.h"

namespace fec::cuda {
template void sort_layers<double>(const Call&);
template void finish_sorted<double>(const Call&);
}  // namespace fec::cuda
