// The kernels against a plain double-precision formula, without Python: every instruction set, storage type, layout,
// axis and entropy, shapes around the edges of vectors, panels, tiles and batches, on one and on three threads. Meant
// to run under sanitizers: every weight lies in an allocation of exactly its size.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "fec.h"

namespace {

int failures = 0, checks = 0;

struct Shape {
  int64_t outer, inner, channels, taps;
};

enum class Layout { Rows, ChannelsLast, SecondAxis };
const char* const kLayouts[] = {"rows", "channels last", "second axis"};

fec::Layer strided(const Shape& s, Layout layout) {
  fec::Layer layer{nullptr, fec::DType::F32, s.outer, s.inner, s.channels, s.taps, 0, 0, 0, 0, nullptr};
  if (layout == Layout::SecondAxis) {  // filters on the second axis: [outer * channels, inner, taps]
    layer.stride_tap = 1;
    layer.stride_inner = s.taps;
    layer.stride_channel = s.inner * s.taps;
    layer.stride_outer = s.channels * s.inner * s.taps;
  } else {
    const bool last = layout == Layout::ChannelsLast;
    layer.stride_tap = last ? s.channels : 1;
    layer.stride_channel = last ? 1 : s.taps;
    layer.stride_inner = s.channels * s.taps;
    layer.stride_outer = s.inner * s.channels * s.taps;
  }
  return layer;
}

double point(const std::vector<double>& w, const fec::Layer& l, fec::Compress compress, int64_t filter, int64_t channel,
             int64_t tap) {
  const int64_t at = filter / l.inner * l.stride_outer + filter % l.inner * l.stride_inner + channel * l.stride_channel;
  if (compress == fec::Compress::None) return w[static_cast<size_t>(at + tap * l.stride_tap)];
  double sum = 0;
  for (int64_t t = 0; t < l.taps; ++t) {
    const double x = w[static_cast<size_t>(at + t * l.stride_tap)];
    sum += compress == fec::Compress::Rms ? x * x : compress == fec::Compress::AbsMean ? std::fabs(x) : x;
  }
  sum /= double(l.taps);
  return compress == fec::Compress::Rms ? std::sqrt(sum) : sum;
}

std::vector<double> reference(const std::vector<double>& w, const fec::Layer& l, const fec::Formula& f) {
  const bool inside = f.axis == fec::Axis::Channels;
  const int64_t filters = l.filters(), groups = inside ? filters : 1, points = inside ? l.channels : filters;
  const int64_t numbers = f.compress == fec::Compress::None ? l.taps : 1, size = (inside ? 1 : l.channels) * numbers;
  std::vector<double> d(static_cast<size_t>(groups * points * points)), x(static_cast<size_t>(points * size));
  double total = 0;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t p = 0; p < points; ++p) {
      for (int64_t k = 0; k < size; ++k) {
        x[static_cast<size_t>(p * size + k)] =
            point(w, l, f.compress, inside ? g : p, inside ? p : k / numbers, k % numbers);
      }
    }
    for (int64_t a = 0; a < points; ++a) {
      for (int64_t b = 0; b < points; ++b) {
        double sum = 0;
        for (int64_t k = 0; k < size; ++k) {
          const double gap = x[static_cast<size_t>(a * size + k)] - x[static_cast<size_t>(b * size + k)];
          sum += gap * gap;
        }
        total += d[static_cast<size_t>((g * points + a) * points + b)] = std::sqrt(sum);
      }
    }
  }
  const double tau = total / double(groups * points * points);
  std::vector<double> out(static_cast<size_t>(filters));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t a = 0; a < points; ++a) {
      double first = 0, second = 0;
      for (int64_t b = 0; b < points; ++b) {
        const double u = d[static_cast<size_t>((g * points + a) * points + b)] / tau;
        const double z = std::exp(-u);
        first += f.entropy == fec::Entropy::Distance ? u : z;
        second += f.entropy == fec::Entropy::Distance ? (u > 0 ? u * std::log(u) : 0) : z * u;
      }
      double nats = -std::log(first / double(points));
      if (f.entropy == fec::Entropy::Softmax) nats = std::log(first) + second / first;
      if (f.entropy == fec::Entropy::Distance) nats = first > 0 ? std::log(first) - second / first : 0;
      out[static_cast<size_t>(inside ? g : a)] += nats / double(inside ? points : 1);
    }
  }
  return out;
}

// Rounds the weights to the storage type and returns its bytes.
std::vector<char> stored(std::vector<double>& w, fec::DType dtype) {
  const size_t size = dtype == fec::DType::F64 ? 8 : dtype == fec::DType::F32 ? 4 : 2;
  std::vector<char> bytes(w.size() * size);
  for (size_t i = 0; i < w.size(); ++i) {
    char* to = bytes.data() + i * size;
    if (dtype == fec::DType::F64) {
      std::memcpy(to, &w[i], 8);
      continue;
    }
    float single = static_cast<float>(w[i]);
    uint32_t bits = 0;
    std::memcpy(&bits, &single, 4);
    if (dtype == fec::DType::BF16) bits &= 0xffff0000u;
    if (dtype == fec::DType::F16) bits &= 0xffffe000u;  // ten bits of fraction; the weights are normal in float16
    std::memcpy(&single, &bits, 4);
    w[i] = single;
    const auto exponent = static_cast<uint16_t>(((bits >> 23) & 255u) - 112u);
    const auto half = static_cast<uint16_t>((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3ffu));
    const auto upper = static_cast<uint16_t>(bits >> 16);
    if (dtype == fec::DType::F32) std::memcpy(to, &bits, 4);
    else std::memcpy(to, dtype == fec::DType::F16 ? &half : &upper, 2);
  }
  return bytes;
}

