// The emulator's scheduler. One block runs at a time; each of its threads is a fiber that runs until it has to wait.
//
// Never compiled with -fsanitize itself: FEC_ASAN and FEC_TSAN say how the kernels are compiled. For the thread
// sanitizer each fiber is a thread, and only barriers and the order of launches synchronise them. So it sees races
// within a block and between blocks.
#include "emulator.h"

#include <algorithm>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#ifndef __x86_64__
#error "the emulator switches fibers in x86-64 assembly"
#endif
#ifdef FEC_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FEC_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

// Saves the callee-saved registers and the stack pointer, and loads those of another fiber.
extern "C" void emulator_switch(void** save, void* take);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {

cudaError_t pending_error = cudaSuccess;
Settings settings;
Seen seen;
Barrier barriers[256];
int barriers_count = 0;
Coordinates here;

namespace {

void* expected_stream = nullptr;
int expected_device = 0;
constexpr size_t kStack = 128 << 10;

struct Fiber {
  std::vector<unsigned char> stack;
  void* pointer = nullptr;
  void* sanitizer = nullptr;  // of the thread sanitizer
  void* fake_stack = nullptr;  // of the address sanitizer
  Coordinates coordinates;
  char sync = 0;  // of its stack, from block to block
  bool done = false;
  unsigned meetings = 0;  // of its warp's or block's that it has been to
  unsigned block_meetings = 0;
  std::vector<Copy> copies;  // not yet arrived, oldest first
  std::vector<size_t> groups;  // the sizes of their groups; copies behind the last group are in none yet
};

// A meeting of a warp's lanes: `values` of the current one and of the previous one, which may still be read.
struct Warp {
  unsigned arrived = 0, mask = 0, done = 0;
  Meeting kind = Meeting::Sync;
  uint64_t values[2][32] = {};
  char* sync = nullptr;  // two
};

struct Block {
  std::vector<Fiber> fibers;  // twice as many as the largest block had
  size_t first = 0;  // of those that are this block's
  unsigned threads = 0;
  std::vector<Warp> warps;
  unsigned arrived = 0, votes = 0, last_votes = 0, done = 0, left = 0;
  char* sync = nullptr;  // two; of each block its own, or the barriers of one would order the threads of others
  unsigned char* aligned = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* thread = nullptr;
  bool moved = false;
} block;

char launch_start, launch_end;
Fiber* current = nullptr;
void* scheduler = nullptr;
#ifdef FEC_TSAN
void* scheduler_fiber = nullptr;
#endif
#ifdef FEC_ASAN
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
#endif

void to_scheduler() {
  Fiber* self = current;
#ifdef FEC_ASAN
  __sanitizer_start_switch_fiber(self->done ? nullptr : &self->fake_stack, scheduler_stack, scheduler_size);
#endif
#ifdef FEC_TSAN
  __tsan_switch_to_fiber(scheduler_fiber, 1);
#endif
  emulator_switch(&self->pointer, scheduler);
#ifdef FEC_ASAN
  __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_size);
#endif
}

void begin() {
#ifdef FEC_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  Fiber* self = current;
  __tsan_acquire(&self->sync);
  __tsan_acquire(&launch_start);
  (*block.thread)();
  if (!self->copies.empty()) fault("a thread ends before its copies to shared memory have arrived");
  end_products();
  __tsan_release(&launch_end);
  __tsan_release(&self->sync);
  current->done = true;
  block.moved = true;
  ++block.left;
  to_scheduler();
  std::abort();
}

void to_fiber(Fiber& fiber) {
  current = &fiber;
  here = fiber.coordinates;
#ifdef FEC_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.data(), fiber.stack.size());
#endif
#ifdef FEC_TSAN
  __tsan_switch_to_fiber(fiber.sanitizer, 1);
#endif
  emulator_switch(&scheduler, fiber.pointer);
#ifdef FEC_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber) {
  if (fiber.stack.empty()) fiber.stack.resize(kStack);
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.data() + kStack) & ~uintptr_t(15);
  auto* words = reinterpret_cast<void**>(top) - 8;
  std::memset(words, 0, 64);
  words[6] = reinterpret_cast<void*>(&begin);  // six registers, then where to return to
  fiber.pointer = words;
  fiber.done = false;
  fiber.meetings = fiber.block_meetings = 0;
  fiber.copies.clear();
  fiber.groups.clear();
}

