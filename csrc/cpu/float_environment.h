// Subnormal numbers: a caller may have told the processor to read them as 0 (torch.set_flush_denormal). The kernels move
// the exponents of float16 weights by a product, so that all weights below 6.1e-5 would be lost. Scores must not depend on
// what a caller has set.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fec::cpu {

// While it exists, this thread computes with subnormal numbers; then as before.
class SubnormalNumbers {
 public:
  SubnormalNumbers() : before_(state()) {
    if (before_ & kFlush) set_state(before_ & ~kFlush);
  }
  ~SubnormalNumbers() {
    if (before_ & kFlush) set_state(before_);
  }
  SubnormalNumbers(const SubnormalNumbers&) = delete;
  SubnormalNumbers& operator=(const SubnormalNumbers&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr uint64_t kFlush = 0x8040;  // flush to zero, denormals are zero
  static uint64_t state() { return _mm_getcsr(); }
  static void set_state(uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24 | uint64_t{1} << 19;  // FZ, FZ16
  static uint64_t state() {
    uint64_t state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void set_state(uint64_t state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t state() { return 0; }
  static void set_state(uint64_t) {}
#endif

  uint64_t before_;
};

}  // namespace fec::cpu
