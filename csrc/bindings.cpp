// The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "fec.h"
#ifdef FEC_WITH_CUDA
#include "cuda/api.h"
#endif

namespace py = pybind11;

namespace {

template <class E>
E chosen(const std::string& word, std::initializer_list<std::pair<const char*, E>> choices) {
  for (const auto& [name, value] : choices) {
    if (word == name) return value;
  }
  throw std::invalid_argument("unknown name: " + word);
}

// data, dtype, sorted (or pairwise), outer, inner, channels, taps, the four strides in elements
using Row = std::tuple<uintptr_t, std::string, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t>;
using Addresses = std::vector<uintptr_t>;

fec::Layer layer_of(const Row& row) {
  const auto& [data, dtype, sorted, outer, inner, channels, taps, s_outer, s_inner, s_channel, s_tap] = row;
  return {reinterpret_cast<const void*>(data),
          chosen<fec::DType>(dtype, {{"float32", fec::DType::F32},
                                     {"float64", fec::DType::F64},
                                     {"float16", fec::DType::F16},
                                     {"bfloat16", fec::DType::BF16}}),
          sorted ? fec::Algorithm::Sorted : fec::Algorithm::Pairwise,
          outer, inner, channels, taps, s_outer, s_inner, s_channel, s_tap, nullptr};
}

std::vector<fec::Layer> layers_of(const std::vector<Row>& rows, const fec::Formula& formula) {
  std::vector<fec::Layer> layers;
  layers.reserve(rows.size());
  for (const Row& row : rows) {
    layers.push_back(layer_of(row));
    fec::checked_filters(layers.back(), formula, static_cast<int64_t>(layers.size()) - 1);
  }
  return layers;
}

// Where the entropies of each layer are written to.
void set_results(std::vector<fec::Layer>& layers, const Addresses& results) {
  if (results.size() != layers.size()) throw std::invalid_argument("as many results as layers are needed");
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].out = reinterpret_cast<double*>(results[i]);
    fec::check_result(layers[i], static_cast<int64_t>(i));
  }
}

fec::Formula formula_of(const std::string& compress, const std::string& entropy, const std::string& axis, double tau,
                        double tau_scale) {
  const fec::Formula formula{
          chosen<fec::Compress>(compress, {{"rms", fec::Compress::Rms},
                                           {"absmean", fec::Compress::AbsMean},
                                           {"mean", fec::Compress::Mean},
                                           {"none", fec::Compress::None}}),
          chosen<fec::Entropy>(entropy, {{"similarity", fec::Entropy::Similarity},
                                         {"softmax", fec::Entropy::Softmax},
                                         {"distance", fec::Entropy::Distance}}),
          chosen<fec::Axis>(axis, {{"channels", fec::Axis::Channels}, {"filters", fec::Axis::Filters}}), tau,
          tau_scale};
  fec::check_formula(formula);
  return formula;
}