void stuck(const char* kernel) {
  int waiting = 0;
  for (unsigned t = 0; t < block.threads; ++t) waiting += !block.fibers[block.first + t].done;
  fault("%s, block %u: %d of %u threads wait for others that have gone another way", kernel, here.block.x, waiting,
        block.threads);
}

}  // namespace

void fault(const char* format, ...) {
  if (seen.fault[0] != 0) return;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(seen.fault, sizeof seen.fault, format, arguments);
  va_end(arguments);
}

bool has_barrier(const char* file, int line) {
  int i = 0;
  while (i < barriers_count && !(barriers[i].line == line && std::strcmp(barriers[i].file, file) == 0)) ++i;
  if (i == barriers_count && i < 256) barriers[barriers_count++] = {file, line};
  if (line != settings.removed_line) return true;
  const size_t length = std::strlen(file), wanted = std::strlen(settings.removed_file);
  return length < wanted || std::strcmp(file + length - wanted, settings.removed_file) != 0;
}

void expect(void* stream, int device) {
  expected_stream = stream;
  expected_device = device;
}

void reset() {
  const int device = seen.device;
  seen = Seen{};
  seen.device = device;
  pending_error = cudaSuccess;
}

unsigned char* shared_memory(size_t least) {
  if (least > block.shared_bytes) {
    fault("a kernel wants %zu bytes of shared memory; the launch gave it %zu", least, block.shared_bytes);
  }
  return block.aligned;
}

void start_copy(const Copy& copy) {
  if (reinterpret_cast<uintptr_t>(copy.to) % 16 != 0 || reinterpret_cast<uintptr_t>(copy.from) % 16 != 0) {
    fault("a copy to shared memory is not aligned to 16 bytes");
  }
  current->copies.push_back(copy);
}

void commit_copies() {
  size_t grouped = 0;
  for (const size_t size : current->groups) grouped += size;
  current->groups.push_back(current->copies.size() - grouped);
}

bool next_finished(int pending, Copy& copy) {
  auto& groups = current->groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    if (groups.front() > 0) {
      --groups.front();
      copy = current->copies.front();
      current->copies.erase(current->copies.begin());
      return true;
    }
    groups.erase(groups.begin());
  }
  return false;
}

const uint64_t* meet(unsigned mask, Meeting kind, uint64_t brought) {
  Warp& warp = block.warps[here.thread.x / 32];
  const unsigned own = 1u << (here.thread.x & 31), meeting = current->meetings++;
  const unsigned parity = meeting & 1;
  if (!(mask & own)) fault("a lane meets others with a mask %08x that it is not in", mask);
  while (warp.done != meeting && seen.fault[0] == 0)
    to_scheduler();  // lanes are still in the previous meeting
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.kind = kind;
  } else if (warp.mask != mask || warp.kind != kind) {
    fault("lanes of a warp meet with different masks (%08x, %08x) or for different things", warp.mask, mask);
  }
  warp.values[parity][here.thread.x & 31] = brought;
  __tsan_release(&warp.sync[parity]);
  warp.arrived |= own;
  block.moved = true;
  if (warp.arrived == warp.mask) {
    warp.arrived = 0;
    ++warp.done;
  }
  while (warp.done == meeting && seen.fault[0] == 0) to_scheduler();
  __tsan_acquire(&warp.sync[parity]);
  return warp.values[parity];
}

