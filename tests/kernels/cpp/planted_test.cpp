// Tests that the emulator detects bugs: they are planted in the kernels one at a time, and each has to be caught.
//
// A removed barrier: each barrier in the sources in turn. Under the thread sanitizer each has to show as a race (or a
// wrong result). Without it a run may be right by chance, so only the count is printed, and it must not be zero. An
// index past the end: under the address sanitizer. Wrong descriptors of matrices, and a warpgroup that is not all there.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/api.h"
#include "emulator.h"
#include "formula_check.h"

#include "cuda/pairwise/warpgroup.cuh"
#include "cuda/portable.h"

#ifdef FEC_TSAN
extern "C" const char* __tsan_default_options() {
  return "suppress_equal_stacks=0:suppress_equal_addresses=0:exitcode=0:symbolize=0";
}
#endif

namespace {

int failures = 0;

void require(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "caught" : "NOT CAUGHT", what);
  failures += !holds;
}

using fec::cuda::TensorCores;
constexpr fec::Formula kBetween{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1};

// One call of a kind of kernel, unless something was seen already; adds up how many entropies were wrong.
struct Runs {
  std::mt19937 random{3};
  int wrong = 0;

  bool seen() const { return wrong > 0 || emulator::seen.races > 0 || emulator::seen.fault[0] != 0; }

  void run_one(Shape s, fec::DType dtype, fec::Formula f, fec::Algorithm algorithm, Layout layout, double common = 0,
               TensorCores tensor_cores = TensorCores::Mma) {
    if (seen()) return;
    fec::Layer layer = strided(s, layout);
    std::vector<double> w = random_weights(static_cast<size_t>(s.outer * s.inner * s.channels * s.taps), random);
    for (double& x : w) x += common;
    const std::vector<char> bytes = stored(w, dtype);
    std::vector<double> out(static_cast<size_t>(layer.filters()));
    layer.data = bytes.data();
    layer.dtype = dtype;
    layer.algorithm = algorithm;
    layer.out = out.data();
    const int64_t size = fec::cuda::workspace_bytes(&layer, 1, f);
    char* workspace = static_cast<char*>(std::aligned_alloc(256, static_cast<size_t>(size)));
    std::memset(workspace, 0xff, static_cast<size_t>(size));
    fec::cuda::entropies(&layer, 1, f, workspace, size, 0, nullptr, tensor_cores);
    std::free(workspace);
    const std::vector<double> want = reference(w, layer, f);
    for (size_t i = 0; i < out.size(); ++i) wrong += !(std::fabs(out[i] - want[i]) <= tolerance(dtype, 2000));
  }

  // Both of a block, with more slices than stages; the last one lies where the distances are made.
  void warpgroups() {
    run_one({1, 70, 250, 1}, fec::DType::F32, kBetween, fec::Algorithm::Pairwise, Layout::Rows, 0, TensorCores::Wgmma);
  }
};

// One call of each kind of kernel that has barriers; whether something was wrong.
bool run_all() {
  using namespace fec;
  Runs runs;
  const auto run_one = [&](auto... arguments) { runs.run_one(arguments...); };
  runs.warpgroups();
  const Formula sorted{Compress::Rms, Entropy::Similarity, Axis::Channels, 0, 1};
  const Formula none{Compress::None, Entropy::Similarity, Axis::Channels, 0, 1};
  const Formula& filters = kBetween;
  const Formula compressed{Compress::Rms, Entropy::Similarity, Axis::Filters, 0, 1};
  run_one(Shape{1, 2, 40, 9}, DType::F32, sorted, Algorithm::Sorted, Layout::Rows);  // taps in lines
  run_one(Shape{1, 2, 40, 25}, DType::F32, sorted, Algorithm::Sorted, Layout::Rows);  // and in rows
  run_one(Shape{1, 2, 600, 1}, DType::F32, sorted, Algorithm::Sorted, Layout::Rows);
  run_one(Shape{1, 2, 300, 9}, DType::F32, sorted, Algorithm::Pairwise, Layout::Rows);
  run_one(Shape{1, 2, 70, 9}, DType::F32, none, Algorithm::Pairwise, Layout::Rows);
  run_one(Shape{1, 40, 30, 1}, DType::F64, filters, Algorithm::Pairwise, Layout::Rows);
  run_one(Shape{1, 40, 20, 1}, DType::F32, filters, Algorithm::Pairwise, Layout::Rows);  // few coordinates
  run_one(Shape{1, 140, 100, 1}, DType::F32, filters, Algorithm::Pairwise, Layout::Rows);  // distances kept
  run_one(Shape{1, 34, 1600, 1}, DType::F32, filters, Algorithm::Pairwise, Layout::Rows);  // two blocks share a tile
  run_one(Shape{1, 140, 40, 1}, DType::F32, filters, Algorithm::Pairwise, Layout::Rows, 9.0);  // all pairs near
  run_one(Shape{1, 40, 300, 4}, DType::F32, compressed, Algorithm::Pairwise, Layout::Rows);
  run_one(Shape{1, 1, 4100, 1}, DType::F64, sorted, Algorithm::Sorted, Layout::Rows);
  return runs.seen();
}

// Runs this program again with some arguments; true if a sanitizer ends it or it reports an error. In a process of its
// own, because data that is read without a barrier may be an address.
const char* program = "";
bool dies(const std::string& arguments) {
  std::fflush(stdout);
  const std::string command = "'" + std::string(program) + "' " + arguments + " >/dev/null 2>&1";
  return std::system(command.c_str()) != 0;
}

