// Fuzzing of the kernels' arguments: calls made of bytes, through the checks that the Python binding makes. An accepted
// call must be safe by a second opinion (128-bit arithmetic), touch no memory but the caller's (run it under the address
// and undefined-behaviour sanitizers), find the weights that are not finite, give entropies in range, and give the same
// bits on any number of threads. A refused call must be one that is not safe.
//
// With Clang and -DFEC_LIBFUZZER=ON this is a libFuzzer program. Else `fuzz_test [calls [seed]]` makes random calls.
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "checks.h"
#include "formula_check.h"

namespace {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  int byte() { return next_ < end_ ? *next_++ : 0; }
  uint64_t number() {
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | static_cast<uint64_t>(byte());
    return bits;
  }
  template <class T, size_t n>
  T one_of(const T (&choices)[n]) {
    return choices[static_cast<size_t>(byte()) % n];
  }

 private:
  const uint8_t *next_, *end_;
};

constexpr int64_t kEdges[] = {0,        1,          2,          15,           16,           17,
                              31,       33,         65,         129,          257,          513,
                              1L << 24, 1L << 31,   1L << 32,   (1L << 47),   (1L << 48),   (1L << 48) + 1,
                              1L << 62, INT64_MAX,  INT64_MIN,  -1,           -2,           (1L << 31) + 1};

int64_t size_from(Bytes& bytes) {
  const int kind = bytes.byte();
  if (kind < 224) return kind % 20;
  return kind < 254 ? bytes.one_of(kEdges) : static_cast<int64_t>(bytes.number());
}

// One layer of a call, the memory behind it, and whether there is any.
struct Part {
  fec::Layer layer{};
  std::unique_ptr<char[]> weight;
  std::unique_ptr<double[]> results;
  std::vector<double> first;  // the results on one thread
  bool is_real = true;
};

bool is_finite(const Part& part, int64_t at) {
  const int64_t size = fec::element_bytes(part.layer.dtype);
  uint64_t bits = 0;
  std::memcpy(&bits, part.weight.get() + at * size, static_cast<size_t>(size));
  switch (part.layer.dtype) {
    case fec::DType::F64: return (bits >> 52 & 0x7ff) != 0x7ff;
    case fec::DType::F32: return (bits >> 23 & 0xff) != 0xff;
    case fec::DType::BF16: return (bits >> 7 & 0xff) != 0xff;
    default: return (bits >> 10 & 0x1f) != 0x1f;
  }
}

bool all_finite(const Part& part) {
  const fec::Layer& l = part.layer;
  for (int64_t f = 0; f < l.filters(); ++f) {
    for (int64_t c = 0; c < l.channels; ++c) {
      for (int64_t t = 0; t < l.taps; ++t) {
        const int64_t at = f / l.inner * l.stride_outer + f % l.inner * l.stride_inner + c * l.stride_channel;
        if (!is_finite(part, at + t * l.stride_tap)) return false;
      }
    }
  }
  return true;
}

[[noreturn]] void fail(const char* what, const fec::Formula& formula, const Part& part) {
  const fec::Layer& l = part.layer;
  std::fprintf(stderr, "%s: dtype %d, algorithm %d, compress %d, entropy %d, axis %d, tau %g * %g, sizes %ld %ld %ld %ld, strides %ld %ld %ld %ld\n", what,
               int(l.dtype), int(l.algorithm), int(formula.compress), int(formula.entropy), int(formula.axis), formula.tau,
               formula.tau_scale, long(l.outer), long(l.inner), long(l.channels), long(l.taps),
               long(l.stride_outer), long(l.stride_inner), long(l.stride_channel), long(l.stride_tap));
  std::abort();
}

using Wide = __int128;

// The second opinion on a layer.
bool is_sound(const fec::Layer& l, const fec::Formula& f) {
  Wide elements = 1;
  for (const int64_t size : {l.outer, l.inner, l.channels, l.taps}) {
    if (size < 0) return false;
    if (size > 0) elements *= size;
    if (elements > Wide(1) << 48) return false;
  }
  if (Wide(l.outer) * l.inner > Wide(1) << 31 || l.channels > int64_t(1) << 31) return false;
  if (l.algorithm == fec::Algorithm::Sorted &&
      (f.axis == fec::Axis::Filters || (f.compress == fec::Compress::None && l.taps != 1))) {
    return false;
  }
  if (l.outer == 0 || l.inner == 0 || l.channels == 0 || l.taps == 0) return true;
  Wide last = 0;
  const int64_t sizes[] = {l.outer, l.inner, l.channels, l.taps};
  const int64_t strides[] = {l.stride_outer, l.stride_inner, l.stride_channel, l.stride_tap};
  for (int i = 0; i < 4; ++i) {
    const Wide reach = Wide(sizes[i] - 1) * strides[i];
    if (strides[i] < 0 || reach > Wide(1) << 48) return false;
    last += reach;
  }
  const int64_t bytes = fec::element_bytes(l.dtype);
  const auto address = reinterpret_cast<uintptr_t>(l.data);
  return address >= 4096 && Wide(address) + (last + 1) * bytes <= Wide(INTPTR_MAX) && address % uintptr_t(bytes) == 0;
}

