// The body of every instruction-set file: the kernels with vectors of FEC_BYTES bytes, in the namespace FEC_SET, under
// the name FEC_KERNELS. Each file is compiled with its own flags, so no template of the standard library may be
// instantiated here, and everything has internal linkage.
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace fec::cpu {
namespace FEC_SET {
namespace {
#include "cpu/simd/vector-inl.h"

#include "cpu/simd/load_weights-inl.h"

#include "cpu/simd/compress-inl.h"

#include "cpu/simd/sort-inl.h"

#include "cpu/simd/scan-inl.h"

#include "cpu/simd/pack_points-inl.h"

#include "cpu/simd/pairwise-inl.h"

#include "cpu/simd/pairwise_channels-inl.h"

#include "cpu/simd/pairwise_filters-inl.h"

template <class T>
constexpr Real kernels_for() {
  return {Of<T>::lanes,     sort_block<T>,   scan_block<T>,        channel_distances<T>,  channel_entropy<T>,
          distance_tile<T>, pack_filters<T>, add_products_of<T>, distances_of<T>, tile_sums<T>};
}
}  // namespace
}  // namespace FEC_SET

const Kernels FEC_KERNELS = {
    FEC_SET::largest,
    FEC_SET::kernels_for<float>(),
    FEC_SET::kernels_for<double>(),
};

}  // namespace fec::cpu
