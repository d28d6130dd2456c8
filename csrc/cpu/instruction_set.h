// The body of every instruction-set file: the kernels at FEC_BYTES bytes a vector, in the namespace FEC_SET, under the
// name FEC_KERNELS. Those files are compiled with flags of their own, so nothing of the standard library's templates
// may be instantiated here, and everything has internal linkage.
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace fec::cpu {
namespace FEC_SET {
namespace {
#include "vector.h"

#include "gather.h"

#include "columns.h"

#include "sorted.h"

#include "scans.h"

#include "pack.h"

#include "pairwise.h"

#include "pairwise_channels.h"

#include "pairwise_filters.h"

template <class T>
constexpr Real kernels_for() {
  return {Of<T>::lanes,         sort_block<T>,    scan_block<T>, channel_distances<T>,
          channel_entropy<T>, distance_tile<T>, tile_sums<T>};
}
}  // namespace
}  // namespace FEC_SET

const Kernels FEC_KERNELS = {
    FEC_SET::largest,
    FEC_SET::kernels_for<float>(),
    FEC_SET::kernels_for<double>(),
};

}  // namespace fec::cpu
