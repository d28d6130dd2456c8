// The CUDA kernels and their launches, under the emulator, against a plain double-precision formula:
// every kernel, storage type, layout, formula; shapes on both sides of every edge; ragged batches; what is not finite;
// the launch layer with a stream and devices that are not real.
//
//   cuda_test [small]   small: fewer shapes, for the slow sanitizers
#include "cuda/layer_kernels.cuh"
#include "cuda/pairwise/kept_pairs.cuh"
#include "cuda/pairwise/tile_kernels.cuh"
#include "cuda/pairwise/warpgroup_tiles.cuh"
#include "cuda/sorted/long_kernels.cuh"
#include "cuda_check.h"

// The sizes that benchmarks/gpu/resources.py has in LAUNCHES.
static_assert(sizeof(fec::cuda::SortShared<float, fec::cuda::kNarrow>) == 21352);
static_assert(sizeof(fec::cuda::SortShared<double, fec::cuda::kNarrow>) == 17096);
static_assert(sizeof(fec::cuda::SortShared<float, fec::cuda::kWide>) == 33288);
static_assert(sizeof(fec::cuda::SortShared<double, fec::cuda::kWide>) == 33672);
static_assert(sizeof(fec::cuda::LineShared<float>) == 1056 && sizeof(fec::cuda::LineShared<double>) == 2080);
static_assert(sizeof(fec::cuda::TileShared<float>) == 24560 && sizeof(fec::cuda::TileShared<double>) == 12400);
static_assert(sizeof(fec::cuda::ProductShared) == 49152 && sizeof(fec::cuda::KeptShared) == 8192);
static_assert(sizeof(fec::cuda::GroupMemory) == 197616);
static_assert(4 * sizeof(fec::cuda::SmallReader<float>) == 12800 &&
              4 * sizeof(fec::cuda::SmallReader<double>) == 16416);

namespace {

// Every formula on a few small shapes, all layouts and types.
void formulas(bool small, std::mt19937& random) {
  const Shape shapes[] = {{1, 3, 5, 9}, {2, 5, 33, 4}, {1, 9, 20, 25}, {1, 6, 70, 1}};
  for (const Shape& shape : shapes) {
    for (const Layout layout : {Layout::Rows, Layout::ChannelsLast, Layout::SecondAxis}) {
      for (const fec::DType dtype : kTypes) {
        if (small && (int(dtype) + int(layout) + int(shape.taps)) % 4 != 0) continue;
        for (const fec::Compress compress : kCompress) {
          for (const fec::Entropy entropy : kEntropies) {
            for (const fec::Axis axis : {fec::Axis::Channels, fec::Axis::Filters}) {
              for (const double tau : {0.0, 0.4}) {
                if (tau > 0 && (layout != Layout::Rows || compress == fec::Compress::Mean)) continue;
                const fec::Formula f{compress, entropy, axis, tau, tau > 0 ? 1 : 0.5};
                check(shape, layout, dtype, f, random);
                const bool both = axis == fec::Axis::Channels && entropy != fec::Entropy::Distance &&
                                  (compress != fec::Compress::None || shape.taps == 1);
                if (both) check(shape, layout, dtype, f, random, true);
              }
            }
          }
        }
      }
    }
  }
}

// Both sides of every limit: numbers per lane, warps per filter, filters per block, runs, tiles, coordinates per step.
void edges(bool small, std::mt19937& random) {
  const fec::Formula sorted{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  const fec::Formula given{fec::Compress::AbsMean, fec::Entropy::Softmax, fec::Axis::Channels, 0.3, 1};
  const fec::Formula given_too{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0.3, 1};
  for (const int64_t c :
       {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 1023, 1024, 1025}) {
    if (small && c % 32 != 1 && c != 1000) continue;
    for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64}) {
      check({1, c < 100 ? 5 : 2, c, 1}, Layout::Rows, dtype, sorted, random);
      check({1, 1, c, 3}, Layout::Rows, dtype, given, random);
      check({1, c < 100 ? 5 : 2, c, 1}, Layout::Rows, dtype, given_too, random);
    }
  }
  std::vector<int64_t> wide{2049, 4097};
  if (!small) wide.insert(wide.end(), {2047, 2048, 4095, 4096, 8191, 8192, 8193, 16384, 20000});
  for (const int64_t c : wide) {
    for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64}) {
      if (small && (dtype == fec::DType::F64) != (c == 4097)) continue;  // one block, and in runs
      check({1, 1, c, 1}, Layout::Rows, dtype, sorted, random);
      if ((c < 5000 && !small) || c > 16384) check({1, 1, c, 1}, Layout::Rows, dtype, given, random);
    }
  }
  const fec::Formula pairs{fec::Compress::Rms, fec::Entropy::Softmax, fec::Axis::Channels, 0, 1};
  for (const int64_t c : {127, 128, 129, 255, 256, 257, 511, 513}) {
    check({1, 2, c, 1}, Layout::Rows, fec::DType::F32, pairs, random, true);
  }
  const fec::Formula between{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1};
  const fec::Formula inside{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  for (const int64_t n : {1, 2, 31, 32, 33, 63, 64, 65, 129}) {
    for (const int64_t k : {1, 15, 16, 17, 23, 24, 25}) {
      if ((small || n > 33) && k != 17 && k != 24) continue;
      for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64}) {
        check({1, n, k, 1}, Layout::Rows, dtype, between, random);
        if (k > 1) check({1, 2, n, k}, Layout::Rows, dtype, inside, random);
      }
    }
  }
  for (const int64_t taps : {2, 7, 8, 9, 10, 16, 17, 49}) {  // how taps are read
    for (const Layout layout : {Layout::Rows, Layout::ChannelsLast, Layout::SecondAxis}) {
      check({1, 3, 37, taps}, layout, fec::DType::F16, sorted, random);
    }
  }
}

