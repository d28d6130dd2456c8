#include "cpu/self_timing.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/workspace.h"

namespace fec::cpu {
namespace {

constexpr int kRounds = 7;  // the first warms caches and clocks up; a disturbed one is not the shortest
constexpr int64_t kFilters = 64, kChannels = 128;  // 32 KiB

// Both kinds of scoring, in about equal parts: sorted channels, and multiply-adds between filters.
void work(const Kernels& kernels, const Layer& layer, char* memory) {
  const Real& real = kernels.f32;
  Job job{&layer, {Compress::Rms, Entropy::Similarity, Axis::Channels, 0, 1}, 1, kChannels, 1};
  char* block = memory;
  char* scratch = memory + kChannels * real.lanes * int64_t(sizeof(float));
  double entropies[kFilters];
  for (int64_t first = 0; first < kFilters; first += real.lanes) {
    real.sort(job, first, real.lanes, block);
    real.scan(Entropy::Similarity, block, scratch, kChannels, real.lanes, 1, entropies + first);
  }
  job.formula.axis = Axis::Filters;
  job.formula.compress = Compress::None;
  job.points = kFilters;
  job.coordinates = kChannels;
  RowSums sums[kFilters] = {};
  const Tile tile{0, kFilters, 0, kFilters, memory, kFilters};
  real.tile(job, tile, memory + kFilters * kFilters * int64_t(sizeof(float)));
  real.tile_sums(Entropy::Similarity, tile, 1, sums, nullptr);
}

}  // namespace

void time_kernels(const Kernels* const* sets, int count, double* seconds) {
  std::vector<float> weights(kFilters * kChannels);
  uint32_t state = 1;
  for (float& weight : weights) {  // in any order, as weights are
    state = state * 1664525u + 1013904223u;
    weight = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  const Layer layer{weights.data(), DType::F32, Algorithm::Sorted, kFilters, 1, kChannels, 1, kChannels, 0, 1, 1, nullptr};
  Workspace workspace;
  char* memory = workspace.at_least((kFilters * kFilters + kTileScratch) * int64_t(sizeof(float)));
  std::fill_n(seconds, count, 1e9);
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < count; ++i) {
      const auto start = std::chrono::steady_clock::now();
      work(*sets[i], layer, memory);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      seconds[i] = std::min(seconds[i], taken.count());
    }
  }
}

}  // namespace fec::cpu
