#include "cuda/pairwise/pairwise_launches.h"

namespace fec::cuda {
template void measure_pairs<float>(const Call&);
template void finish_pairs<float>(const Call&);
}  // namespace fec::cuda
