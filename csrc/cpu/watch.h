// Looks up from the work now and then, so that Ctrl-C need not wait for the end of a large model.
#pragma once

#include <atomic>
#include <chrono>

namespace fec::cpu {

class Watch {
 public:
  explicit Watch(bool (*ask)()) : ask_(ask) {}

  // Called by the calling thread of `entropies` alone, which may hold locks that others wait for: asks again if the last
  // question is long enough ago. Returns whether the work was interrupted.
  bool look() {
    if (ask_ == nullptr) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ >= kInterval) {
      asked_ = now;
      if (ask_()) interrupted_.store(true, std::memory_order_relaxed);
    }
    return interrupted();
  }

  // Called by any thread.
  bool interrupted() const { return interrupted_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::chrono::milliseconds kInterval{30};

  bool (*ask_)();
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
  std::atomic<bool> interrupted_{false};
};

}  // namespace fec::cpu