[[maybe_unused]] void removed_barriers() {
  emulator::reset();
  const bool sound = !run_all();
  if (!sound) std::printf("%d races, fault: %s\n", emulator::seen.races, emulator::seen.fault);
  require(sound, "(nothing, where nothing is planted)");
  require(!dies("barrier none 1"), "(nothing, where no barrier is removed)");
  int caught = 0;
  const int count = emulator::barriers_count;
  for (int b = 0; b < count; ++b) {
    const char* slash = std::strrchr(emulator::barriers[b].file, '/');
    const std::string file = slash == nullptr ? emulator::barriers[b].file : slash + 1;
    const std::string line = std::to_string(emulator::barriers[b].line);
    const bool seen = dies("barrier '" + file + "' " + line);
    caught += seen;
    std::printf("%s: the barrier at %s:%s removed\n", seen ? "caught" : "not seen", file.c_str(), line.c_str());
  }
  emulator::reset();
  std::printf("%d of %d removed barriers were caught\n", caught, count);
#ifdef FEC_TSAN
  failures += caught != count;
#else
  failures += caught == 0;
#endif
}

__global__ void outside_mask(int* out) {
  if (fec::cuda::lane() < 16) *out = __shfl_sync(0xffffu, fec::cuda::lane(), 20);
}
__global__ void not_all_there(int* out) {
  if (fec::cuda::lane() < 16) *out = __shfl_xor_sync(fec::cuda::kAll, fec::cuda::lane(), 1);
}
__global__ void barrier_in_a_branch(int*) {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void part_of_a_warpgroup(int*) {
  DYN_SHARED(float, shared);
  float sums[64] = {};
  shared[threadIdx.x] = 0;
  fec::cuda::begin_products();
  if (threadIdx.x < 96) {
    fec::cuda::start_product(sums, fec::cuda::matrix_at(shared), fec::cuda::matrix_at(shared), false);
  }
  fec::cuda::commit_products();
  fec::cuda::wait_products<0>(sums);
}
__global__ void wants_shared_memory(int* out) {
  DYN_SHARED(int, shared);
  if (shared == nullptr) *out = 1;
}
__global__ void past_shared_memory(int*) {
  DYN_SHARED(int, shared);
  shared[threadIdx.x + 1] = 0;
}
__global__ void past_global_memory(int* out) { out[threadIdx.x + 1] = 0; }

template <class F>
bool fault_of(const char* words, const F& launch) {
  emulator::reset();
  launch();
  const bool reported = std::strstr(emulator::seen.fault, words) != nullptr;
  if (!reported) std::printf("fault: %s\n", emulator::seen.fault);
  return reported;
}

}  // namespace

int main(int argc, char** argv) {
  program = argv[0];
  std::vector<int> out(64);
  int* at = out.data();
  if (argc == 4) {
    emulator::settings.removed_file = argv[2];
    emulator::settings.removed_line = std::atoi(argv[3]);
    return run_all() ? 1 : 0;
  }
  if (argc == 3 && std::strcmp(argv[1], "descriptor") == 0) {
    emulator::settings.wrong_bits = std::strtoull(argv[2], nullptr, 10);
    Runs runs;
    runs.warpgroups();
    return runs.seen() ? 1 : 0;
  }
  if (argc == 3) {
    const auto threads = static_cast<unsigned>(std::atoi(argv[2]));
    if (std::strcmp(argv[1], "shared") == 0) LAUNCH(past_shared_memory, 1, threads, 32 * sizeof(int), nullptr, at);
    else LAUNCH(past_global_memory, 1, threads, 0, nullptr, at);
    return 0;
  }
#ifdef FEC_ASAN
  std::printf("barriers are removed where the thread sanitizer looks, or none\n");
#else
  removed_barriers();
#endif
#ifndef FEC_TSAN  // a thread that is left behind in the middle of a kernel looks like a race to what comes after it
  // First: the others leave threads behind, whose stacks are used again.
  require(fault_of("of a warpgroup", [&] { LAUNCH(part_of_a_warpgroup, 1, 128, 48 << 10, nullptr, at); }),
          "a product by three of four warps");
  require(fault_of("not in the mask", [&] { LAUNCH(outside_mask, 1, 32, 0, nullptr, at); }),
          "a shuffle outside its mask");
  require(fault_of("another way", [&] { LAUNCH(not_all_there, 1, 32, 0, nullptr, at); }),
          "a shuffle without all of its lanes");
  require(fault_of("another way", [&] { LAUNCH(barrier_in_a_branch, 1, 64, 0, nullptr, at); }),
          "a barrier in a branch");
  const std::pair<uint64_t, const char*> wrong[] = {{uint64_t(3) << 62, "a descriptor with another swizzle"},
                                                    {uint64_t(1) << 62, "a descriptor without swizzle"},
                                                    {uint64_t(1) << 35, "a descriptor with another stride"},
                                                    {1, "a descriptor of other coordinates"},
                                                    {uint64_t(1) << 49, "a descriptor with a base offset"}};
  require(!dies("descriptor 0"), "(nothing, with descriptors as they are)");
  for (const auto& [bits, what] : wrong) require(dies("descriptor " + std::to_string(bits)), what);
  require(fault_of("wants", [&] { LAUNCH(wants_shared_memory, 1, 32, 0, nullptr, at); }), "no shared memory at all");
#endif
#ifdef FEC_ASAN
  require(dies("shared 32"), "an index past shared memory");
  require(dies("global 64"), "an index past global memory");
  require(!dies("global 63"), "(nothing, at the last index)");
#endif
  emulator::reset();
  std::printf("%s\n", failures == 0 ? "every planted bug was caught" : "FAILED");
  return failures == 0 ? 0 : 1;
}
