#include "program.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <map>
#include <optional>

#include "arenas.h"
#include "core/cpu_features.h"
#include "core/machine.h"
#include "cpu/table.h"
#include "dispatch.h"
#include "memory.h"
#include "parallel.h"
#include "plan/program.h"

namespace fastconv {

namespace {

using Constants = std::map<std::string, at::Tensor>;
// Where an operand lies, and how many bytes behind that it begins.
using Places = std::map<std::string, std::tuple<std::string, int64_t, int64_t>>;
using Strides = std::map<std::string, std::array<int64_t, 4>>;

// A tensor that crosses the border of a program: dense in this layout.
struct Border {
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
};

// Stages as Python states them: steps, the height of their strips, a workspace. A step is the row of a kernel, a
// problem, tensors that stay and places that do not.
class Compiled {
 public:
  Compiled(const py::list& stages, std::vector<Border> inputs, std::vector<Border> outputs, int64_t arena_bytes,
           int threads, std::shared_ptr<Arenas> arenas)
      : inputs_(std::move(inputs)), outputs_(std::move(outputs)), arenas_(std::move(arenas)) {
    std::vector<Stage> list;
    for (const py::handle& from : stages) {
      Stage stage;
      for (const py::handle& step : from["steps"]) stage.links.push_back(read(py::cast<py::dict>(step)));
      stage.height = py::cast<int64_t>(from["height"]), stage.workspace = py::cast<int64_t>(from["workspace"]);
      stage.serial = !stage.height && is_serial(stage.links.front().problem);
      list.push_back(std::move(stage));
    }
    program_.emplace(std::move(list), arena_bytes, threads);
  }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) { return run(inputs, nullptr); }

  std::pair<std::vector<at::Tensor>, std::vector<double>> timed(const std::vector<at::Tensor>& inputs) {
    std::vector<double> seconds(program_->stages().size());
    return {run(inputs, seconds.data()), seconds};
  }

  // Whether the inputs lie as those the program was compiled for.
  bool takes(const std::vector<at::Tensor>& inputs) const {
    return std::equal(inputs.begin(), inputs.end(), inputs_.begin(), inputs_.end(), lies_as);
  }

  int64_t arena_bytes() const { return program_->arena_bytes(); }

  std::vector<std::vector<std::pair<std::string, Problem>>> stages() const {
    std::vector<std::vector<std::pair<std::string, Problem>>> list;
    for (const Stage& stage : program_->stages()) {
      list.emplace_back();
      for (const Step& step : stage.links) list.back().emplace_back(step.kernel->name, step.problem);
    }
    return list;
  }

 private:
  static bool lies_as(const at::Tensor& given, const Border& expected) {
    return given.sizes() == at::IntArrayRef(expected.sizes) && given.strides() == at::IntArrayRef(expected.strides) &&
           given.scalar_type() == expected.dtype && given.device().is_cpu();
  }

  static Place place(const Places& places, const std::string& name) {
    const auto found = places.find(name);
    if (found == places.end()) return {};
    const auto& [in, at, behind] = found->second;
    for (const auto& [word, kind] :
         {std::pair{"arena", Place::arena}, std::pair{"input", Place::input}, std::pair{"output", Place::output}})
      if (in == word) return {kind, at, behind};
    throw std::invalid_argument("A place is in the arena, an input or an output, not '" + in + "'.");
  }

  static int64_t* stride(Args& args, const std::string& name) {
    if (name == "x") return args.x_stride;
    if (name == "keys") return args.keys_stride;
    if (name == "values") return args.values_stride;
    if (name == "mask") return args.mask_stride;
    throw std::invalid_argument("There is no operand '" + name + "' with strides of its own.");
  }