// Lets Python's handlers run of the signals that have arrived, such as Ctrl-C; returns whether one has raised.
bool interrupted() {
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

int64_t entropies(const std::vector<Row>& rows, const Addresses& results, const std::string& compress,
                  const std::string& entropy, const std::string& axis, double tau, double tau_scale, int threads,
                  const std::string& instruction_set, bool in_float64) {
  fec::check_threads(threads);
  const fec::Formula formula = formula_of(compress, entropy, axis, tau, tau_scale);
  std::vector<fec::Layer> layers = layers_of(rows, formula);
  set_results(layers, results);
  const fec::Options options{threads, instruction_set.c_str(), interrupted, in_float64};
  try {
    py::gil_scoped_release release;
    return fec::entropies(layers.data(), static_cast<int64_t>(layers.size()), formula, options);
  } catch (const fec::Interrupted&) {
    throw py::error_already_set();  // what the handler has raised
  }
}

std::vector<std::pair<std::string, bool>> instruction_sets() {
  std::vector<std::pair<std::string, bool>> sets;
  for (const fec::InstructionSet* set = fec::instruction_sets(); set->name != nullptr; ++set) {
    sets.emplace_back(set->name, set->usable);
  }
  return sets;
}

std::pair<std::string, std::map<std::string, double>> choice_of_instruction_set() {
  py::gil_scoped_release release;
  std::map<std::string, double> seconds;
  for (const fec::InstructionSet* set = fec::timed_instruction_sets(); set->name != nullptr; ++set) {
    if (set->seconds > 0) seconds[set->name] = set->seconds;
  }
  return {fec::fastest_instruction_set(), seconds};
}

#ifdef FEC_WITH_CUDA
// A prepared call: reports the workspace it needs, and launches any number of times, with results and workspace of its
// own each time. It is never changed, so several threads may launch it.
class CudaCall {
 public:
  CudaCall(const std::vector<Row>& rows, const std::string& compress, const std::string& entropy,
           const std::string& axis, double tau, double tau_scale, const std::string& tensor_cores)
      : formula_(formula_of(compress, entropy, axis, tau, tau_scale)),
        layers_(layers_of(rows, formula_)),
        tensor_cores_(chosen<fec::cuda::TensorCores>(
            tensor_cores, {{"mma", fec::cuda::TensorCores::Mma}, {"wgmma", fec::cuda::TensorCores::Wgmma}})) {}

  int64_t workspace_bytes() const { return fec::cuda::workspace_bytes(layers_.data(), count(), formula_); }

  void launch(const Addresses& results, uintptr_t workspace, int64_t bytes, int device, uintptr_t stream) const {
    if (bytes < 0 || (bytes > 0 && !fec::is_address(workspace, bytes))) {
      throw std::invalid_argument("the workspace is at no address: null, or out of range");
    }
    py::gil_scoped_release release;
    std::vector<fec::Layer> layers = layers_;
    set_results(layers, results);
    fec::cuda::entropies(layers.data(), count(), formula_, reinterpret_cast<void*>(workspace), bytes, device,
                         reinterpret_cast<void*>(stream), tensor_cores_);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(layers_.size()); }

  fec::Formula formula_;  // before the layers, whose checks need it
  std::vector<fec::Layer> layers_;
  fec::cuda::TensorCores tensor_cores_;
};

void add_cuda(py::module_& m) {
  py::module_ cuda = m.def_submodule("cuda", "The CUDA kernels. Called by fec_fast.scoring.backends.cuda.");
  py::register_local_exception<fec::cuda::Error>(cuda, "Error", PyExc_RuntimeError);
  py::class_<CudaCall>(cuda, "Call", py::module_local())
      .def(py::init<const std::vector<Row>&, const std::string&, const std::string&, const std::string&, double, double,
                    const std::string&>(),
           py::arg("layers"), py::kw_only(), py::arg("compress"), py::arg("entropy"), py::arg("axis"), py::arg("tau"),
           py::arg("tau_scale"), py::arg("tensor_cores") = "mma")
      .def("workspace_bytes", &CudaCall::workspace_bytes)
      .def("launch", &CudaCall::launch, py::arg("results"), py::arg("workspace"), py::arg("bytes"),
           py::arg("device"), py::arg("stream"));
  cuda.def("device_count", &fec::cuda::device_count);
  cuda.def("has_code_for", &fec::cuda::has_code_for, py::arg("device"));
  cuda.def("has_wgmma_for", &fec::cuda::has_wgmma_for, py::arg("device"));
}
#endif

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() =
      "The compiled kernels of fec_fast, called by fec_fast.scoring.backends. Sizes, strides and addresses are checked "
      "(ValueError); that the memory is there is the caller's business.";
  m.def("entropies", &entropies, py::arg("layers"), py::arg("results"), py::kw_only(), py::arg("compress"),
        py::arg("entropy"), py::arg("axis"), py::arg("tau"), py::arg("tau_scale"), py::arg("threads"),
        py::arg("instruction_set") = "", py::arg("in_float64") = false,
        "Writes the entropies of all layers, float64, to one address each; returns -1 or the index of the first layer with a non-finite weight. Raises what a handler of a signal raises meanwhile.");
  m.def("instruction_sets", &instruction_sets, "The instruction sets built, with whether this processor has them.");
  m.def("choice_of_instruction_set", &choice_of_instruction_set,
        "The instruction set that runs where none is named, and the seconds of the timing that chose it.");
#ifdef _OPENMP
  m.attr("threads") = "OpenMP threads";
#else
  m.attr("threads") = "std::threads (built without OpenMP)";
#endif
#ifdef FEC_WITH_CUDA
  add_cuda(m);
  m.attr("cuda_left_out") = "";
#else
  m.attr("cuda_left_out") = FEC_CUDA_LEFT_OUT;  // the reason, from cmake/cuda.cmake
#endif
}
