// Memory that grows and is used again: for small layers, fresh pages would cost more than the kernels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/kernels.h"

namespace fec::cpu {

class Workspace {
 public:
  // At least so many bytes, aligned to a vector; what was in them before may be lost.
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded(bytes, 64)))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = rounded(bytes, 64);
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char[], Free> memory_;
  int64_t size_ = 0;
};

}  // namespace fec::cpu
