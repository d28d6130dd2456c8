// The driver: layers in batches, and the batches in a pipeline of three: the entropies of one, the distances of the
// next, the largest weights of the one after, in one parallel region. No instruction-set flags here.
//
// A batch holds as many layers as their kept numbers fit the budget: few enough bytes to stay in the caches, enough
// work between two barriers. What is summed is summed in the order of the units: the same bits on any thread count.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/layer_task.h"
#include "cpu/largest_weight.h"
#include "cpu/parallel_for.h"

namespace fec {
namespace {

using namespace cpu;

constexpr int64_t kBatch = 2 << 20;  // bytes kept between the passes by the layers of a batch

// Memory that grows and is used again from batch to batch: fresh pages would cost small layers more than their kernels.
class Workspace {
 public:
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded(bytes, 64)))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = rounded(bytes, 64);
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char[], Free> memory_;
  int64_t size_ = 0;
};

// Layers that go through the phases together.
struct Batch {
  std::vector<Run> runs;
  std::vector<Pieces> pieces;
  std::vector<std::vector<uint64_t>> most;  // [run][piece]: the bits of the largest weight
  char* kept = nullptr;
  std::vector<int64_t> begins;  // of the runs' kept bytes
};

// The layers from `next` on that fit one batch; moves `next` behind them.
Batch batch_from(int64_t& next, const Layer* layers, int64_t count, const Formula& formula, const Kernels& kernels) {
  Batch batch;
  for (int64_t bytes = 0; next < count; ++next) {
    Run run(layers[next], formula, kernels);
    bytes += std::max(run.kept_bytes(), layers[next].filters() * layers[next].channels * run.size);
    if (!batch.runs.empty() && bytes > kBatch) break;
    batch.pieces.emplace_back(layers[next]);
    batch.most.emplace_back(static_cast<size_t>(run.units == 0 ? 0 : batch.pieces.back().count()));
    batch.runs.push_back(std::move(run));
  }
  return batch;
}

// Calls body(index, unit, thread) for every unit below counts[index], in any order. The body must not throw.
template <class Body>
void each_unit(const std::vector<int64_t>& counts, int threads, const Body& body) {
  std::vector<int64_t> ends;
  int64_t all = 0;
  for (const int64_t count : counts) ends.push_back(all += count);
  parallel_for(all, threads, [&](int64_t i, int thread) {
    const auto which = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
    body(static_cast<size_t>(which), which == 0 ? i : i - ends[static_cast<size_t>(which) - 1], thread);
  });
}

// Sets the scales of the runs. Returns the index of the first run with a weight that is not finite, or -1.
int64_t set_scales(Batch& batch) {
  for (size_t i = 0; i < batch.runs.size(); ++i) {
    Run& run = batch.runs[i];
    if (run.units == 0) continue;
    const DType dtype = run.job.layer->dtype;
    const double magnitude = magnitude_of(dtype, *std::max_element(batch.most[i].begin(), batch.most[i].end()));
    if (std::isinf(magnitude)) return static_cast<int64_t>(i);
    const int limit = dtype == DType::F64 ? 1022 : 126;  // beyond it the factor itself would not be normal
    run.job.scale = std::ldexp(1.0, -(magnitude > 0 ? std::clamp(std::ilogb(magnitude), -limit, limit) : 0));
  }
  return -1;
}

// The threads and what they work in.
class Crew {
 public:
  Crew(const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads) {}

  // One step of the pipeline: each of the three batches goes through the phase that it is in.
  void step(Batch& finishing, Batch& measuring, Batch& looking) {
    make_room(measuring);
    int64_t scratch_bytes = 0;
    std::vector<int64_t> counts;
    for (const Run& run : finishing.runs) {
      counts.push_back(run.units);
      scratch_bytes = std::max(scratch_bytes, rounded(run.scratch_bytes(), 64));
    }
    for (const Run& run : measuring.runs) {
      const bool measured = run.job.formula.tau <= 0 || run.job.formula.entropy == Entropy::Distance;
      counts.push_back(run.keep || measured ? run.units : 0);
      scratch_bytes = std::max(scratch_bytes, rounded(run.scratch_bytes(), 64));
    }
    // Last, because they are the smallest units: no thread waits long for another at the end.
    for (const auto& most : looking.most) counts.push_back(static_cast<int64_t>(most.size()));
    char* scratch = working_.at_least(threads_ * scratch_bytes);
    const size_t measures = finishing.runs.size(), looks = measures + measuring.runs.size();
    each_unit(counts, threads_, [&](size_t i, int64_t unit, int thread) {
      char* own = scratch + thread * scratch_bytes;
      if (i < measures) {
        finish(finishing.runs[i], unit, {finishing.kept + finishing.begins[i], own});
      } else if (i < looks) {
        Run& run = measuring.runs[i - measures];
        const Memory memory{measuring.kept + measuring.begins[i - measures], own};
        run.sums[static_cast<size_t>(unit)] = measure(run, unit, memory);
      } else {
        looking.most[i - looks][static_cast<size_t>(unit)] = looking.pieces[i - looks].largest(kernels_, unit);
      }
    });
    for (Run& run : finishing.runs) {
      if (run.units > 0 && run.way == Way::Filters) join(run);
    }
    for (Run& run : measuring.runs) {
      set_tau(run);
      if (!(run.tau > 0)) run.units = 0;  // all alike, or nothing in it
      if (run.units == 0) std::fill_n(run.job.layer->out, run.job.layer->filters(), 0.0);
    }
  }

 private:
  // Where a batch keeps what lies between its passes: the other place is still in use by the batch before.
  void make_room(Batch& batch) {
    int64_t bytes = 0;
    for (Run& run : batch.runs) {
      batch.begins.push_back(bytes);
      bytes += rounded(run.kept_bytes(), 64);
      if (run.way == Way::Filters) run.shares.resize(static_cast<size_t>(run.units * run.job.points));
    }
    std::swap(keeping_[0], keeping_[1]);
    batch.kept = keeping_[0].at_least(bytes);
  }

  const Kernels& kernels_;
  int threads_;
  Workspace keeping_[2], working_;
};

}  // namespace

int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options) {
  const Kernels& kernels = kernels_named(options.instruction_set);
  Crew crew(kernels, std::max(options.threads, 1));
  Batch finishing, measuring, looking;
  int64_t end = 0;
  do {
    finishing = std::move(measuring);
    measuring = std::move(looking);
    const int64_t begin = end;
    looking = batch_from(end, layers, count, formula, kernels);
    crew.step(finishing, measuring, looking);
    const int64_t bad = set_scales(looking);
    if (bad >= 0) return begin + bad;
  } while (!measuring.runs.empty() || !looking.runs.empty());
  return -1;
}

}  // namespace fec