bool has_sound_result(const fec::Layer& l) {
  const auto address = reinterpret_cast<uintptr_t>(l.out);
  return l.filters() == 0 ||
         (address >= 4096 && address % 8 == 0 && Wide(address) + Wide(l.filters()) * 8 <= Wide(INTPTR_MAX));
}

// Addresses that are none, by a byte; most of the time the memory's own.
template <class T>
T* address_from(Bytes& bytes, T* own, bool& is_real) {
  const int kind = bytes.byte();
  if (kind < 216) return own;
  is_real = false;
  const uintptr_t addresses[] = {0, 8, 4095, 4096, uintptr_t(INTPTR_MAX) - 7, UINTPTR_MAX - 7, bytes.number()};
  if (kind < 224) return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(own) + uintptr_t(kind % 8));
  return reinterpret_cast<T*>(addresses[kind % 7]);
}

Part part_from(Bytes& bytes) {
  Part part;
  fec::Layer& l = part.layer;
  const Shape shape{bytes.byte() < 192 ? 1 : size_from(bytes), size_from(bytes), size_from(bytes), size_from(bytes)};
  const double elements = double(shape.outer) * double(shape.inner) * double(shape.channels) * double(shape.taps);
  const bool is_small = shape.outer >= 0 && shape.inner >= 0 && shape.channels >= 0 && shape.taps >= 0 &&
                        elements <= 1 << 20 && shape.outer <= 1 << 20 && shape.inner <= 1 << 20 &&
                        shape.channels <= 1 << 20 && shape.taps <= 1 << 20;
  const int layout = bytes.byte();
  if (is_small) {
    l = strided(shape, static_cast<Layout>(layout % 3));
  } else {
    l.outer = shape.outer, l.inner = shape.inner, l.channels = shape.channels, l.taps = shape.taps;
  }
  l.dtype = bytes.one_of({fec::DType::F32, fec::DType::F64, fec::DType::F16, fec::DType::BF16});
  l.algorithm = bytes.one_of({fec::Algorithm::Pairwise, fec::Algorithm::Sorted});
  if (layout >= 192) {  // any strides: they overlap, leave gaps, or reach too far
    for (int64_t* stride : {&l.stride_outer, &l.stride_inner, &l.stride_channel, &l.stride_tap}) {
      if (bytes.byte() < 96) *stride = size_from(bytes);
    }
  }
  // The memory that the layer needs, and not a byte more.
  double last = 0;
  const int64_t sizes[] = {l.outer, l.inner, l.channels, l.taps};
  const int64_t strides[] = {l.stride_outer, l.stride_inner, l.stride_channel, l.stride_tap};
  bool is_empty = false;
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] < 0 || strides[i] < 0) part.is_real = false;
    is_empty |= sizes[i] == 0;
    if (sizes[i] > 0) last += double(sizes[i] - 1) * double(strides[i]);
  }
  const double needed = is_empty ? 0 : (last + 1) * double(fec::element_bytes(l.dtype));
  const double filters = double(l.outer) * double(l.inner);
  if (needed < 0 || needed > 1 << 20 || filters < 0 || filters > 1 << 12) part.is_real = false;
  const size_t held = part.is_real ? static_cast<size_t>(needed) : 64;
  part.weight.reset(new char[held]);
  // Some bytes of the input, again and again: many weights are alike, any may be subnormal, infinite or no number.
  uint64_t pattern[4];
  for (uint64_t& word : pattern) word = bytes.number();
  const uint64_t mask = bytes.byte() < 128 ? 0xbfffbfffbfffbfffull : ~0ull;  // without the largest exponents
  for (size_t i = 0; i < held; ++i) {
    part.weight[i] = static_cast<char>((pattern[i / 8 % 4] & mask) >> 8 * (i % 8) ^ (i / 32 * 0x9e37 >> 7 & 0x3f));
  }
  part.results.reset(new double[part.is_real ? static_cast<size_t>(filters) : 8]);
  l.data = address_from(bytes, static_cast<const char*>(part.weight.get()), part.is_real);
  l.out = address_from(bytes, part.results.get(), part.is_real);
  return part;
}

double tau_from(Bytes& bytes) {
  const double taus[] = {0, 0, 0, 1, 0.5, -1, NAN, INFINITY, 1e-320, 1e300, 5e-324, 1e-30};
  return bytes.one_of(taus);
}

uint64_t accepted = 0, refused = 0, computed = 0;

