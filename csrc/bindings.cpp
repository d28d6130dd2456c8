// The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fec.h"

namespace py = pybind11;

namespace {

template <class E>
E chosen(const std::string& word, std::initializer_list<std::pair<const char*, E>> choices) {
  for (const auto& [name, value] : choices) {
    if (word == name) return value;
  }
  throw std::invalid_argument("unknown word: " + word);
}

// data, dtype, outer, inner, channels, taps, the four strides in elements, out
using Row = std::tuple<uintptr_t, std::string, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       uintptr_t>;

fec::Layer layer_of(const Row& row) {
  const auto& [data, dtype, outer, inner, channels, taps, s_outer, s_inner, s_channel, s_tap, out] = row;
  return {reinterpret_cast<const void*>(data),
          chosen<fec::DType>(dtype, {{"float32", fec::DType::F32},
                                     {"float64", fec::DType::F64},
                                     {"float16", fec::DType::F16},
                                     {"bfloat16", fec::DType::BF16}}),
          outer, inner, channels, taps, s_outer, s_inner, s_channel, s_tap, reinterpret_cast<double*>(out)};
}

int64_t entropies(const std::vector<Row>& rows, const std::string& compress, const std::string& entropy,
                  const std::string& axis, double tau, double tau_scale, const std::string& algorithm, int threads,
                  const std::string& instruction_set) {
  std::vector<fec::Layer> layers;
  layers.reserve(rows.size());
  for (const Row& row : rows) layers.push_back(layer_of(row));
  const fec::Formula formula{
      chosen<fec::Compress>(compress, {{"rms", fec::Compress::Rms},
                                       {"absmean", fec::Compress::AbsMean},
                                       {"mean", fec::Compress::Mean},
                                       {"none", fec::Compress::None}}),
      chosen<fec::Entropy>(entropy, {{"similarity", fec::Entropy::Similarity},
                                     {"softmax", fec::Entropy::Softmax},
                                     {"distance", fec::Entropy::Distance}}),
      chosen<fec::Axis>(axis, {{"channels", fec::Axis::Channels}, {"filters", fec::Axis::Filters}}), tau, tau_scale};
  const fec::Options options{chosen<fec::Algorithm>(algorithm, {{"auto", fec::Algorithm::Auto},
                                                                {"sorted", fec::Algorithm::Sorted},
                                                                {"pairwise", fec::Algorithm::Pairwise}}),
                             threads, instruction_set.c_str()};
  py::gil_scoped_release release;
  return fec::entropies(layers.data(), static_cast<int64_t>(layers.size()), formula, options);
}

std::vector<std::pair<std::string, bool>> instruction_sets() {
  std::vector<std::pair<std::string, bool>> sets;
  for (const fec::InstructionSet* set = fec::instruction_sets(); set->name != nullptr; ++set) {
    sets.emplace_back(set->name, set->usable);
  }
  return sets;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The compiled kernels of fec_fast. Called by fec_fast.backends.cpu, which checks the arguments.";
  m.def("entropies", &entropies, py::arg("layers"), py::kw_only(), py::arg("compress"), py::arg("entropy"),
        py::arg("axis"), py::arg("tau"), py::arg("tau_scale"), py::arg("algorithm"), py::arg("threads"),
        py::arg("instruction_set") = "",
        "Writes the entropies of all layers; returns -1 or the number of the first layer with a non-finite weight.");
  m.def("instruction_sets", &instruction_sets, "The instruction sets built, with whether this processor has them.");
#ifdef _OPENMP
  m.attr("threads") = "OpenMP threads";
#else
  m.attr("threads") = "std::threads (built without OpenMP)";
#endif
}
