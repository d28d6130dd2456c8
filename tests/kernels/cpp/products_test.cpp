// The kernels that keep the distances between filters (csrc/cuda/pairwise/product_tiles.cuh), under the emulator: against
// a plain double-precision formula, with the tiles counted that were computed by differences; batches under a limit. Both
// with `mma.sync` and with `wgmma` (warpgroup_tiles.cuh).
//
//   products_test [small]   small: fewer shapes, for the slow sanitizers
#include <tuple>

#include "cuda/launch_plan.h"
#include "cuda_check.h"

namespace {

constexpr fec::Formula kBetween{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1};
constexpr fec::DType kSplit[] = {fec::DType::F32, fec::DType::F16, fec::DType::BF16};

int all_near_warps = 0, all_near_tiles = 0;

// Compares one weight, whose values may have been changed, and adds up what was computed by differences.
void compare_one(Weight w, const fec::Formula& f) {
  const std::vector<char> bytes = stored(w.values, w.layer.dtype);
  std::memcpy(w.bytes.get(), bytes.data(), bytes.size());
  w.want = reference(w.values, w.layer, f);
  std::vector<Weight> weights;
  weights.push_back(std::move(w));
  compare(weights, f);
  all_near_warps += emulator::seen.near_warps;
  all_near_tiles += emulator::seen.near_tiles;
}

// Both sides of every limit: points per warp and tile, coordinates per slice, slices on their way.
void edges(bool small, std::mt19937& random) {
  for (const int64_t n : {2, 32, 33, 64, 65, 96, 97, 127, 128, 129, 256, 257}) {
    for (const int64_t k : {24, 31, 32, 33, 47, 48, 49, 80}) {
      const bool few = n > 65 && k != 33 && k != 48;
      if (few || (small && (n != 129 || k != 33) && (n != 65 || k != 24))) continue;
      compare_one(weight({1, n, k, 1}, Layout::Rows, fec::DType::F32, kBetween, random), kBetween);
    }
  }
  // Tiles that several blocks share: two with equal and unequal parts, three.
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{34, 1537}, {130, 1600}, {20, 3100}}) {
    if (small && n != 34) continue;
    for (const fec::DType dtype : {fec::DType::F32, fec::DType::F16}) {
      compare_one(weight({1, n, k, 1}, Layout::Rows, dtype, kBetween, random), kBetween);
    }
  }
  require(all_near_warps == 0 && all_near_tiles == 0, "random weights are all compared by products");
}

// Every type, layout, entropy and compression.
void kinds(bool small, std::mt19937& random) {
  for (const fec::DType dtype : kSplit) {
    for (const Layout layout : {Layout::Rows, Layout::ChannelsLast, Layout::SecondAxis}) {
      for (const fec::Entropy entropy : {fec::Entropy::Similarity, fec::Entropy::Softmax, fec::Entropy::Distance}) {
        for (const fec::Compress compress : {fec::Compress::None, fec::Compress::Mean}) {
          for (const double tau : {0.0, 0.4}) {
            if (tau > 0 && layout != Layout::Rows) continue;
            if (small && (int(dtype) + int(layout) + int(entropy)) % 3 != 0) continue;
            const fec::Formula f{compress, entropy, fec::Axis::Filters, tau, tau > 0 ? 1 : 0.5};
            compare_one(weight({2, 35, 30, 3}, layout, dtype, f, random), f);
          }
        }
      }
    }
  }
  compare_one(weight({2, 75, 26, 5}, Layout::SecondAxis, fec::DType::F32, kBetween, random), kBetween);


}

// Some near pairs are computed by their warps, and a tile with many of them as a whole. Duplicates have distance 0.
void near_pairs(bool small, std::mt19937& random) {
  for (const fec::DType dtype : kSplit) {
    if (small && dtype != fec::DType::F32) continue;
    Weight some = weight({1, 150, 40, 1}, Layout::Rows, dtype, kBetween, random);
    for (const auto& [from, to] : {std::pair{0, 1}, {0, 149}, {100, 140}, {70, 3}}) {
      std::copy_n(some.values.begin() + from * 40, 40, some.values.begin() + to * 40);
    }
    for (int k = 0; k < 40; ++k) some.values[static_cast<size_t>(60 * 40 + k)] = some.values[static_cast<size_t>(k)] * 1.01;
    all_near_warps = all_near_tiles = 0;
    compare_one(std::move(some), kBetween);
    require(all_near_warps > 0 && all_near_tiles == 0, "some near pairs are computed by their warps");

    Weight many = weight({1, 140, 40, 1}, Layout::Rows, dtype, kBetween, random);
    for (double& x : many.values) x = 0.5 * (1 + 0.1 * x);
    for (const Layout layout : {Layout::Rows, Layout::SecondAxis}) {
      many.layer = strided({1, 140, 40, 1}, layout);
      many.layer.dtype = dtype;
      many.layer.data = many.bytes.get();
      Weight copy{many.layer, many.values, {}, many.out, std::make_unique<char[]>(140 * 40 * 4), many.allowed};
      copy.layer.data = copy.bytes.get();
      all_near_tiles = 0;
      compare_one(std::move(copy), kBetween);
      require(all_near_tiles == 3, "tiles with many near pairs are computed as a whole");
    }
  }
}

