#include "cuda/pairwise/pairwise_launches.h"

namespace fec::cuda {
template void measure_pairs<double>(const Call&);
template void finish_pairs<double>(const Call&);
}  // namespace fec::cuda
