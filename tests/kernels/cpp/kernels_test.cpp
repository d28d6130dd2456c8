// The kernels against a plain double-precision formula, without Python: every instruction set, storage type, layout,
// axis and entropy, shapes around the edges of vectors, panels, tiles and batches, on one and on three threads. Meant
// to run under sanitizers: every weight lies in an allocation of exactly its size.
#include <cstdio>
#include <string>
#include <thread>

#include "cpu/self_timing.h"
#include "formula_check.h"

namespace {

int failures = 0, checks = 0;

void check(const Shape& s, Layout layout, fec::DType dtype, const fec::Formula& f, std::mt19937& random) {
  fec::Layer layer = strided(s, layout);
  std::vector<double> w = random_weights(static_cast<size_t>(s.outer * s.inner * s.channels * s.taps), random);
  const std::vector<char> bytes = stored(w, dtype);
  const std::unique_ptr<char[]> exact(new char[bytes.size()]);  // no slack behind it: a read past the end is seen
  std::memcpy(exact.get(), bytes.data(), bytes.size());
  std::vector<double> out(static_cast<size_t>(layer.filters()), -1), again(out), before;
  layer.data = exact.get();
  layer.dtype = dtype;
  layer.out = out.data();
  const std::vector<double> want = reference(w, layer, f);
  const double points = double(f.axis == fec::Axis::Channels ? s.channels : layer.filters());
  const double allowed = tolerance(dtype, points);
  for (const fec::InstructionSet* set = fec::instruction_sets(); set->name != nullptr; ++set) {
    if (!set->usable) continue;
    for (const fec::Algorithm algorithm : {usual(layer, f), fec::Algorithm::Pairwise}) {
      layer.algorithm = algorithm;
      before.clear();
      for (const int threads : {1, 3}) {
        fec::Layer twice[] = {layer, layer};
        twice[1].out = again.data();
        const int64_t bad = fec::entropies(twice, 2, f, {threads, set->name});
        double worst = bad == -1 ? 0 : INFINITY;
        for (size_t i = 0; i < out.size(); ++i) worst = std::fmax(worst, std::fabs(out[i] - want[i]));
        const bool same = again == out && (before.empty() || before == out);
        ++checks;
        if (!(worst <= allowed) || !same) {
          ++failures;
          std::printf(
              "%s, algorithm %d, dtype %d, %s, [%lld x %lld, %lld, %lld], compress %d entropy %d axis %d, %d threads: "
              "off by %.2e (allowed %.2e)%s\n",
              set->name, int(algorithm), int(dtype), kLayouts[int(layout)], (long long)s.outer, (long long)s.inner,
              (long long)s.channels, (long long)s.taps, int(f.compress), int(f.entropy), int(f.axis), threads, worst,
              allowed, same ? "" : ", and not the same bits again or on other threads");
        }
        before = out;
      }
    }
  }
}

int asked = 0;

bool give_up() {
  ++asked;
  return true;
}

// A caller that wants to give up is asked in the middle of a layer, and gets an exception instead of results.
void check_interruption() {
  const Shape shape{1, 3000, 64, 9};
  fec::Layer layer = strided(shape, Layout::Rows);
  std::mt19937 random(2);
  std::vector<double> w = random_weights(3000 * 64 * 9, random);
  const std::vector<char> bytes = stored(w, fec::DType::F32);
  std::vector<double> out(3000);
  layer.data = bytes.data();
  layer.dtype = fec::DType::F32;
  layer.algorithm = fec::Algorithm::Pairwise;
  layer.out = out.data();
  const fec::Formula f{fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1};
  for (const int threads : {1, 3}) {
    bool interrupted = false;
    asked = 0;
    try {
      fec::entropies(&layer, 1, f, {threads, "", give_up});
    } catch (const fec::Interrupted&) {
      interrupted = true;
    }
    ++checks;
    if (!interrupted || asked != 1) {
      ++failures;
      std::printf("not interrupted with %d threads; asked %d times\n", threads, asked);
    }
  }
}

}  // namespace

// The instruction set is chosen at first use, here by several threads at once; it is one that this processor has, and
// stays. A wider one is left for a narrower one only if that is faster by a margin.
void check_choice() {
  std::vector<std::string> names(4);
  std::vector<std::thread> threads;
  for (std::string& name : names) threads.emplace_back([&name] { name = fec::fastest_instruction_set(); });
  for (std::thread& thread : threads) thread.join();
  bool right = true, found = false;
  int timed = 0;
  for (const std::string& name : names) right = right && name == fec::fastest_instruction_set();
  for (const fec::InstructionSet* set = fec::timed_instruction_sets(); set->name != nullptr; ++set) {
    timed += set->seconds > 0;
    right = right && (set->usable || !(set->seconds > 0));
    found = found || (set->usable && names[0] == set->name);
  }
  right = right && found && timed != 1;
  const struct {
    double seconds[2];
    int best;
  } cases[] = {{{1, 2}, 0}, {{2, 1}, 1}, {{1, 1}, 1}, {{1, 1.04}, 1}, {{1, 1.06}, 0}};
  for (const auto& each : cases) right = right && fec::cpu::fastest_of(each.seconds, 2) == each.best;
  right = right && fec::cpu::fastest_of(cases[0].seconds, 1) == 0;
  ++checks;
  if (!right) {
    ++failures;
    std::printf("the choice of an instruction set: %s\n", names[0].c_str());
  }
}

