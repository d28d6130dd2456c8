// `wgmma` of sm_90a in the emulator: matrices in shared memory, read as their descriptors say; sums that hold NaN until they
// are waited for; and the fences that have to be there (csrc/cuda/pairwise/warpgroup.cuh). Part of emulator.h.
#pragma once

namespace emulator {

// A block's shared memory begins here, among the addresses of shared memory: at a multiple of 16 bytes and no more.
constexpr uint32_t kWindow = 1040;

struct Product {
  uint64_t rows, columns;
  bool add;
  float* sums;
};
void start_product(const Product& product);
void commit_products();
void fence_products();
void show_copies();
// The next product that a wait for all but the last `pending` groups is for; false if there is none.
bool next_product(int pending, Product& product);
bool is_hidden(uint32_t offset);  // of 16 bytes of shared memory, from its beginning
size_t shared_size();

// c and the products of 16 coordinates, with the worst rounding known.
float worst_dot(float c, const uint16_t* a, const uint16_t* b);

// Eight coordinates of a row of a matrix: by the descriptor, and the swizzle, which exchanges bits of the address.
inline const uint16_t* eight_of(uint64_t matrix, int row, int eight) {
  const auto field = [&](int from, int bits) { return static_cast<uint32_t>(matrix >> from & ((1u << bits) - 1)); };
  const uint32_t swizzle = field(62, 2);  // none, 128, 64 or 32 bytes
  if (field(49, 3) != 0) fault("a matrix with a base offset");
  const uint32_t width = swizzle == 0 ? 16 : 256u >> swizzle;
  const uint32_t along = swizzle == 0 ? static_cast<uint32_t>(eight) * (field(16, 14) << 4)
                                      : static_cast<uint32_t>(eight) * 16;
  uint32_t address = (field(0, 14) << 4) + static_cast<uint32_t>(row / 8) * (field(32, 14) << 4) +
                     static_cast<uint32_t>(row % 8) * width + along;
  address ^= address >> 3 & (width - 16);
  const uint32_t offset = address - kWindow;
  if (offset + 16 > shared_size()) {
    fault("a matrix outside the block's shared memory");
    return nullptr;
  }
  if (is_hidden(offset)) fault("a product reads a copy that no fence has shown to it");
  return reinterpret_cast<const uint16_t*>(static_cast<const char*>(shared_base()) + offset);
}

}  // namespace emulator

namespace fec::cuda {

static inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(static_cast<const char*>(at) - static_cast<const char*>(::emulator::shared_base())) +
         ::emulator::kWindow;
}
static inline void copy_or_zero(void* to, const void* from, bool there) {
  copy_async(to, there ? from : nullptr);
}
static inline void show_copies(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (::emulator::has_barrier(file, line)) ::emulator::show_copies();
}
static inline void begin_products(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (::emulator::has_barrier(file, line)) ::emulator::fence_products();
}
static inline void commit_products(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (::emulator::has_barrier(file, line)) ::emulator::commit_products();
}
static inline void start_product(float (&sums)[64], uint64_t rows, uint64_t columns, bool add) {
  ::emulator::start_product({rows, columns, add, sums});
}
// Computed as late as it may be: what overwrites the matrices before is seen. The first product into some sums after a wait
// must not add to them: they would be NaN.
template <int pending>
static inline void wait_products(float (&)[64], const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!::emulator::has_barrier(file, line)) return;
  const int g = ::emulator::own_lane() / 4, q = ::emulator::own_lane() % 4;
  const int top = static_cast<int>(::emulator::here.thread.x / 32 % 4) * 16 + g;
  ::emulator::Product product;
  while (::emulator::next_product(pending, product)) {
    uint16_t rows[2][16], column[16];
    const auto load = [](uint16_t* to, uint64_t matrix, int row) {
      for (int eight = 0; eight < 2; ++eight) {
        const uint16_t* from = ::emulator::eight_of(matrix, row, eight);
        for (int i = 0; i < 8; ++i) to[8 * eight + i] = from == nullptr ? 0xffff : from[i];
      }
    };
    for (int half = 0; half < 2; ++half) load(rows[half], product.rows, top + 8 * half);
    for (int i = 0; i < 32; ++i) {
      load(column, product.columns, i / 2 * 8 + 2 * q + i % 2);
      for (int half = 0; half < 2; ++half) {
        float& sum = product.sums[4 * (i / 2) + 2 * half + i % 2];
        sum = ::emulator::worst_dot(product.add ? sum : 0, rows[half], column);
      }
    }
  }
}

}  // namespace fec::cuda