// Layers of all kinds and more than one upload carries, in one call.
void batch(bool small, std::mt19937& random) {
  for (const fec::Compress compress : {fec::Compress::Rms, fec::Compress::None}) {
    for (const fec::Axis axis : {fec::Axis::Channels, fec::Axis::Filters}) {
      const fec::Formula f{compress, fec::Entropy::Similarity, axis, 0, 1};
      std::vector<Weight> all;
      for (int i = 0; i < (small ? 30 : 60); ++i) {
        const Shape s{1 + i % 2, 2 + i % 5, i % 13 == 0 ? 530 : 2 + 7 * (i % 6), i % 3 == 0 ? 1 : 9};
        all.push_back(weight(s, Layout(i % 3), kTypes[i % 4], f, random));
      }
      compare(all, f);
    }
  }
}

// Layers of `sorted` on both sides of what one launch carries, kinds that need several launches, and what no argument
// has room for.
void tables(std::mt19937& random) {
  const fec::Formula f{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  for (const auto& [count, launches] : {std::pair{63, 3}, {64, 4}, {127, 5}}) {
    std::vector<Weight> all;
    for (int i = 0; i < count; ++i) {
      all.push_back(weight({1, 1 + i % 6, 1 + i % 5, 1}, Layout::Rows, fec::DType::F32, f, random));
    }
    compare(all, f);
    require(emulator::seen.launches == launches, "two launches, and one for every 63 layers");
  }
  std::vector<Weight> kinds;
  for (const int64_t channels : {40, 2050, 8200}) {
    for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64}) {
      kinds.push_back(weight({1, 1, channels, 1}, Layout::Rows, dtype, f, random));
    }
  }
  kinds.push_back(weight({1, 6, 30, 4}, Layout::SecondAxis, fec::DType::F16, f, random));
  kinds.back().layer.stride_outer = int64_t(1) << 32;  // of a dimension of 1
  compare(kinds, f);
}

