// Scores one layer on one thread; an instruction counter watches `fec::entropies`:
//   kernels_cost INSTRUCTION_SET FILTERS CHANNELS TAPS COMPRESS ENTROPY AXIS   (the last three as in the enums of fec.h)
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "fec.h"

int main(int argc, char** argv) {
  if (argc != 8) return std::fprintf(stderr, "seven arguments, see the source\n"), 2;
  const int64_t filters = std::atoll(argv[2]), channels = std::atoll(argv[3]), taps = std::atoll(argv[4]);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(static_cast<size_t>(filters * channels * taps));
  for (float& w : weights) w = normal(random);
  std::vector<double> out(static_cast<size_t>(filters));
  fec::Layer layer{weights.data(), fec::DType::F32, fec::Algorithm::Pairwise, 1, filters, channels, taps, 0,
                   channels * taps, taps, 1, out.data()};
  const fec::Formula formula{fec::Compress(std::atoi(argv[5])), fec::Entropy(std::atoi(argv[6])),
                             fec::Axis(std::atoi(argv[7])), 0, 1};
  if (fec::sortable(layer, formula)) layer.algorithm = fec::Algorithm::Sorted;
  if (fec::entropies(&layer, 1, formula, {1, argv[1]}) != -1) return 1;
  return out[0] > 0 ? 0 : 1;
}