int meet_block(int vote) {
  const unsigned meeting = current->block_meetings++, parity = meeting & 1;
  block.votes += static_cast<unsigned>(vote);
  __tsan_release(&block.sync[parity]);
  block.moved = true;
  if (++block.arrived == block.threads) {
    block.arrived = 0;
    block.last_votes = block.votes;
    block.votes = 0;
    ++block.done;
  }
  while (block.done == meeting && seen.fault[0] == 0) to_scheduler();
  __tsan_acquire(&block.sync[parity]);
  return static_cast<int>(block.last_votes);
}

const void* shared_base() { return block.aligned; }

void launch(const char* name, const void* kernel, unsigned grid, unsigned threads, size_t shared, cudaStream_t stream,
            const std::function<void()>& thread) {
  seen.other_stream |= stream != expected_stream;
  seen.other_device |= seen.device != expected_device;
  const int number = seen.launches++;
  if (number == settings.fail_launch) {
    pending_error = settings.failure;
    return;
  }
  if (grid == 0 || threads == 0 || threads > 1024 || shared > most_shared(kernel)) {
    fault("%s: a launch of %u blocks of %u threads with %zu bytes of shared memory", name, grid, threads, shared);
    return;
  }
  std::mt19937 random(settings.seed + static_cast<unsigned>(number));
  std::vector<size_t> order(threads);
  std::vector<unsigned char*> all_shared;  // kept to the end: memory used twice would order the blocks
  std::vector<std::vector<char>> all_syncs;
#ifdef FEC_TSAN
  scheduler_fiber = __tsan_get_current_fiber();
#endif
  for (unsigned b = 0; b < grid && seen.fault[0] == 0; ++b) {
    // Neighbouring blocks have fibers of their own, or races between them would not be seen.
    if (block.fibers.size() < 2 * threads) block.fibers.resize(2 * threads);
    block.first = b % 2 * threads;
    block.threads = threads;
    block.warps.assign((threads + 31) / 32, Warp{});
    all_syncs.emplace_back(2 * (block.warps.size() + 1));
    block.sync = all_syncs.back().data();
    for (size_t w = 0; w < block.warps.size(); ++w) block.warps[w].sync = block.sync + 2 * (w + 1);
    block.arrived = block.votes = block.done = block.left = 0;
    // Exactly the size requested, so that the address sanitizer sees the first byte past it; filled with NaN.
    auto* bytes = static_cast<unsigned char*>(std::malloc(shared == 0 ? 1 : shared));
    all_shared.push_back(bytes);
    std::memset(bytes, 0xff, shared);  // NaN, as a float and as a double
    block.aligned = bytes;
    block.shared_bytes = shared;
    begin_products(block.first, threads, shared);
    block.thread = &thread;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = block.fibers[block.first + t];
      fiber.coordinates = {{t, 0, 0}, {b, 0, 0}, {threads, 1, 1}, {grid, 1, 1}};
      prepare(fiber);
#ifdef FEC_TSAN
      if (fiber.sanitizer == nullptr) fiber.sanitizer = __tsan_create_fiber(0);  // kept: making one is slow
#endif
      order[t] = t;
    }
    seen.threads += threads;
    __tsan_release(&launch_start);
    while (block.left < threads && seen.fault[0] == 0) {
      std::shuffle(order.begin(), order.end(), random);
      block.moved = false;
      for (const size_t t : order) {
        Fiber& fiber = block.fibers[block.first + t];
        if (!fiber.done && seen.fault[0] == 0) to_fiber(fiber);
      }
      if (!block.moved && block.left < threads) stuck(name);
    }
    compare_warpgroups();
  }
  __tsan_acquire(&launch_end);
  for (unsigned char* bytes : all_shared) std::free(bytes);
}

}  // namespace emulator

#ifdef FEC_TSAN
// In this file, because the sanitizer holds its own lock while it reports: this code must not be instrumented.
extern "C" void __tsan_on_report(void*) {
  ++emulator::seen.races;
  emulator::fault("a data race");  // ends the launch: reports are slow
}
#endif
