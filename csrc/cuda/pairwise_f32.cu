#include "pairwise_launch.h"

namespace fec::cuda {
template void measure_pairs<float>(const Call&);
template void finish_pairs<float>(const Call&);
}  // namespace fec::cuda
