// A tensor core's products of matrices, with the worst rounding known: those of a warp (emulator.h), and those of a
// warpgroup, which go on beside its threads (warpgroup.h).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "emulator.h"

namespace {

uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return bits;
}
double power_of(uint64_t exponent) {  // biased
  const uint64_t bits = exponent << 52;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
uint64_t exponent_of(double x) { return bits_of(x) >> 52 & 0x7ff; }

// A number cut off, towards zero, 23 places below the highest of a number with this exponent.
double cut(double x, uint64_t exponent) {
  const auto whole = static_cast<int64_t>(x * power_of(2 * 1023 + 23 - exponent));
  return static_cast<double>(whole) * power_of(exponent - 23);
}

float worst_sum(float c, const double* products) {
  uint64_t top = exponent_of(static_cast<double>(c));
  for (int i = 0; i < 4; ++i) top = std::max(top, exponent_of(products[i]));
  if (top == 0) return 0;
  if (top == 0x7ff) {  // something is not finite
    return static_cast<float>(products[0] + products[1] + products[2] + products[3] + static_cast<double>(c));
  }
  double sum = cut(static_cast<double>(c), top);
  for (int i = 0; i < 4; ++i) sum += cut(products[i], top);
  return sum == 0 ? 0 : static_cast<float>(cut(sum, exponent_of(sum)));
}

// What a thread has started. Neighbouring blocks have their own, as they have fibers of their own.
struct Asynchronous {
  std::vector<emulator::Product> products;  // those that are not finished, oldest first
  std::vector<size_t> groups;  // the sizes of their groups
  size_t issued = 0;
  bool fenced = false;
  std::vector<uint32_t> copies;  // arrived, not shown yet: offsets in shared memory
};
std::vector<Asynchronous> threads;
size_t first = 0, count = 0;  // of those that are this block's
std::vector<char> hidden;  // whether 16 bytes of shared memory are not shown yet
size_t size = 0;

Asynchronous& own() { return threads[first + emulator::here.thread.x]; }

}  // namespace

namespace emulator {

float worst_dot(float c, const uint16_t* a, const uint16_t* b) {
  for (int k = 0; k < 16; k += 4) {
    double products[4];
    for (int e = 0; e < 4; ++e) {
      products[e] = static_cast<double>(emulated_half(a[k + e])) * static_cast<double>(emulated_half(b[k + e]));
    }
    c = worst_sum(c, products);
  }
  return c;
}

void begin_products(size_t first_fiber, size_t fibers, size_t shared_bytes) {
  first = first_fiber;
  count = fibers;
  if (threads.size() < 2 * count) threads.resize(2 * count);
  for (size_t t = first; t < first + count; ++t) {
    threads[t].products.clear();
    threads[t].copies.clear();
    threads[t].groups.clear();
    threads[t].issued = 0;
    threads[t].fenced = false;
  }
  hidden.assign(shared_bytes / 16 + 1, 0);
  size = shared_bytes;
}

void end_products() {
  if (!own().products.empty()) fault("a thread ends before its products");
}

void compare_warpgroups() {
  for (size_t t = 0; t < count; ++t) {
    const size_t issued = threads[first + t].issued, by_first = threads[first + t / 128 * 128].issued;
    if (issued != by_first) fault("threads of a warpgroup have started %zu and %zu products", by_first, issued);
  }
}

size_t shared_size() { return size; }

void hide_copy(void* to) {
  const auto offset = static_cast<uint32_t>(static_cast<char*>(to) - static_cast<const char*>(shared_base()));
  hidden[offset / 16] = 1;
  own().copies.push_back(offset);
}

void show_copies() {
  for (const uint32_t offset : own().copies) hidden[offset / 16] = 0;
  own().copies.clear();
}

bool is_hidden(uint32_t offset) { return hidden[offset / 16] != 0; }

void fence_products() { own().fenced = true; }

void start_product(const Product& product) {
  const uint64_t* all = meet(0xffffffffu, Meeting::Product, product.rows ^ product.columns << 20 ^ product.columns >> 44);
  if (seen.fault[0] != 0) return;
  for (int l = 0; l < 32; ++l) {
    if (all[l] != all[0]) fault("lanes of a warp multiply different matrices");
  }
  Asynchronous& self = own();
  if (!self.fenced) fault("products into sums that no fence stands before");
  self.products.push_back(product);
  self.products.back().rows ^= settings.wrong_bits;
  self.products.back().columns ^= settings.wrong_bits;
  ++self.issued;
  for (int i = 0; i < 64; ++i) product.sums[i] = NAN;
}

void commit_products() {
  size_t grouped = 0;
  for (const size_t size : own().groups) grouped += size;
  own().groups.push_back(own().products.size() - grouped);
}

bool next_product(int pending, Product& product) {
  Asynchronous& self = own();
  self.fenced = false;
  while (self.groups.size() > static_cast<size_t>(pending)) {
    if (self.groups.front() > 0) {
      --self.groups.front();
      product = self.products.front();
      self.products.erase(self.products.begin());
      return true;
    }
    self.groups.erase(self.groups.begin());
  }
  return false;
}

}  // namespace emulator

void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t rows[32][4], columns[32][2];  // copied: the third meeting overwrites the first
  for (int part = 0; part < 3; ++part) {
    const uint64_t brought = part < 2 ? static_cast<uint64_t>(a[2 * part + 1]) << 32 | a[2 * part]
                                      : static_cast<uint64_t>(b[1]) << 32 | b[0];
    const uint64_t* all = emulator::meet(0xffffffffu, emulator::Meeting::Mma, brought);
    for (int l = 0; l < 32; ++l) {
      uint32_t* to = part < 2 ? rows[l] + 2 * part : columns[l];
      to[0] = static_cast<uint32_t>(all[l]);
      to[1] = static_cast<uint32_t>(all[l] >> 32);
    }
  }
  const int own = emulator::own_lane();
  for (int i = 0; i < 4; ++i) {
    const int g = own / 4, n = 2 * (own % 4) + i % 2;  // row g, or g + 8 (i / 2), of column n
    uint16_t x[16], y[16];
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      x[k] = static_cast<uint16_t>(rows[4 * g + pair][i / 2 + k / 8 * 2] >> 16 * (k % 2));
      y[k] = static_cast<uint16_t>(columns[4 * n + pair][k / 8] >> 16 * (k % 2));
    }
    c[i] = emulator::worst_dot(c[i], x, y);
  }
}