// Layers that do not have room together, and one that has none at all.
void batches(std::mt19937& random) {
  std::vector<Weight> weights;
  for (const int64_t n : {20, 140, 30, 50, 40}) {
    weights.push_back(weight({1, n, 30, 1}, Layout::Rows, fec::DType::F32, kBetween, random));
  }
  weights.push_back(weight({1, 20, 30, 1}, Layout::Rows, fec::DType::F64, kBetween, random));
  std::vector<fec::Layer> layers;
  for (const Weight& w : weights) layers.push_back(w.layer);
  const auto count = static_cast<int64_t>(layers.size());
  const int64_t all = fec::cuda::workspace_bytes(layers.data(), count, kBetween);
  for (const int64_t limit : {int64_t(1), int64_t(100) << 10, int64_t(150) << 10, int64_t(300) << 10}) {
    most_scratch = limit;
    compare(weights, kBetween);
    require(emulator::seen.near_tiles == 0, "random weights are compared by products");
    require(fec::cuda::workspace_bytes(layers.data(), count, kBetween, limit) < all, "the limit saves memory");
  }
  most_scratch = 0;
  require(fec::cuda::way_of(layers[1], kBetween, 100 << 10) == fec::cuda::Way::Filters &&
              fec::cuda::way_of(layers[0], kBetween, 100 << 10) == fec::cuda::Way::Products,
          "what does not fit alone keeps nothing");
  require(fec::cuda::together(layers.data(), count, kBetween, 150 << 10) == 3, "two layers of 70 KiB, one that is out");
}

// The same by warpgroups: both sides of their limits, shared tiles, types, near pairs, and products of one sign, the worst
// case for the rounding within half a slice: within a whole one it would be beyond the tolerance.
void warpgroups(bool small, std::mt19937& random) {
  tensor_cores = fec::cuda::TensorCores::Wgmma;
  all_near_warps = all_near_tiles = 0;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{2, 24}, {64, 63}, {65, 64}, {128, 65}, {129, 130}, {70, 257}}) {
    if (small && n != 65 && n != 129) continue;
    compare_one(weight({1, n, k, 1}, Layout::Rows, fec::DType::F32, kBetween, random), kBetween);
  }
  for (const auto& [n, k, dtype] : {std::tuple<int64_t, int64_t, fec::DType>{34, 1537, fec::DType::F32},
                                    {130, 1600, fec::DType::BF16}, {20, 3100, fec::DType::F16}}) {
    if (small && n != 20) continue;
    compare_one(weight({1, n, k, 1}, Layout::Rows, dtype, kBetween, random), kBetween);
  }
  require(all_near_warps == 0 && all_near_tiles == 0, "random weights are all compared by products");
  const fec::Formula compressed{fec::Compress::Rms, fec::Entropy::Softmax, fec::Axis::Filters, 0, 1};
  compare_one(weight({2, 35, 30, 3}, Layout::SecondAxis, fec::DType::F16, compressed, random), compressed);
  near_pairs(true, random);
  all_near_warps = all_near_tiles = 0;
  std::uniform_real_distribution<double> spread(-1, 1);
  for (const double tau : {0.0, 3.0}) {
    if (small && tau == 0) continue;
    const fec::Formula f{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, tau, 1};
    Weight w = weight({1, 70, 256, 9}, Layout::Rows, fec::DType::F32, f, random);
    const double part = std::sqrt(3 / 27.0);  // of d^2 in |a|^2 + |b|^2: 1/28, and near is 1/32
    for (double& x : w.values) x = 0.5 * (1 + part * spread(random));
    compare_one(std::move(w), f);
  }
  require(all_near_tiles == 0, "pairs above the limit are compared by products");
  std::vector<Weight> mixed;  // layers of both kinds in one launch
  for (const fec::DType dtype : {fec::DType::F16, fec::DType::F32, fec::DType::F64}) {
    mixed.push_back(weight({1, 30, 40, 1}, Layout::Rows, dtype, kBetween, random));
  }
  compare(mixed, kBetween);
  tensor_cores = fec::cuda::TensorCores::Mma;
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc > 1 && std::strcmp(argv[1], "small") == 0;
  few_orders = small;
  std::mt19937 random(7);
  edges(small, random);
  kinds(small, random);
  near_pairs(small, random);
  batches(random);
  warpgroups(small, random);
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 ? 0 : 1;
}
