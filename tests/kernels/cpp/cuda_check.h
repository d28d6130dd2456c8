// Shared by the tests of the CUDA kernels under the emulator: weights with their reference, a run of the kernels, and the
// comparison of both.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/api.h"
#include "emulator.h"
#include "formula_check.h"

namespace {

int failures = 0, checks = 0;
int stream_of_test = 0;
bool few_orders = false;
int64_t most_scratch = 0;  // 0: the default
fec::cuda::TensorCores tensor_cores = fec::cuda::TensorCores::Mma;

void require(bool holds, const char* what) {
  ++checks;
  if (holds) return;
  ++failures;
  std::printf("failed: %s\n", what);
}

struct Weight {
  fec::Layer layer;
  std::vector<double> values, want, out;
  std::unique_ptr<char[]> bytes;  // no slack behind it: a read past the end is seen
  double allowed;
};

Weight weight(const Shape& s, Layout layout, fec::DType dtype, const fec::Formula& f, std::mt19937& random) {
  Weight made{strided(s, layout), {}, {}, {}, nullptr, 0};
  made.values = random_weights(static_cast<size_t>(s.outer * s.inner * s.channels * s.taps), random);
  const std::vector<char> bytes = stored(made.values, dtype);
  made.bytes.reset(new char[bytes.size()]);
  std::memcpy(made.bytes.get(), bytes.data(), bytes.size());
  made.layer.data = made.bytes.get();
  made.layer.dtype = dtype;
  made.want = reference(made.values, made.layer, f);
  made.out.assign(made.want.size(), -1);
  made.layer.algorithm = usual_on_cuda(made.layer, f);
  made.allowed = tolerance(dtype, double(f.axis == fec::Axis::Channels ? s.channels : made.layer.filters()));
  return made;
}

// Runs the kernels on layers, in a workspace of exactly the size requested, filled with NaN.
void run(std::vector<fec::Layer>& layers, const fec::Formula& f, int device = 0) {
  const auto count = static_cast<int64_t>(layers.size());
  const int64_t bytes = fec::cuda::workspace_bytes(layers.data(), count, f, most_scratch);
  const std::unique_ptr<char, void (*)(void*)> workspace(
      static_cast<char*>(std::aligned_alloc(256, static_cast<size_t>(bytes == 0 ? 256 : bytes))), std::free);
  std::memset(workspace.get(), 0xff, static_cast<size_t>(bytes));
  emulator::expect(&stream_of_test, device);
  emulator::reset();
  fec::cuda::entropies(layers.data(), count, f, workspace.get(), bytes, device, &stream_of_test, tensor_cores,
                       most_scratch);
  if (emulator::seen.fault[0] != 0) {
    ++failures;
    std::printf("the kernels: %s\n", emulator::seen.fault);
  }
  require(!emulator::seen.other_stream && !emulator::seen.other_device, "all launches on the stream and device given");
}

void compare(std::vector<Weight>& weights, const fec::Formula& f) {
  std::vector<double> before;
  for (const unsigned seed : {1u, 2u}) {  // another order of the threads: the same bits
    if (few_orders && seed > 1) break;
    emulator::settings.seed = seed * 7919;
    std::vector<fec::Layer> layers;
    for (Weight& w : weights) {
      std::fill(w.out.begin(), w.out.end(), -1.0);
      w.layer.out = w.out.data();
      layers.push_back(w.layer);
    }
    run(layers, f);
    std::vector<double> all;
    for (const Weight& w : weights) {
      double worst = 0;
      for (size_t i = 0; i < w.out.size(); ++i) {
        const double off = std::fabs(w.out[i] - w.want[i]);
        worst = off <= worst ? worst : off;  // NaN is the worst
      }
      all.insert(all.end(), w.out.begin(), w.out.end());
      ++checks;
      if (worst <= w.allowed) continue;
      ++failures;
      const fec::Layer& l = w.layer;
      std::printf(
          "dtype %d, strides %lld %lld %lld %lld, [%lld x %lld, %lld, %lld], compress %d entropy %d axis %d tau %g, "
          "algorithm %d: off by %.2e (allowed %.2e)\n",
          int(l.dtype), (long long)l.stride_outer, (long long)l.stride_inner, (long long)l.stride_channel,
          (long long)l.stride_tap, (long long)l.outer, (long long)l.inner, (long long)l.channels, (long long)l.taps,
          int(f.compress), int(f.entropy), int(f.axis), f.tau, int(l.algorithm), worst, w.allowed);
    }
    require(before.empty() || before == all, "the same bits whatever the order of the threads");
    before = all;
  }
}

void check(const Shape& s, Layout layout, fec::DType dtype, const fec::Formula& f, std::mt19937& random,
           bool pairwise = false) {
  std::vector<Weight> weights;
  weights.push_back(weight(s, layout, dtype, f, random));
  if (pairwise) weights[0].layer.algorithm = fec::Algorithm::Pairwise;
  compare(weights, f);
}

constexpr fec::Compress kCompress[] = {fec::Compress::Rms, fec::Compress::AbsMean, fec::Compress::Mean,
                                       fec::Compress::None};
constexpr fec::Entropy kEntropies[] = {fec::Entropy::Similarity, fec::Entropy::Softmax, fec::Entropy::Distance};
constexpr fec::DType kTypes[] = {fec::DType::F32, fec::DType::F64, fec::DType::F16, fec::DType::BF16};

}  // namespace
