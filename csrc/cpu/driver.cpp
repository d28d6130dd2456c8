// The driver: batches of layers in a pipeline of three stages. One parallel region computes the entropies of a batch,
// the distances of the next one, and the largest weights of the one after that. Compiled without instruction-set flags.
//
// A batch holds as many layers as kBatch allows: few enough bytes to stay in the caches, and enough work between two
// barriers. Sums are made in the order of the units, so the bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/float_environment.h"
#include "cpu/layer_task.h"
#include "cpu/largest_weight.h"
#include "cpu/parallel_for.h"
#include "cpu/watch.h"
#include "cpu/workspace.h"

namespace fec {
namespace {

using namespace cpu;

constexpr int64_t kBatch = 2 << 20;  // bytes that the layers of a batch keep between the passes

// Layers that pass the stages together.
struct Batch {
  std::vector<LayerTask> tasks;
  std::vector<Pieces> pieces;
  std::vector<std::vector<uint64_t>> most;  // [task][piece]: the bits of the largest weight
  char* kept = nullptr;
  std::vector<int64_t> begins;  // offsets of the tasks' kept bytes
};

// Makes a batch of the layers from `next` on, and moves `next` behind them.
Batch batch_from(int64_t& next, const Layer* layers, int64_t count, const Formula& formula, const Kernels& kernels,
                 bool in_float64) {
  Batch batch;
  for (int64_t bytes = 0; next < count; ++next) {
    LayerTask task(layers[next], formula, kernels, in_float64);
    bytes += std::max(task.kept_bytes(), layers[next].filters() * layers[next].channels * task.size);
    if (!batch.tasks.empty() && bytes > kBatch) break;
    batch.pieces.emplace_back(layers[next]);
    batch.most.emplace_back(static_cast<size_t>(task.units == 0 ? 0 : batch.pieces.back().count()));
    batch.tasks.push_back(std::move(task));
  }
  return batch;
}

// Calls body(index, unit, thread) for every unit below counts[index], in any order, unless it is interrupted. The body
// must not throw.
template <class Body>
void each_unit(const std::vector<int64_t>& counts, int threads, Watch& watch, const Body& body) {
  std::vector<int64_t> ends;
  int64_t all = 0;
  for (const int64_t count : counts) ends.push_back(all += count);
  parallel_for(all, threads, watch, [&](int64_t i, int thread) {
    const auto which = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
    body(static_cast<size_t>(which), which == 0 ? i : i - ends[static_cast<size_t>(which) - 1], thread);
  });
}

// Sets the scales of the tasks. Returns the index of the first task with a weight that is not finite, or -1.
int64_t set_scales(Batch& batch) {
  for (size_t i = 0; i < batch.tasks.size(); ++i) {
    LayerTask& task = batch.tasks[i];
    if (task.units == 0) continue;
    const DType dtype = task.job.layer->dtype;
    const double magnitude = magnitude_of(dtype, *std::max_element(batch.most[i].begin(), batch.most[i].end()));
    if (std::isinf(magnitude)) return static_cast<int64_t>(i);
    const int limit = dtype == DType::F64 ? 1022 : 126;  // beyond it the factor itself would not be normal
    task.job.scale = std::ldexp(1.0, -(magnitude > 0 ? std::clamp(std::ilogb(magnitude), -limit, limit) : 0));
  }
  return -1;
}

// The stages of the pipeline, and the memory of the threads.
class Pipeline {
 public:
  Pipeline(const Kernels& kernels, const Options& options)
      : kernels_(kernels), threads_(std::max(options.threads, 1)), watch_(options.interrupted) {}

  // One step: each of the three batches passes its stage. Throws Interrupted.
  void step(Batch& finishing, Batch& measuring, Batch& looking) {
    make_room(measuring);
    int64_t scratch_bytes = 0;
    std::vector<int64_t> counts;
    for (const LayerTask& task : finishing.tasks) {
      counts.push_back(task.units);
      scratch_bytes = std::max(scratch_bytes, rounded(task.scratch_bytes(), 64));
    }
    for (const LayerTask& task : measuring.tasks) {
      const bool measured = task.job.formula.tau <= 0 || task.job.formula.entropy == Entropy::Distance;
      counts.push_back(task.keep || measured ? task.units : 0);
      scratch_bytes = std::max(scratch_bytes, rounded(task.scratch_bytes(), 64));
    }
    // Last, because these units are the smallest: threads finish at almost the same time.
    for (const auto& most : looking.most) counts.push_back(static_cast<int64_t>(most.size()));
    char* scratch = working_.at_least(threads_ * scratch_bytes);
    const size_t measures = finishing.tasks.size(), looks = measures + measuring.tasks.size();
    each_unit(counts, threads_, watch_, [&](size_t i, int64_t unit, int thread) {
      char* own = scratch + thread * scratch_bytes;
      if (i < measures) {
        finish(finishing.tasks[i], unit, {finishing.kept + finishing.begins[i], own});
      } else if (i < looks) {
        LayerTask& task = measuring.tasks[i - measures];
        const Memory memory{measuring.kept + measuring.begins[i - measures], own};
        task.sums[static_cast<size_t>(unit)] = measure(task, unit, memory);
      } else {
        looking.most[i - looks][static_cast<size_t>(unit)] = looking.pieces[i - looks].largest(kernels_, unit);
      }
    });
    if (watch_.interrupted()) throw Interrupted{};  // units were left out
    for (LayerTask& task : finishing.tasks) {
      if (task.units > 0 && task.way == Way::Filters) join(task);
    }
    for (LayerTask& task : measuring.tasks) {
      set_tau(task);
      if (!(task.tau > 0)) task.units = 0;  // all points are equal, or the layer is empty
      if (task.units == 0) std::fill_n(task.job.layer->out, task.job.layer->filters(), 0.0);
    }
  }

 private:
  // Sets the memory that a batch keeps between its passes. There are two, because the previous batch still uses one.
  void make_room(Batch& batch) {
    int64_t bytes = 0;
    for (LayerTask& task : batch.tasks) {
      batch.begins.push_back(bytes);
      bytes += rounded(task.kept_bytes(), 64);
      if (task.way == Way::Filters) task.shares.resize(static_cast<size_t>(task.units * task.job.points));
    }
    std::swap(keeping_[0], keeping_[1]);
    batch.kept = keeping_[0].at_least(bytes);
  }

  const Kernels& kernels_;
  int threads_;
  Watch watch_;
  Workspace keeping_[2], working_;
};

}  // namespace

int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options) {
  const SubnormalNumbers kept;
  const Kernels& kernels = kernels_named(options.instruction_set);
  // More threads than processors gain nothing, and the system may not have them to give.
  const int most = std::max(64, static_cast<int>(std::thread::hardware_concurrency()));
  Options bounded = options;
  bounded.threads = std::clamp(options.threads, 1, most);
  Pipeline pipeline(kernels, bounded);
  Batch finishing, measuring, looking;
  int64_t end = 0;
  do {
    finishing = std::move(measuring);
    measuring = std::move(looking);
    const int64_t begin = end;
    looking = batch_from(end, layers, count, formula, kernels, options.in_float64);
    pipeline.step(finishing, measuring, looking);
    const int64_t bad = set_scales(looking);
    if (bad >= 0) return begin + bad;
  } while (!measuring.tasks.empty() || !looking.tasks.empty());
  return -1;
}

}  // namespace fec
