// The launches for layers whose distances between filters are kept.
#include "cuda/launches.h"
#include "cuda/layer_kernels.cuh"
#include "cuda/pairwise/kept_pairs.cuh"

namespace fec::cuda {

void keep_pairs(const Call& call) {
  const Group& group = call.plan.groups[int(Way::Products)][0];
  if (group.count == 0) return;
  const Range range = call.plan.range(group);
  const bool compressed = call.choice.compress != Compress::None;
  LAUNCH((largest_weights<float>), group.blocks[kFilters], 32, sizeof(unsigned long long), call.stream, range);
  check_launch("largest_weights");
  if (compressed) {
    LAUNCH((compress<float>), group.blocks[kFilters], 128, 4 * sizeof(SmallReader<float>), call.stream, range,
           call.choice.compress);
    check_launch("compress");
  }
  LAUNCH(split_points, group.blocks[kFilters], 32, 0, call.stream, range, compressed);
  check_launch("split_points");
#ifdef FEC_WITH_WGMMA
  if (call.tensor_cores == TensorCores::Wgmma) return launch_warpgroup_tiles(call, group, compressed);
#endif
  LAUNCH(product_tiles, group.blocks[kMain], kSquareThreads, sizeof(ProductShared), call.stream, range, compressed);
  check_launch("product_tiles");
}

void finish_kept(const Call& call) {
  const Group& group = call.plan.groups[int(Way::Products)][0];
  if (group.count == 0) return;
  const Range range = call.plan.range(group);
  LAUNCH(kept_pairs, group.blocks[kMain], kSquareThreads, sizeof(KeptShared), call.stream, range,
         call.choice.compress != Compress::None, terms_of(call.choice.entropy));
  check_launch("kept_pairs");
  LAUNCH(finish_rows, group.blocks[kRows], 128, 0, call.stream, range, call.choice.entropy);
  check_launch("finish_rows");
}

}  // namespace fec::cuda