void check(const Shape& s, Layout layout, fec::DType dtype, const fec::Formula& f, std::mt19937& random) {
  fec::Layer layer = strided(s, layout);
  std::vector<double> w(static_cast<size_t>(s.outer * s.inner * s.channels * s.taps));
  std::uniform_real_distribution<double> size(0.01, 1.0);
  for (double& x : w) x = random() % 2 ? size(random) : -size(random);
  const std::vector<char> bytes = stored(w, dtype);
  const std::unique_ptr<char[]> exact(new char[bytes.size()]);  // no slack behind it: a read past the end is seen
  std::memcpy(exact.get(), bytes.data(), bytes.size());
  std::vector<double> out(static_cast<size_t>(layer.filters()), -1), again(out), before;
  layer.data = exact.get();
  layer.dtype = dtype;
  layer.out = out.data();
  const std::vector<double> want = reference(w, layer, f);
  // The rule of fec_fast.reference.tolerance.
  const double points = double(f.axis == fec::Axis::Channels ? s.channels : layer.filters());
  const double allowed = (dtype == fec::DType::F64 ? 1e-13 : 5e-6) * std::fmax(1, std::log(points));
  for (const fec::InstructionSet* set = fec::instruction_sets(); set->name != nullptr; ++set) {
    if (!set->usable) continue;
    for (const fec::Algorithm algorithm : {fec::Algorithm::Auto, fec::Algorithm::Pairwise}) {
      before.clear();
      for (const int threads : {1, 3}) {
        fec::Layer twice[] = {layer, layer};
        twice[1].out = again.data();
        const int64_t bad = fec::entropies(twice, 2, f, {algorithm, threads, set->name});
        double worst = bad == -1 ? 0 : INFINITY;
        for (size_t i = 0; i < out.size(); ++i) worst = std::fmax(worst, std::fabs(out[i] - want[i]));
        const bool same = again == out && (before.empty() || before == out);
        ++checks;
        if (!(worst <= allowed) || !same) {
          ++failures;
          std::printf("%s, dtype %d, %s, [%lld x %lld, %lld, %lld], compress %d entropy %d axis %d, %d threads: off by "
                      "%.2e (allowed %.2e)%s\n",
                      set->name, int(dtype), kLayouts[int(layout)], (long long)s.outer, (long long)s.inner,
                      (long long)s.channels, (long long)s.taps, int(f.compress), int(f.entropy), int(f.axis), threads,
                      worst, allowed, same ? "" : ", and not the same bits again or on other threads");
        }
        before = out;
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const Shape shapes[] = {{1, 1, 2, 9},  {1, 3, 17, 1},  {1, 16, 16, 9}, {2, 17, 33, 4},
                          {1, 33, 40, 9}, {1, 5, 130, 2}, {1, 140, 7, 1}, {3, 48, 15, 25}};
  for (const Shape& shape : shapes) {
    for (const Layout layout : {Layout::Rows, Layout::ChannelsLast, Layout::SecondAxis}) {
      for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64, fec::DType::F16, fec::DType::BF16}) {
        for (const fec::Compress compress :
             {fec::Compress::Rms, fec::Compress::AbsMean, fec::Compress::Mean, fec::Compress::None}) {
          for (const fec::Entropy entropy :
               {fec::Entropy::Similarity, fec::Entropy::Softmax, fec::Entropy::Distance}) {
            for (const fec::Axis axis : {fec::Axis::Channels, fec::Axis::Filters}) {
              if (axis == fec::Axis::Filters && shape.outer * shape.inner == 1) continue;
              check(shape, layout, dtype, {compress, entropy, axis, 0, 1}, random);
            }
          }
        }
      }
    }
  }
  const fec::Formula sorted{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  for (const int64_t channels : {15, 16, 31, 48, 63, 65, 127, 200, 511, 513, 700, 1030}) {
    check({1, 3, channels, 1}, Layout::Rows, fec::DType::F32, sorted, random);
    check({1, 3, channels, 1}, Layout::Rows, fec::DType::F64, sorted, random);
  }
  for (const fec::Entropy entropy : {fec::Entropy::Softmax, fec::Entropy::Distance}) {
    const fec::Formula scanned{fec::Compress::Rms, entropy, fec::Axis::Channels, 0, 1};
    check({1, 19, 700, 1}, Layout::Rows, fec::DType::F32, scanned, random);
    check({1, 19, 700, 1}, Layout::Rows, fec::DType::F64, scanned, random);
  }
  check({1, 530, 30, 1}, Layout::Rows, fec::DType::F32,
        {fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1}, random);
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 ? 0 : 1;
}
