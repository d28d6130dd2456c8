// The CUDA side of the C++ interface. Pointers are the device's; nothing here waits for it, or allocates on it.
#pragma once

#include <stdexcept>
#include <string>

#include "fec.h"

namespace fec::cuda {

// What the CUDA runtime refused, in its own words.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes of device memory that `entropies` needs beside the weights, at any address that 64 divides.
int64_t workspace_bytes(const Layer* layers, int64_t count, const Formula& formula);

// Puts the kernels for all layers into a stream (a cudaStream_t) of a device. Entropies that are NaN say that their
// layer has a weight that is not finite; those of other layers are sound. Throws std::invalid_argument for what the
// algorithm cannot do or is too large to count, Error for what the runtime refuses.
void entropies(const Layer* layers, int64_t count, const Formula& formula, void* workspace, int64_t bytes, int device,
               void* stream);

// The devices that the driver shows. Throws Error where there is no driver, or one older than the build.
int device_count();

// Whether the build has code for a device. Throws Error.
bool has_code_for(int device);

}  // namespace fec::cuda
