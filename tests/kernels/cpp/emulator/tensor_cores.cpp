// A tensor core's product of matrices, with the worst rounding known (emulator.h).
#include <algorithm>
#include <cmath>

#include "emulator.h"

namespace {

// A number cut off, towards zero, at a place.
double cut(double x, double place) { return std::trunc(x / place) * place; }

float worst_sum(float c, const double* products) {
  int top = -2000;
  for (int i = 0; i < 5; ++i) {
    const double x = i == 4 ? static_cast<double>(c) : products[i];
    if (x != 0) top = std::max(top, std::ilogb(x));  // of NaN and infinity the largest int
  }
  if (top == -2000) return 0;
  if (top > 1000) {
    return static_cast<float>(products[0] + products[1] + products[2] + products[3] + static_cast<double>(c));
  }
  double sum = cut(static_cast<double>(c), std::ldexp(1.0, top - 23));
  for (int i = 0; i < 4; ++i) sum += cut(products[i], std::ldexp(1.0, top - 23));
  return sum == 0 ? 0 : static_cast<float>(cut(sum, std::ldexp(1.0, std::ilogb(sum) - 23)));
}

}  // namespace

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
    for (int k = 0; k < 16; k += 4) {
      double products[4];
      for (int e = 0; e < 4; ++e) {
        const int at = k + e, pair = at % 8 / 2;
        const uint32_t x = rows[4 * g + pair][i / 2 + at / 8 * 2], y = columns[4 * n + pair][at / 8];
        products[e] = static_cast<double>(emulated_half(static_cast<uint16_t>(x >> 16 * (at % 2)))) *
                      static_cast<double>(emulated_half(static_cast<uint16_t>(y >> 16 * (at % 2))));
      }
      c[i] = worst_sum(c[i], products);
    }
  }
}