  Step read(const py::dict& from) {
    Step step{&cpu_kernels().at(from["kernel"].cast<size_t>()), from["problem"].cast<Problem>()};
    const auto places = from["places"].cast<Places>();
    step.x = place(places, "x"), step.y = place(places, "y"), step.out = place(places, "out");
    step.residual = place(places, "residual"), step.scale = place(places, "scale");
    step.keys = place(places, "keys"), step.values = place(places, "values"), step.mask = place(places, "mask");
    for (const auto& [name, strides] : from["strides"].cast<Strides>())
      std::copy(strides.begin(), strides.end(), stride(step.args, name));
    const auto constants = from["constants"].cast<Constants>();
    auto data = [&](const char* name) -> const void* {
      const auto found = constants.find(name);
      if (found == constants.end()) return nullptr;
      kept_.push_back(found->second);
      return found->second.const_data_ptr();
    };
    step.args.x = data("x"), step.args.w = data("w"), step.args.packed = data("packed"), step.args.bias = data("bias");
    step.args.mask = data("mask"), step.args.mean = data("mean"), step.args.variance = data("variance");
    step.args.eps = from["eps"].cast<double>(), step.args.factor = from["factor"].cast<double>();
    if (from.contains("response")) {
      const auto [alpha, beta, k] = from["response"].cast<std::tuple<double, double, double>>();
      step.args.response = {alpha, beta, k};
    }
    if (const auto w = constants.find("w"); w != constants.end() && w->second.dim() == 4)
      for (int i = 0; i < 4; ++i) step.args.w_stride[i] = w->second.stride(i);
    return step;
  }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, double* seconds) {
    if (inputs.size() != inputs_.size())
      throw std::invalid_argument("The program takes " + std::to_string(inputs_.size()) + " inputs, not " +
                                  std::to_string(inputs.size()) + ".");
    std::vector<const void*> in;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!lies_as(inputs[i], inputs_[i]))
        throw std::invalid_argument("Input " + std::to_string(i) + " is not what the program was compiled for.");
      in.push_back(inputs[i].const_data_ptr());
    }
    std::vector<at::Tensor> results;
    std::vector<void*> out;
    for (const Border& border : outputs_) {
      results.push_back(
          empty_result(border.sizes, border.strides, at::TensorOptions().dtype(border.dtype).device(at::kCPU)));
      out.push_back(results.back().mutable_data_ptr());
    }
    py::gil_scoped_release release;
    const Arenas::Loan arena(*arenas_, program_->arena_bytes());
    program_->run(in.data(), out.data(), arena.get(), TorchParallel(), seconds);
    return results;
  }

  std::optional<Program> program_;
  std::vector<Border> inputs_, outputs_;
  std::vector<at::Tensor> kept_;
  std::shared_ptr<Arenas> arenas_;
};

// Bytes that each thread needs to carry out steps in strips. Throws ValueError where a kernel does not run its share.
int64_t strip_bytes(const std::vector<std::pair<size_t, Problem>>& steps, int64_t height) {
  std::vector<Step> links;
  for (const auto& [row, problem] : steps) links.push_back({&cpu_kernels().at(row), problem});
  return Strips(links, height).thread_bytes();
}

// Watches the tensors that stand in modules' dictionaries: which they are, in which storage and version, as one number.
//
// Between two looks a network has run and left nothing of them in the caches, and each tensor is at the end of a chain
// of some seven lines. What the last look went through is fetched all at once first.
class Fingerprint {
 public:
  explicit Fingerprint(const py::list& places) : kept_(places) {
    for (const py::handle& place : places)
      places_.push_back({PyTuple_GET_ITEM(place.ptr(), 0), PyTuple_GET_ITEM(place.ptr(), 1)});
  }

  uint64_t look() {
    for (const Place& place : places_) {
      fetch(place.tensors, cache_line), fetch(place.keys, 2 * cache_line), fetch(place.tensor, cache_line);
      fetch(place.memory, 2 * cache_line);
    }
    uint64_t sum = 0;
    const auto mix = [&](auto value) { sum = (sum ^ uint64_t(value)) * 0x9e3779b97f4a7c15ull, sum ^= sum >> 29; };
    for (Place& place : places_) {
      place.tensor = PyDict_GetItem(place.tensors, place.name);
      place.keys = reinterpret_cast<PyDictObject*>(place.tensors)->ma_keys;
      mix(reinterpret_cast<uintptr_t>(place.tensor));
      if (!place.tensor || !THPVariable_Check(place.tensor)) continue;
      // Storage and version stand first in it; a tensor of inference mode has no version.
      const at::TensorImpl* const tensor = THPVariable_Unpack(place.tensor).unsafeGetTensorImpl();
      place.memory = tensor;
      mix(reinterpret_cast<uintptr_t>(tensor->unsafe_storage().unsafeGetStorageImpl()));
      if (tensor->version_counter().enabled()) mix(tensor->version_counter().current_version());
    }
    return sum;
  }

 private:
  struct Place {
    PyObject *tensors, *name;
    // As of the last look.
    PyObject* tensor = nullptr;
    const void *keys = nullptr, *memory = nullptr;
  };

  static void fetch(const void* at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(static_cast<const char*>(at) + i);
  }

  py::list kept_;
  std::vector<Place> places_;
};

