// The driver of one call: uploads what no other kernel carries of the table, then launches the phases, each for all layers.
#include "cuda/launches.h"
#include "cuda/layer_kernels.cuh"

namespace fec::cuda {
namespace {

// Sets the current device, and restores the previous one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "getting the current device");
    if (device != before_) check(cudaSetDevice(device), "choosing the device");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

void upload_table(const Call& call) {
  const auto& entries = call.plan.entries;
  for (auto first = static_cast<size_t>(call.plan.carried_by_sorts()); first < entries.size(); first += kCarried) {
    Carried carried{};
    carried.count = static_cast<int>(std::min(entries.size() - first, size_t(kCarried)));
    std::copy_n(entries.begin() + static_cast<std::ptrdiff_t>(first), carried.count, carried.entries);
    carried.to = call.plan.table + first;
    carried.states = call.plan.states + first;
    LAUNCH(upload, 1, 32, 0, call.stream, carried);
    check_launch("upload");
  }
}

void launch_all(const Call& call) {
  upload_table(call);
  sort_layers<float>(call);
  sort_layers<double>(call);
  measure_pairs<float>(call);
  measure_pairs<double>(call);
  keep_pairs(call);
  LAUNCH(set_tau, static_cast<unsigned>(call.plan.entries.size()), 256, 8 * sizeof(double), call.stream,
         call.plan.all(), call.choice);
  check_launch("set_tau");
  finish_sorted<float>(call);
  finish_sorted<double>(call);
  finish_pairs<float>(call);
  finish_pairs<double>(call);
  finish_kept(call);
}

// Whether a kernel has code for the current device, from the result of a look at it.
bool has_code(cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();  // resets the error: it is the answer
    return false;
  }
  check(error, "reading the attributes of a kernel");
  return true;
}

}  // namespace

int64_t workspace_bytes(const Layer* layers, int64_t count, const Formula& formula, int64_t most_scratch) {
  if (most_scratch == 0) most_scratch = kMostScratch;
  int64_t bytes = 0;
  for (int64_t first = 0; first < count;) {
    const int64_t batch = together(layers + first, count - first, formula, most_scratch);
    bytes = std::max(bytes, Plan(layers + first, batch, formula, nullptr, most_scratch).bytes());
    first += batch;
  }
  return bytes;
}

void entropies(const Layer* layers, int64_t count, const Formula& formula, void* workspace, int64_t bytes, int device,
               void* stream, TensorCores tensor_cores, int64_t most_scratch) {
  if (most_scratch == 0) most_scratch = kMostScratch;
  if (reinterpret_cast<uintptr_t>(workspace) % 64 != 0) throw std::invalid_argument("the workspace is not aligned");
  if (workspace_bytes(layers, count, formula, most_scratch) > bytes) {
    throw std::invalid_argument("the workspace is too small");
  }
#ifndef FEC_WITH_WGMMA
  if (tensor_cores == TensorCores::Wgmma) throw std::invalid_argument("this build has no wgmma");
#endif
  if (bytes == 0) return;
  const DeviceGuard guard(device);
  for (int64_t first = 0; first < count;) {
    const int64_t batch = together(layers + first, count - first, formula, most_scratch);
    const Plan plan(layers + first, batch, formula, static_cast<char*>(workspace), most_scratch);
    if (!plan.entries.empty()) {
      launch_all({plan, {formula.compress, formula.entropy, formula.tau, formula.tau_scale},
                  static_cast<cudaStream_t>(stream), tensor_cores});
    }
    first += batch;
  }
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting the CUDA devices");
  return count;
}

bool has_code_for(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  return has_code(cudaFuncGetAttributes(&attributes, set_tau));
}

bool has_wgmma_for(int device) {
#ifdef FEC_WITH_WGMMA
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  return has_code(warpgroup_attributes(&attributes));
#else
  (void)device;
  return false;
#endif
}

}  // namespace fec::cuda
