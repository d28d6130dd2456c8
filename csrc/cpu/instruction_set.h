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
}  // namespace
}  // namespace FEC_SET

const Kernels FEC_KERNELS = {
    FEC_SET::largest,
    {FEC_SET::Of<float>::lanes, FEC_SET::sort_block<float>, FEC_SET::scan_block<float>, FEC_SET::distance_tile<float>,
     FEC_SET::tile_sums<float>},
    {FEC_SET::Of<double>::lanes, FEC_SET::sort_block<double>, FEC_SET::scan_block<double>,
     FEC_SET::distance_tile<double>, FEC_SET::tile_sums<double>},
};

}  // namespace fec::cpu
