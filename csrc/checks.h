// Checks of what the kernels are called with, before any pointer is followed. They throw std::invalid_argument, with
// the layer's number. A pointer that is not null, but to no memory of the caller's, cannot be seen here.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "fec.h"

namespace fec {

constexpr int64_t kMostElements = int64_t(1) << 48;  // bytes and pairs of tiles stay far below the range of int64_t
constexpr int64_t kMostFilters = int64_t(1) << 31;   // and channels
constexpr int kMostThreads = 1 << 16;
constexpr uintptr_t kFirstPage = 4096;  // nothing is ever mapped there

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::F64 ? 8 : dtype == DType::F32 ? 4 : 2;
}

[[noreturn]] inline void refuse(int64_t number, const std::string& trouble) {
  throw std::invalid_argument("layer " + std::to_string(number) + ": " + trouble);
}

// Whether `address + bytes` is a number, and one that an address may be.
inline bool is_address(uintptr_t address, int64_t bytes) {
  return address >= kFirstPage && bytes >= 0 && address <= uintptr_t(INTPTR_MAX) &&
         uintptr_t(bytes) <= uintptr_t(INTPTR_MAX) - address;
}

inline int64_t product(int64_t a, int64_t b, int64_t number) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || result > kMostElements) {
    refuse(number, "its sizes multiply to more than 2^48");
  }
  return result;
}

inline bool is_empty(const Layer& layer) {
  return layer.outer == 0 || layer.inner == 0 || layer.channels == 0 || layer.taps == 0;
}

// The number of filters of a layer whose sizes, strides and pointer are sound.
inline int64_t checked_filters(const Layer& layer, const Formula& formula, int64_t number) {
  const int64_t sizes[] = {layer.outer, layer.inner, layer.channels, layer.taps};
  const int64_t strides[] = {layer.stride_outer, layer.stride_inner, layer.stride_channel, layer.stride_tap};
  for (const int64_t size : sizes) {
    if (size < 0) refuse(number, "a size is negative");
  }
  const int64_t filters = product(layer.outer, layer.inner, number);
  int64_t room = 1;  // an empty layer's other sizes are multiplied, too
  for (const int64_t size : sizes) room = product(room, size == 0 ? 1 : size, number);
  if (filters > kMostFilters || layer.channels > kMostFilters) {
    refuse(number, "it has more than 2^31 filters or channels");
  }
  if (layer.algorithm == Algorithm::Sorted && !sortable(layer, formula)) {
    refuse(number, "sorted needs axis=channels and one number per channel");
  }
  if (is_empty(layer)) return filters;
  int64_t last = 0;  // the offset of the last element
  for (int i = 0; i < 4; ++i) {
    if (strides[i] < 0) refuse(number, "a stride is negative");
    last += product(sizes[i] - 1, strides[i], number);  // four numbers below 2^48
  }
  const auto address = reinterpret_cast<uintptr_t>(layer.data);
  const int64_t bytes = element_bytes(layer.dtype);
  if (!is_address(address, (last + 1) * bytes)) refuse(number, "its weight is at no address: null, or out of range");
  if (address % uintptr_t(bytes) != 0) refuse(number, "the address of its weight is not aligned to its dtype");
  return filters;
}

inline void check_result(const Layer& layer, int64_t number) {
  if (layer.filters() == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(layer.out);
  if (!is_address(address, layer.filters() * int64_t(sizeof(double)))) {
    refuse(number, "its result is at no address: null, or out of range");
  }
  if (address % sizeof(double) != 0) refuse(number, "the address of its result is not aligned to float64");
}

inline void check_formula(const Formula& formula) {
  if (!std::isfinite(formula.tau) || formula.tau < 0) throw std::invalid_argument("tau must be finite, and 0 or more");
  if (!std::isfinite(formula.tau_scale) || formula.tau_scale <= 0) {
    throw std::invalid_argument("tau_scale must be finite and positive");
  }
}

inline void check_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw std::invalid_argument("threads=" + std::to_string(threads) + ": give 1 to " + std::to_string(kMostThreads));
  }
}

}  // namespace fec