template <class Check>
bool passes(const Check& check) {
  try {
    check();
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

void call(Bytes& bytes) {
  const fec::Formula formula{
      bytes.one_of({fec::Compress::Rms, fec::Compress::AbsMean, fec::Compress::Mean, fec::Compress::None}),
      bytes.one_of({fec::Entropy::Similarity, fec::Entropy::Softmax, fec::Entropy::Distance}),
      bytes.one_of({fec::Axis::Channels, fec::Axis::Filters}), tau_from(bytes),
      bytes.one_of({1.0, 1.0, 1.0, 0.5, 1e-300, 1e300, 0.0, -1.0, double(NAN), double(INFINITY), 5e-324})};
  const int threads = bytes.byte() < 224 ? 1 + bytes.byte() % 8 : static_cast<int>(bytes.number());
  const char* const sets[] = {"", "baseline", "avx2", "avx512", "AVX2", "x"};
  const std::string set = bytes.one_of(sets);
  const bool in_float64 = bytes.byte() % 4 == 0;
  std::vector<Part> parts;
  for (int i = 1 + bytes.byte() % 3; i > 0; --i) parts.push_back(part_from(bytes));

  const bool formula_passes = passes([&] { fec::check_formula(formula); });
  if (formula_passes != (std::isfinite(formula.tau) && formula.tau >= 0 && std::isfinite(formula.tau_scale) &&
                         formula.tau_scale > 0)) {
    fail("the formula was judged wrongly", formula, parts[0]);
  }
  const bool threads_pass = passes([&] { fec::check_threads(threads); });
  if (threads_pass != (threads >= 1 && threads <= 1 << 16)) fail("the threads were judged wrongly", formula, parts[0]);
  bool all_pass = formula_passes && threads_pass, all_real = true;
  double work = 0;
  for (const Part& part : parts) {
    const bool weight_passes = passes([&] { fec::checked_filters(part.layer, formula, 0); });
    if (weight_passes != is_sound(part.layer, formula)) fail("a layer was judged wrongly", formula, part);
    if (!weight_passes) {
      all_pass = false;
      continue;
    }
    const bool result_passes = passes([&] { fec::check_result(part.layer, 0); });
    if (result_passes != has_sound_result(part.layer)) fail("a result was judged wrongly", formula, part);
    all_pass = all_pass && result_passes;
    all_real = all_real && part.is_real;
    const double filters = double(part.layer.filters()), channels = double(part.layer.channels);
    work += filters * channels * double(part.layer.taps) * (formula.axis == fec::Axis::Filters ? filters : channels);
  }
  (all_pass ? accepted : refused) += 1;
  if (!all_pass || !all_real || work > double(1 << 22)) return;

  std::vector<fec::Layer> layers;
  for (const Part& part : parts) layers.push_back(part.layer);
  int64_t bad = -1;
  for (const int now : {1, threads > 8 ? 3 : threads}) {
    int64_t found = -1;
    try {
      found = fec::entropies(layers.data(), static_cast<int64_t>(layers.size()), formula,
                             {now, set.c_str(), nullptr, in_float64});
    } catch (const std::invalid_argument&) {  // no such instruction set
      if (set.empty() || set == "baseline") fail("an instruction set is missing", formula, parts[0]);
      return;
    }
    ++computed;
    bad = -1;
    for (size_t i = 0; i < parts.size() && bad < 0; ++i) {
      if (!all_finite(parts[i])) bad = static_cast<int64_t>(i);
    }
    if (found != bad) fail("weights that are not finite were missed, or others were not", formula, parts[0]);
    if (bad >= 0) return;
    for (Part& part : parts) {
      const int64_t filters = part.layer.filters();
      const double points =
          double(formula.axis == fec::Axis::Channels ? part.layer.channels : filters);
      for (int64_t i = 0; i < filters; ++i) {
        const double nats = part.results[static_cast<size_t>(i)];
        if (!(nats >= 0 && nats <= std::log(std::fmax(1, points)))) fail("an entropy is out of range", formula, part);
      }
      if (filters == 0) continue;
      if (part.first.empty()) {
        part.first.assign(part.results.get(), part.results.get() + filters);
      } else if (std::memcmp(part.first.data(), part.results.get(), static_cast<size_t>(filters) * 8) != 0) {
        fail("not the same bits on more threads", formula, part);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  call(bytes);
  return 0;
}

#ifndef FEC_LIBFUZZER
int main(int count, char** arguments) {
  const long calls = count > 1 ? std::atol(arguments[1]) : 20000;
  std::mt19937 random(count > 2 ? static_cast<unsigned>(std::atol(arguments[2])) : 1);
  std::vector<uint8_t> bytes(256);
  for (long i = 0; i < calls; ++i) {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() % 16 == 0 ? 255 - random() % 32 : random() % 224);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%lu calls accepted, %lu refused; the kernels ran %lu times\n", static_cast<unsigned long>(accepted),
              static_cast<unsigned long>(refused), static_cast<unsigned long>(computed));
  return computed > 0 && refused > 0 ? 0 : 1;
}
#endif
