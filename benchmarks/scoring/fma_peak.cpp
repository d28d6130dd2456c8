// Peak rate of multiply-adds on one thread, in 1e9 single-precision multiply-adds per second: twelve chains in registers,
// enough to hide the latency of one.
#include <cstdio>
#include <ctime>

#ifdef __AVX512F__
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float V __attribute__((vector_size(BYTES)));

int main() {
  constexpr int chains = 12, turns = 20000000;
  V sums[chains] = {}, a = V{} + 0.999f, b = V{} + 1e-7f;
  for (int i = 0; i < chains; ++i) sums[i] += static_cast<float>(i);
  const std::clock_t start = std::clock();
  for (int turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) sums[i] = sums[i] * a + b;
  }
  const double seconds = double(std::clock() - start) / CLOCKS_PER_SEC;
  V all{};
  for (const V& sum : sums) all += sum;
  if (all[0] == 1.2345f) return 1;  // keeps the compiler from removing the loop
  std::printf("%.2f\n", double(chains) * turns * (BYTES / 4) / seconds / 1e9);
}
