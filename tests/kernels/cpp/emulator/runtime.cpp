// The runtime: a fake that records its calls and fails where a test wants it to (emulator.h).
#include <map>

#include "emulator.h"

namespace {

std::map<const void*, size_t> allowed;  // bytes of shared memory, of kernels that may have more than others

}  // namespace

size_t emulator::most_shared(const void* kernel) {
  const auto own = allowed.find(kernel);
  return own == allowed.end() ? size_t(48) << 10 : own->second;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
         : error == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver"
         : error == cudaErrorInvalidDevice      ? "cudaErrorInvalidDevice"
         : error == cudaErrorNoDevice           ? "cudaErrorNoDevice"
         : error == cudaErrorLaunchOutOfResources ? "cudaErrorLaunchOutOfResources"
                                                  : "cudaError";
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "emulated failure"; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::pending_error;
  emulator::pending_error = cudaSuccess;
  return error;
}
cudaError_t cudaGetDevice(int* device) {
  if (emulator::settings.no_devices != cudaSuccess) return emulator::settings.no_devices;
  *device = emulator::seen.device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulator::settings.devices) return cudaErrorInvalidDevice;
  emulator::seen.device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulator::settings.no_devices == cudaSuccess ? emulator::settings.devices : 0;
  return emulator::settings.no_devices;
}
cudaError_t emulated_attributes(cudaFuncAttributes* attributes) {
  attributes->numRegs = 0;
  return emulator::settings.no_devices;
}
cudaError_t emulated_most_shared(const void* kernel, int bytes) {
  if (bytes > 227 << 10) return cudaErrorInvalidValue;
  allowed[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
