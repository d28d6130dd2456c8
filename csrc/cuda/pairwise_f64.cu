#include "pairwise_launch.h"

namespace fec::cuda {
template void measure_pairs<double>(const Call&);
template void finish_pairs<double>(const Call&);
}  // namespace fec::cuda
