// Shared by the C++ tests: shapes, layouts, storage types, and the formula in plain double precision.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "fec.h"

struct Shape {
  int64_t outer, inner, channels, taps;
};

enum class Layout { Rows, ChannelsLast, SecondAxis };
inline const char* const kLayouts[] = {"rows", "channels last", "second axis"};

inline fec::Layer strided(const Shape& s, Layout layout) {
  fec::Layer layer{nullptr, fec::DType::F32, fec::Algorithm::Pairwise, s.outer, s.inner, s.channels, s.taps, 0, 0, 0, 0,
                   nullptr};
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

inline double point(const std::vector<double>& w, const fec::Layer& l, fec::Compress compress, int64_t filter,
                    int64_t channel, int64_t tap) {
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

inline std::vector<double> reference(const std::vector<double>& w, const fec::Layer& l, const fec::Formula& f) {
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
  const double measured = total / double(groups * points * points);
  const double tau = (f.tau > 0 && f.entropy != fec::Entropy::Distance ? f.tau : measured) * f.tau_scale;
  std::vector<double> out(static_cast<size_t>(filters));
  if (!(tau > 0)) return out;  // all points are equal
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
inline std::vector<char> stored(std::vector<double>& w, fec::DType dtype) {
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

// The rule of fec_fast.reference.tolerance.
inline double tolerance(fec::DType dtype, double points) {
  return (dtype == fec::DType::F64 ? 1e-13 : 5e-6) * std::fmax(1, std::log(points));
}

// The algorithm that the Python package chooses on the CPU: `Sorted` wherever there is one number per channel.
inline fec::Algorithm usual(const fec::Layer& l, const fec::Formula& f) {
  const bool one_number = f.compress != fec::Compress::None || l.taps == 1;
  return f.axis == fec::Axis::Channels && one_number ? fec::Algorithm::Sorted : fec::Algorithm::Pairwise;
}

// The algorithm that the Python package chooses for the CUDA kernels.
inline fec::Algorithm usual_on_cuda(const fec::Layer& l, const fec::Formula& f) {
  return f.entropy == fec::Entropy::Distance ? fec::Algorithm::Pairwise : usual(l, f);
}

// Random weights of magnitude 0.01 to 1.
inline std::vector<double> random_weights(size_t count, std::mt19937& random) {
  std::uniform_real_distribution<double> size(0.01, 1.0);
  std::vector<double> w(count);
  for (double& x : w) x = random() % 2 ? size(random) : -size(random);
  return w;
}