// A program's next call, for as long as it is like the last: the same settings, threads, weights, and inputs that lie
// alike. A call finds nothing of Python's objects in the caches, because the network has just run through them; what it
// has to compare stands here together.
class Repeat {
 public:
  Repeat(py::object program, py::object settings, py::object fingerprint, uint64_t seen)
      : kept_(py::make_tuple(program, settings, fingerprint)),
        program_(program.cast<Compiled*>()),
        settings_(settings.ptr()),
        fingerprint_(fingerprint.is_none() ? nullptr : fingerprint.cast<Fingerprint*>()),
        seen_(seen),
        threads_(at::get_num_threads()) {}

  // The results, or nothing where the call is another one.
  std::optional<std::vector<at::Tensor>> operator()(const py::tuple& inputs, const py::handle& settings) {
    if (settings.ptr() != settings_ || at::get_num_threads() != threads_) return std::nullopt;
    if (fingerprint_ && fingerprint_->look() != seen_) return std::nullopt;
    std::vector<at::Tensor> given;
    for (const py::handle& input : inputs) {
      if (!THPVariable_CheckExact(input.ptr())) return std::nullopt;
      given.push_back(THPVariable_Unpack(input.ptr()));
      if (given.back().requires_grad() && at::GradMode::is_enabled()) return std::nullopt;
    }
    if (!program_->takes(given)) return std::nullopt;
    return program_->run(given);
  }

 private:
  py::tuple kept_;
  Compiled* program_;
  PyObject* settings_;
  Fingerprint* fingerprint_;
  uint64_t seen_;
  int threads_;
};

}  // namespace

void bind_program(py::module_& m) {
  py::class_<Fingerprint>(m, "Fingerprint", "Tells by one number whether tensors in dictionaries are still the same.")
      .def(py::init<const py::list&>(), py::arg("places"))
      .def("look", &Fingerprint::look);
  m.def("caches", [] { return std::tuple(machine().l1, machine().l2, machine().l3); });
  m.def(
      "nominal_rates",
      [](size_t row) {
        const Rates r = nominal_rates(cpu_kernels().at(row).isa, cpu_has_wide_pipes());
        return std::tuple(r.flops, r.moved, r.shared, r.memory);
      },
      py::arg("row"));
  m.def(
      "of_rows", [](const Problem& p, int64_t begin, int64_t end) { return of_rows(p, {begin, end}); },
      py::arg("problem"), py::arg("begin"), py::arg("end"));
  m.def(
      "source_rows",
      [](const Problem& p, int64_t begin, int64_t end) {
        const Rows rows = source_rows(p, {begin, end});
        return std::pair(rows.begin, rows.end);
      },
      py::arg("problem"), py::arg("begin"), py::arg("end"));
  m.def("refuses_rows", &refuses_rows, py::arg("problem"));
  m.def("strip_bytes", &strip_bytes, py::arg("steps"), py::arg("height"));
  py::class_<Border>(m, "Border", "A tensor that enters or leaves a program: sizes, strides, dtype.")
      .def(py::init<std::vector<int64_t>, std::vector<int64_t>, at::ScalarType>(), py::arg("sizes"), py::arg("strides"),
           py::arg("dtype"))
      .def_readonly("sizes", &Border::sizes)
      .def_readonly("strides", &Border::strides);
  py::class_<Arenas, std::shared_ptr<Arenas>>(m, "Arenas", "Memory of runs, for programs that share it.")
      .def(py::init<>())
      .def_property_readonly("bytes", &Arenas::bytes);
  py::class_<Compiled>(m, "Program", "A network as stages over one arena (csrc/plan/program.h).")
      .def(py::init<const py::list&, std::vector<Border>, std::vector<Border>, int64_t, int, std::shared_ptr<Arenas>>(),
           py::arg("stages"), py::arg("inputs"), py::arg("outputs"), py::arg("arena_bytes"), py::arg("threads"),
           py::arg("arenas"))
      .def("run", py::overload_cast<const std::vector<at::Tensor>&>(&Compiled::run), py::arg("inputs"))
      .def("timed", &Compiled::timed, py::arg("inputs"))
      .def_property_readonly("arena_bytes", &Compiled::arena_bytes)
      .def_property_readonly("stages", &Compiled::stages);
  py::class_<Repeat>(m, "Repeat", "Runs a program again where settings, threads, weights and inputs are as they were.")
      .def(py::init<py::object, py::object, py::object, uint64_t>(), py::arg("program"), py::arg("settings"),
           py::arg("fingerprint"), py::arg("seen"))
      .def("__call__", &Repeat::operator(), py::arg("inputs"), py::arg("settings"));
}

}  // namespace fastconv
