// A parallel loop. OpenMP where the build found it, because torch uses the same library and its threads exist already;
// std::thread otherwise, and for the thread sanitizer, which has to see every lock.
#pragma once

#include <cstdint>

#include "cpu/float_environment.h"
#include "cpu/watch.h"

#ifdef _OPENMP
#include <omp.h>
#else
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace fec::cpu {

// Calls body(i, thread) for every i below `count`, in any order, on at most `threads` threads; for fewer once `watch` is
// interrupted. The body must not throw. Thread 0 is the calling one.
template <class Body>
void parallel_for(int64_t count, int threads, Watch& watch, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count && !watch.look(); ++i) body(i, 0);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    const SubnormalNumbers kept;
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) {
      if (!(thread == 0 ? watch.look() : watch.interrupted())) body(i, thread);
    }
  }
#else
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    const SubnormalNumbers kept;
    for (int64_t i = next++; i < count; i = next++) {
      if (thread == 0 ? watch.look() : watch.interrupted()) return;
      body(i, thread);
    }
  };
  std::vector<std::thread> others;
  const int wanted = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  others.reserve(static_cast<size_t>(wanted));
  try {
    while (static_cast<int>(others.size()) < wanted) others.emplace_back(work, static_cast<int>(others.size()) + 1);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that run do all the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace fec::cpu
