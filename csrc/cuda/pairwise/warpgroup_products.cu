// The launch of the products for sm_90a: a file of its own, which is compiled for nothing else.
#include "cuda/launches.h"
#include "cuda/pairwise/warpgroup_tiles.cuh"

namespace fec::cuda {

void launch_warpgroup_tiles(const Call& call, const Group& group, bool compressed) {
  check(cudaFuncSetAttribute(warpgroup_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(GroupMemory)),
        "reserving shared memory");
  LAUNCH(warpgroup_tiles, group.blocks[kMain], kSquareThreads, sizeof(GroupMemory), call.stream,
         call.plan.range(group), compressed);
  check_launch("warpgroup_tiles");
}

cudaError_t warpgroup_attributes(cudaFuncAttributes* attributes) {
  return cudaFuncGetAttributes(attributes, warpgroup_tiles);
}

}  // namespace fec::cuda
