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
  std::vector<std::vector<uint64_t>> most;  // [task][piece, or unit at first sight]: the bits of the largest weight
  Workspace kept;
  std::vector<int64_t> begins;  // offsets of the tasks' kept bytes

  bool at_first_sight() const {
    return std::any_of(tasks.begin(), tasks.end(), [](const LayerTask& task) { return task.at_first_sight(); });
  }
  bool measured() const {
    return std::all_of(tasks.begin(), tasks.end(), [](const LayerTask& task) { return task.measured; });
  }
};

// Makes a batch of the layers from `next` on, and moves `next` behind them.
Batch batch_from(int64_t& next, const Layer* layers, int64_t count, const Formula& formula, const Kernels& kernels,
                 const Options& options) {
  Batch batch;
  for (int64_t bytes = 0; next < count; ++next) {
    LayerTask task(layers[next], formula, kernels, options.in_float64, options.threads);
    bytes += std::max(task.kept_bytes(), layers[next].filters() * layers[next].channels * task.size);
    if (!batch.tasks.empty() && bytes > kBatch) break;
    batch.pieces.emplace_back(layers[next]);
    const Pieces& pieces = batch.pieces.back();
    if (task.at_first_sight()) {
      const double some = magnitude_of(layers[next].dtype, pieces.largest_of_some(kernels));
      task.job.scale = scale_of(layers[next].dtype, std::isinf(some) ? 0 : some);
    }
    const int64_t searched = task.units == 0 ? 0 : task.at_first_sight() ? task.units : pieces.count();
    batch.most.emplace_back(static_cast<size_t>(searched));
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

// What follows the first pass.
void end_measuring(LayerTask& task) {
  task.measured = true;
  set_tau(task);
  if (!(task.tau > 0)) task.units = 0;  // all points are equal, or the layer is empty
  if (task.units == 0) std::fill_n(task.job.layer->out, task.job.layer->filters(), 0.0);
}

// Sets the scales of the tasks. The tasks of the first sight are measured if their guess is as good: squares of the
// weights are as far from overflow with it and nearly as far from underflow. Returns the index of the first task with a
// weight that is not finite, or -1.
int64_t set_scales(Batch& batch) {
  for (size_t i = 0; i < batch.tasks.size(); ++i) {
    LayerTask& task = batch.tasks[i];
    if (task.units > 0) {
      const DType dtype = task.job.layer->dtype;
      const double magnitude = magnitude_of(dtype, *std::max_element(batch.most[i].begin(), batch.most[i].end()));
      if (std::isinf(magnitude)) return static_cast<int64_t>(i);
      const double scale = scale_of(dtype, magnitude), guess = task.job.scale;
      task.measured = task.at_first_sight() && guess <= scale * 16 && scale <= guess * 16;
      if (!task.measured) task.job.scale = scale;
    }
    if (task.measured || task.units == 0) end_measuring(task);
  }
  return -1;
}

// The stages of the pipeline, and the memory of the threads.
class Pipeline {
 public:
  Pipeline(const Kernels& kernels, const Options& options)
      : kernels_(kernels), threads_(std::max(options.threads, 1)), watch_(options.interrupted) {}
  ~Pipeline() { workspaces_.give_back(std::move(scratch_)); }

  // One step: each of the three batches passes its stage. Throws Interrupted.
  void step(Batch& finishing, Batch& measuring, Batch& looking) {
    make_room(measuring);
    if (looking.at_first_sight()) make_room(looking);
    int64_t scratch_bytes = 0;
    std::vector<int64_t> counts;
    for (const LayerTask& task : finishing.tasks) {
      counts.push_back(task.units);
      scratch_bytes = std::max(scratch_bytes, rounded(task.scratch_bytes(), 64));
    }
    for (const LayerTask& task : measuring.tasks) {
      const bool needed = task.job.formula.tau <= 0 || task.job.formula.entropy == Entropy::Distance;
      const int64_t count = task.is_packed() ? std::min<int64_t>(task.units, 1) : task.units;
      counts.push_back(!task.measured && (task.keep || needed) ? count : 0);
      scratch_bytes = std::max(scratch_bytes, rounded(task.scratch_bytes(), 64));
    }
    for (size_t i = 0; i < looking.tasks.size(); ++i) {
      counts.push_back(static_cast<int64_t>(looking.most[i].size()));
      scratch_bytes = std::max(scratch_bytes, rounded(looking.tasks[i].scratch_bytes(), 64));
    }
    char* scratch = scratch_of(threads_ * scratch_bytes);
    const size_t measures = finishing.tasks.size(), looks = measures + measuring.tasks.size();
    each_unit(counts, threads_, watch_, [&](size_t i, int64_t unit, int thread) {
      char* own = scratch + thread * scratch_bytes;
      if (i < measures) {
        finish(finishing.tasks[i], unit, {finishing.kept.get() + finishing.begins[i], own});
      } else if (i < looks) {
        measure_unit(measuring, i - measures, unit, own);
      } else {
        look(looking, i - looks, unit, own);
      }
    });
    if (watch_.interrupted()) throw Interrupted{};  // units were left out
    for (LayerTask& task : finishing.tasks) {
      if (task.units > 0 && task.way == Way::Filters) join(task);
    }
    workspaces_.give_back(std::move(finishing.kept));
    for (LayerTask& task : measuring.tasks) {
      if (!task.measured) end_measuring(task);
    }
  }

 private:
  // One workspace for all batches: a small one taken for each would often be one that the next batch needs to keep.
  char* scratch_of(int64_t bytes) {
    if (scratch_.size() == 0) scratch_ = workspaces_.take(bytes);
    return scratch_.at_least(bytes);
  }

  static void measure_unit(Batch& batch, size_t i, int64_t unit, char* scratch) {
    LayerTask& task = batch.tasks[i];
    const Memory memory{batch.kept.get() + batch.begins[i], scratch};
    if (task.is_packed()) measure_packed(task, memory);
    else task.sums[static_cast<size_t>(unit)] = measure(task, unit, memory);
  }

  void look(Batch& batch, size_t i, int64_t unit, char* scratch) {
    const LayerTask& task = batch.tasks[i];
    const bool now = task.at_first_sight();
    batch.most[i][static_cast<size_t>(unit)] =
        now ? largest_of_unit(kernels_, task, unit) : batch.pieces[i].largest(kernels_, unit);
    if (now) measure_unit(batch, i, unit, scratch);
  }

  // Sets the memory that a batch keeps between its passes, once.
  void make_room(Batch& batch) {
    if (!batch.begins.empty()) return;  // it has it already
    int64_t bytes = 0;
    for (LayerTask& task : batch.tasks) {
      batch.begins.push_back(bytes);
      bytes += rounded(task.kept_bytes(), 64);
      if (task.way == Way::Filters) task.shares.resize(static_cast<size_t>(task.units * task.job.points));
    }
    if (bytes > 0) batch.kept = workspaces_.take(bytes);
  }

  const Kernels& kernels_;
  int threads_;
  Watch watch_;
  Workspaces workspaces_;
  Workspace scratch_;  // of the threads
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
    // Where the first pass was done with the first look, as it is of sorted filters, a batch has one stage less.
    const bool early = measuring.tasks.empty() && looking.measured();
    finishing = std::move(early ? looking : measuring);
    measuring = early ? Batch{} : std::move(looking);
    const int64_t begin = end;
    looking = batch_from(end, layers, count, formula, kernels, bounded);
    pipeline.step(finishing, measuring, looking);
    const int64_t bad = set_scales(looking);
    if (bad >= 0) return begin + bad;
  } while (!measuring.tasks.empty() || !looking.tasks.empty());
  return -1;
}

}  // namespace fec