// Near and equal points, where products cancel; and weights near the ends of their type's range.
void hard(std::mt19937& random) {
  for (const fec::Axis axis : {fec::Axis::Filters, fec::Axis::Channels}) {
    const fec::Formula f{fec::Compress::None, fec::Entropy::Similarity, axis, 0, 1};
    Weight w = weight({1, 40, 33, 30}, Layout::Rows, fec::DType::F32, f, random);
    const auto row = static_cast<size_t>(axis == fec::Axis::Filters ? 33 * 30 : 30);
    auto* data = reinterpret_cast<float*>(w.bytes.get());
    std::copy_n(data, row, data + row);  // a duplicate, and a near one
    for (size_t i = 0; i < row; ++i) data[2 * row + i] = data[i] * (1 + 1e-3f);
    for (size_t i = 0; i < w.values.size(); ++i) w.values[i] = data[i];
    w.want = reference(w.values, w.layer, f);
    std::vector<Weight> weights;
    weights.push_back(std::move(w));
    compare(weights, f);
  }
  for (const int power : {-110, 100}) {
    for (const fec::Compress compress : kCompress) {
      for (const fec::Axis axis : {fec::Axis::Filters, fec::Axis::Channels}) {
        const fec::Formula f{compress, fec::Entropy::Similarity, axis, 0, 1};
        std::vector<Weight> weights;
        weights.push_back(weight({1, 4, 40, 9}, Layout::Rows, fec::DType::F32, f, random));
        auto* data = reinterpret_cast<float*>(weights[0].bytes.get());
        for (size_t i = 0; i < weights[0].values.size(); ++i) data[i] = std::ldexp(data[i], power);
        compare(weights, f);  // no entropy depends on the scale
      }
    }
  }
  const fec::Formula f{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  Weight w = weight({1, 5, 49, 9}, Layout::Rows, fec::DType::F32, f, random);
  auto* data = reinterpret_cast<float*>(w.bytes.get());
  for (int c = 1; c < 49; ++c) std::copy_n(data + 2 * 441, 9, data + 2 * 441 + 9 * c);  // filter 2: equal channels
  for (const fec::Algorithm algorithm : {fec::Algorithm::Sorted, fec::Algorithm::Pairwise}) {
    w.layer.out = w.out.data();
    w.layer.algorithm = algorithm;
    std::vector<fec::Layer> layers{w.layer};
    run(layers, f);
    require(w.out[2] == 0 && w.out[1] > 0.1, "channels alike have exactly no entropy");
  }
  std::fill_n(data, w.values.size(), 0.25f);
  for (const fec::Entropy entropy : kEntropies) {
    for (const fec::Axis axis : {fec::Axis::Filters, fec::Axis::Channels}) {
      const fec::Formula alike{fec::Compress::Rms, entropy, axis, 0, 1};
      w.layer.algorithm = usual_on_cuda(w.layer, alike);
      std::vector<fec::Layer> layers{w.layer};
      run(layers, alike);
      require(std::all_of(w.out.begin(), w.out.end(), [](double x) { return x == 0; }), "all alike: no entropy");
    }
  }
}

// The worst cases for the tensor cores' rounding: many products of one sign, and pairs just above or below the distance
// at which they are computed again by differences; in every storage type.
void products(bool small, std::mt19937& random) {
  std::uniform_real_distribution<double> spread(-1, 1);
  for (const double share : {1.0 / 2, 1.0 / 24, 1.0 / 29, 1.0 / 36}) {  // of d^2 in |a|^2 + |b|^2
    for (const fec::DType dtype : kTypes) {
      for (const double tau : {0.0, 3.0, 8.0}) {
        for (const Layout layout : {Layout::Rows, Layout::SecondAxis}) {
          if (small && (dtype != fec::DType::F32 || tau > 0)) continue;
          if (tau > 0 && layout == Layout::SecondAxis) continue;
          const fec::Formula f{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, tau, 1};
          Weight w = weight({1, 70, 70, 9}, layout, dtype, f, random);
          const double part = std::sqrt(3 * share / (1 - share));
          for (double& x : w.values) {
            x = 0.5 * (1 + part * spread(random));
            if (std::fabs(x) < 1e-3) x = 1e-3;  // normal in float16
          }
          if (share > 0.4) w.values[5] = 300;  // and all but one weight small beside the largest
          const std::vector<char> bytes = stored(w.values, dtype);
          std::memcpy(w.bytes.get(), bytes.data(), bytes.size());
          w.want = reference(w.values, w.layer, f);
          std::vector<Weight> weights;
          weights.push_back(std::move(w));
          compare(weights, f);
        }
      }
    }
  }
}

// A weight that is not finite shows in its layer's entropies, and in no other's.
void not_finite(std::mt19937& random) {
  for (const fec::Axis axis : {fec::Axis::Channels, fec::Axis::Filters}) {
    for (const fec::Compress compress : kCompress) {
      for (const double tau : {0.0, 0.4}) {
        for (const float value : {float(NAN), float(INFINITY), -float(INFINITY)}) {
          for (const int64_t c : {20, 600, 8200}) {
            if (c > 600 && (axis == fec::Axis::Filters || compress != fec::Compress::Rms)) continue;
            const fec::Formula f{compress, fec::Entropy::Similarity, axis, tau, 1};
            const int64_t taps = c > 600 ? 1 : 3;
            Weight good = weight({1, 2, 7, 4}, Layout::Rows, fec::DType::F32, f, random);
            Weight bad = weight({1, 2, c, taps}, Layout::Rows, fec::DType::F32, f, random);
            reinterpret_cast<float*>(bad.bytes.get())[c * taps + 4] = value;
            good.layer.out = good.out.data();
            bad.layer.out = bad.out.data();
            std::vector<fec::Layer> layers{good.layer, bad.layer};
            run(layers, f);
            require(std::any_of(bad.out.begin(), bad.out.end(), [](double x) { return std::isnan(x); }), "NaN is seen");
            require(std::fabs(good.out[0] - good.want[0]) <= good.allowed, "the other layer is sound");
          }
        }
      }
    }
  }
}

template <class E, class F>
bool throws(const char* words, const F& f) {
  try {
    f();
  } catch (const E& error) {
    return std::strstr(error.what(), words) != nullptr;
  }
  return false;
}

// The launches: streams, devices, errors of the runtime, empty layers.
void launches(std::mt19937& random) {
  const fec::Formula f{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  Weight w = weight({1, 4, 40, 9}, Layout::Rows, fec::DType::F32, f, random);
  w.layer.out = w.out.data();
  std::vector<fec::Layer> layers{w.layer};
  emulator::settings.devices = 3;
  emulator::seen.device = 2;
  run(layers, f, 1);
  require(emulator::seen.device == 2, "the device that was current is so again");
  require(throws<fec::cuda::Error>("choosing the device", [&] { run(layers, f, 7); }),
          "no device 7");
  const int all = [&] {
    run(layers, f);
    return emulator::seen.launches;
  }();
  require(all == 3, "three launches: the sort, which has the table, tau, the scans");
  for (int number = 0; number < all; ++number) {
    emulator::settings.fail_launch = number;
    require(throws<fec::cuda::Error>("cudaErrorLaunchOutOfResources", [&] { run(layers, f); }),
            "a launch that fails is an exception");
    require(emulator::seen.launches == number + 1, "and nothing is launched after it");
    require(emulator::seen.device == 2, "and the device is put back");
  }
  emulator::settings.fail_launch = -1;
  emulator::settings.no_devices = cudaErrorInsufficientDriver;
  require(throws<fec::cuda::Error>("cudaErrorInsufficientDriver", [] { fec::cuda::device_count(); }), "no driver");
  require(throws<fec::cuda::Error>("cudaErrorInsufficientDriver", [&] { run(layers, f); }),
          "no driver");
  emulator::settings = emulator::Settings{};
  emulator::seen.device = 0;
  require(fec::cuda::device_count() == 1, "one device");
  const int64_t bytes = fec::cuda::workspace_bytes(layers.data(), 1, f);
  std::vector<char> memory(static_cast<size_t>(bytes) + 512);
  char* aligned = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256);
  const auto call = [&](char* at, int64_t size) {
    fec::cuda::entropies(layers.data(), 1, f, at, size, 0, nullptr);
  };
  require(throws<std::invalid_argument>("too small", [&] { call(aligned, bytes - 1); }), "too small a workspace");
  require(throws<std::invalid_argument>("aligned", [&] { call(aligned + 8, bytes); }),
          "an address that is not aligned");
  fec::Layer& empty = layers[0];
  for (int64_t* size : {&empty.inner, &empty.channels, &empty.taps}) {
    const int64_t before = *size;
    *size = 0;
    run(layers, f);
    require(emulator::seen.launches == 0, "nothing to do, no launch");
    *size = before;
  }
  empty.channels = int64_t(1) << 40;
  require(throws<std::invalid_argument>("2^30", [&] { run(layers, f); }), "too large");
  empty.channels = 40;
  const fec::Formula between{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1};
  require(throws<std::invalid_argument>("sorted needs", [&] { run(layers, between); }), "not sortable");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc > 1 && std::strcmp(argv[1], "small") == 0;
  few_orders = small;
  std::mt19937 random(1);
  launches(random);
  edges(small, random);
  formulas(small, random);
  batch(small, random);
  tables(random);
  hard(random);
  products(small, random);
  if (!small) not_finite(random);
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 ? 0 : 1;
}
