// The C++ interface: pointers, sizes, options. No Python and no torch here.
#pragma once

#include <cstdint>

namespace fec {

enum class DType { F32, F64, F16, BF16 };
enum class Compress { Rms, AbsMean, Mean, None };
enum class Entropy { Similarity, Softmax, Distance };
enum class Axis { Channels, Filters };
enum class Algorithm { Sorted, Pairwise };

// One weight, read in place. Filter f is the slice at outer index f / inner and inner index f % inner; it has
// `channels` channels of `taps` numbers each. Strides count elements.
struct Layer {
  const void* data;
  DType dtype;
  Algorithm algorithm;  // chosen by the caller: `Sorted` only where `sortable`
  int64_t outer, inner, channels, taps;
  int64_t stride_outer, stride_inner, stride_channel, stride_tap;
  double* out;  // outer * inner entropies in nats

  int64_t filters() const { return outer * inner; }
};

struct Formula {
  Compress compress;
  Entropy entropy;
  Axis axis;
  double tau;  // 0: the layer's mean distance
  double tau_scale;
};

// Whether a layer has one number per channel to sort, and the channels of a filter are compared.
inline bool sortable(const Layer& layer, const Formula& formula) {
  return formula.axis == Axis::Channels && (formula.compress != Compress::None || layer.taps == 1);
}

struct Options {
  int threads;
  const char* instruction_set;  // empty: the fastest that this processor has
  bool (*interrupted)() = nullptr;  // asked now and then, in the calling thread: whether to give up
  bool in_float64 = false;  // compute in float64, whatever the weights are stored in
};

// Thrown by `entropies` once `interrupted` has returned true. The results are not valid then.
struct Interrupted {};

struct InstructionSet {
  const char* name;
  bool usable;
  double seconds;  // of the work that is timed; 0 where nothing was
};

// The instruction sets that were built, narrowest first; ends with a null name. Nothing is timed for it.
const InstructionSet* instruction_sets();

// The same with the timings, if there are any: where only one set is worth using, it is used. The first call of this, of
// the next function, or of `entropies` without the name of a set takes the time; it is kept.
const InstructionSet* timed_instruction_sets();

// The one that runs where no name is given.
const char* fastest_instruction_set();

// Writes the entropies of every filter of every layer. Returns -1, or the index of the first layer with a weight that
// is not finite (that layer and the later ones are not written). Throws std::invalid_argument for an instruction set
// that is not usable or a `Sorted` layer that is not sortable, std::bad_alloc when there is no memory, Interrupted.
int64_t entropies(const Layer* layers, int64_t count, const Formula& formula, const Options& options);

}  // namespace fec
