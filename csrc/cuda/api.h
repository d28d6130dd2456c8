// The C++ interface to the CUDA kernels. Pointers are device pointers. Nothing here waits for the device or allocates
// memory on it.
#pragma once

#include <stdexcept>
#include <string>

#include "fec.h"

namespace fec::cuda {

// An error of the CUDA runtime, with its message.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The instructions that multiply between filters: `mma.sync`, or `wgmma` of sm_90a.
enum class TensorCores { Mma, Wgmma };

// Bytes of device memory that `entropies` needs besides the weights, aligned to 64 bytes. `most_scratch`: see
// kMostScratch (launch_plan.h), which is the default; tests set it.
int64_t workspace_bytes(const Layer* layers, int64_t count, const Formula& formula, int64_t most_scratch = 0);

// Launches the kernels for all layers on a stream (a cudaStream_t) of a device. A layer with a weight that is not
// finite gets entropies that are NaN; other layers are not affected. Throws std::invalid_argument for a `Sorted` layer
// that is not sortable, for sizes that are out of range, and for Wgmma in a build without it, Error for an error of the
// runtime.
void entropies(const Layer* layers, int64_t count, const Formula& formula, void* workspace, int64_t bytes, int device,
               void* stream, TensorCores tensor_cores = TensorCores::Mma, int64_t most_scratch = 0);

// The number of devices. Throws Error if there is no driver, or one older than the build.
int device_count();

// Whether the build contains code for a device. Throws Error.
bool has_code_for(int device);

// Whether it contains code with `wgmma` for a device. Throws Error.
bool has_wgmma_for(int device);

}  // namespace fec::cuda