// A layer whose first weights say nothing about its largest: the guessed scale is replaced, and what is not finite is
// found. Calls that run at the same time share no memory.
void check_guess() {
  const Shape shape{1, 40, 100, 9};
  const size_t n = 40 * 100 * 9;
  std::mt19937 random(3);
  const fec::Formula f{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  const auto scored = [&](const std::vector<char>& bytes, std::vector<double>& out) {
    fec::Layer layer = strided(shape, Layout::Rows);
    layer.data = bytes.data();
    layer.dtype = fec::DType::F32;
    layer.algorithm = fec::Algorithm::Sorted;
    layer.out = out.data();
    return fec::entropies(&layer, 1, f, {2, ""});
  };
  bool right = true;
  for (const double factor : {0.0, 1e-30, 1e30, 1.0, double(INFINITY), double(NAN)}) {
    std::vector<double> w = random_weights(n, random);
    for (size_t i = 0; i < 3000; ++i) w[i] = factor == 0 ? 0 : w[i] * 0x1p-10;
    for (size_t i = 3000; i < n && factor != 0; ++i) w[i] = static_cast<float>(w[i] * factor);
    const std::vector<char> bytes = stored(w, fec::DType::F32);
    std::vector<double> one(40), two(40);
    int64_t bad[2] = {};
    std::thread other([&] { bad[0] = scored(bytes, one); });
    bad[1] = scored(bytes, two);
    other.join();
    if (!std::isfinite(factor)) {
      right = right && bad[0] == 0 && bad[1] == 0;
      continue;
    }
    const std::vector<double> want = reference(w, strided(shape, Layout::Rows), f);
    double worst = bad[0] == -1 && bad[1] == -1 ? 0 : INFINITY;
    for (size_t i = 0; i < want.size(); ++i) worst = std::fmax(worst, std::fabs(one[i] - want[i]));
    right = right && one == two && worst <= tolerance(fec::DType::F32, 100);
  }
  ++checks;
  if (!right) {
    ++failures;
    std::printf("layers whose first weights say nothing about the others\n");
  }
}

int main() {
  check_choice();  // first: nothing has chosen yet
  std::mt19937 random(1);
  const Shape shapes[] = {{1, 1, 2, 9},  {1, 3, 17, 1},  {1, 16, 16, 9}, {2, 17, 33, 4},
                          {1, 33, 40, 9}, {1, 5, 130, 2}, {1, 140, 7, 1}, {3, 48, 15, 25}};
  for (const Shape& shape : shapes) {
    for (const Layout layout : {Layout::Rows, Layout::ChannelsLast, Layout::SecondAxis}) {
      for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64, fec::DType::F16, fec::DType::BF16}) {
        for (const fec::Compress compress :
             {fec::Compress::Rms, fec::Compress::AbsMean, fec::Compress::Mean, fec::Compress::None}) {
          for (const fec::Entropy entropy :
               {fec::Entropy::Similarity, fec::Entropy::Softmax, fec::Entropy::Distance}) {
            for (const fec::Axis axis : {fec::Axis::Channels, fec::Axis::Filters}) {
              if (axis == fec::Axis::Filters && shape.outer * shape.inner == 1) continue;
              check(shape, layout, dtype, {compress, entropy, axis, 0, 1}, random);
            }
          }
        }
      }
    }
  }
  const fec::Formula sorted{fec::Compress::Rms, fec::Entropy::Similarity, fec::Axis::Channels, 0, 1};
  for (const int64_t channels : {15, 16, 31, 48, 63, 65, 127, 200, 511, 513, 700, 1030}) {
    check({1, 3, channels, 1}, Layout::Rows, fec::DType::F32, sorted, random);
    check({1, 3, channels, 1}, Layout::Rows, fec::DType::F64, sorted, random);
  }
  for (const fec::Entropy entropy : {fec::Entropy::Softmax, fec::Entropy::Distance}) {
    const fec::Formula scanned{fec::Compress::Rms, entropy, fec::Axis::Channels, 0, 1};
    check({1, 19, 700, 1}, Layout::Rows, fec::DType::F32, scanned, random);
    check({1, 19, 700, 1}, Layout::Rows, fec::DType::F64, scanned, random);
  }
  check({1, 530, 30, 1}, Layout::Rows, fec::DType::F32,
        {fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1}, random);
  for (const fec::DType dtype : {fec::DType::F32, fec::DType::F64}) {  // coordinates in two blocks and in three
    check({1, 40, 3300, 1}, Layout::Rows, dtype,
          {fec::Compress::None, fec::Entropy::Similarity, fec::Axis::Filters, 0, 1}, random);
  }
  check_interruption();
  check_guess();
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 ? 0 : 1;
}
