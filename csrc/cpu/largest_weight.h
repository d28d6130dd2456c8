// The largest weight of a layer, in pieces that can be searched in parallel. Also finds weights that are not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "checks.h"
#include "cpu/kernels.h"

namespace fec::cpu {

// The magnitude whose bits the kernel `largest` returned; infinity for anything that is not finite.
inline double magnitude_of(DType dtype, uint64_t bits) {
  if (dtype == DType::F16) {
    if (bits >= 0x7c00) return INFINITY;
    const int exponent = static_cast<int>(bits >> 10);
    const double fraction = static_cast<double>(bits & 0x3ff);
    return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  }
  double value = 0;
  if (dtype == DType::F64) {
    std::memcpy(&value, &bits, 8);
  } else {
    const auto word = static_cast<uint32_t>(dtype == DType::BF16 ? bits << 16 : bits);
    float single = 0;
    std::memcpy(&single, &word, 4);
    value = single;
  }
  return std::isfinite(value) ? value : INFINITY;
}

// The power of two that scales a magnitude to [1, 2), as far as the power itself is a normal number; 1 for 0.
inline double scale_of(DType dtype, double magnitude) {
  const int limit = dtype == DType::F64 ? 1022 : 126;
  return std::ldexp(1.0, -(magnitude > 0 ? std::clamp(std::ilogb(magnitude), -limit, limit) : 0));
}

// A layer's weights as pieces of constant stride.
class Pieces {
 public:
  explicit Pieces(const Layer& layer) : layer_(layer) {
    if (is_empty(layer)) {
      run_ = 0;  // nothing to search, whatever the strides are
      return;
    }
    std::sort(std::begin(dims_), std::end(dims_), [](const Dimension& a, const Dimension& b) {
      return std::make_pair(a.size == 1, a.stride) < std::make_pair(b.size == 1, b.stride);
    });
    // Contiguous innermost dimensions are merged; the others are looped over.
    run_ = dims_[0].size;
    while (next_ < 4 && (dims_[next_].size == 1 || dims_[next_].stride == dims_[0].stride * run_)) {
      run_ *= dims_[next_++].size;
    }
    for (int64_t d = next_; d < 4; ++d) spans_ *= dims_[d].size;
    chunk_ = spans_ == 1 ? 1 << 15 : run_;
    together_ = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(run_, 1));
  }

  int64_t count() const {
    return spans_ == 1 ? (run_ + chunk_ - 1) / chunk_ : (spans_ + together_ - 1) / together_;
  }

  // Of a few weights at the beginning.
  uint64_t largest_of_some(const Kernels& kernels) const {
    return run_ == 0 ? 0 : part(kernels, 0, std::min<int64_t>(run_, 2048));
  }

  uint64_t largest(const Kernels& kernels, int64_t piece) const {
    if (spans_ == 1) return part(kernels, piece * chunk_ * dims_[0].stride, std::min(chunk_, run_ - piece * chunk_));
    uint64_t most = 0;
    for (int64_t span = piece * together_; span < std::min(spans_, (piece + 1) * together_); ++span) {
      int64_t offset = 0, rest = span;
      for (int64_t d = next_; d < 4; rest /= dims_[d++].size) offset += rest % dims_[d].size * dims_[d].stride;
      most = std::max(most, part(kernels, offset, run_));
    }
    return most;
  }

 private:
  struct Dimension {
    int64_t stride, size;
  };

  uint64_t part(const Kernels& kernels, int64_t offset, int64_t n) const {
    const char* from = static_cast<const char*>(layer_.data) + offset * size_of(layer_.dtype);
    return kernels.largest(layer_.dtype, from, n, dims_[0].stride);
  }

  const Layer& layer_;
  Dimension dims_[4] = {{layer_.stride_outer, layer_.outer},
                        {layer_.stride_inner, layer_.inner},
                        {layer_.stride_channel, layer_.channels},
                        {layer_.stride_tap, layer_.taps}};
  int64_t run_ = 1, next_ = 1, spans_ = 1, chunk_ = 1, together_ = 1;
};

}  // namespace fec::cpu
