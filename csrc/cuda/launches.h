// The launches of one call, in stream order. Each phase processes all layers.
#pragma once

#include "cuda/api.h"
#include "cuda/launch_plan.h"

namespace fec::cuda {

// The arguments of every launch.
struct Call {
  const Plan& plan;
  Choice choice;
  cudaStream_t stream;
  TensorCores tensor_cores;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// One file per type and kernel family, so that they compile in parallel.
template <class T>
void sort_layers(const Call& call);  // before tau is known: sorted numbers and mean distances
template <class T>
void finish_sorted(const Call& call);  // after tau is known
template <class T>
void measure_pairs(const Call& call);
template <class T>
void finish_pairs(const Call& call);
void keep_pairs(const Call& call);  // the layers whose distances are kept: first these, then what is made of them
void finish_kept(const Call& call);
#ifdef FEC_WITH_WGMMA
void launch_warpgroup_tiles(const Call& call, const Group& group, bool compressed);
cudaError_t warpgroup_attributes(cudaFuncAttributes* attributes);
#endif

}  // namespace fec::cuda
