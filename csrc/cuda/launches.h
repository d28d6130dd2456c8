// The launches of one call, in the order of the stream: each of the phases does all layers.
#pragma once

#include "cuda/api.h"
#include "cuda/launch_plan.h"

namespace fec::cuda {

// What every launch needs.
struct Call {
  const Plan& plan;
  Choice choice;
  cudaStream_t stream;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// By type, in files of their own: so the compiler can work on them side by side.
template <class T>
void sort_layers(const Call& call);  // before tau: sorted numbers and mean distances
template <class T>
void finish_sorted(const Call& call);  // after it
template <class T>
void measure_pairs(const Call& call);
template <class T>
void finish_pairs(const Call& call);

}  // namespace fec::cuda
