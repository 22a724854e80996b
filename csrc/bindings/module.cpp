// The Python face of core/: Problem, the list of native kernels, one call of one kernel, and the planner hook.
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <chrono>
#include <optional>

#include "core/cpu_features.h"
#include "cpu/roofline.h"
#include "cpu/table.h"
#include "dispatch.h"
#include "gpu_python.h"
#include "memory.h"
#include "parallel.h"
#include "program.h"
#include "python_functions.h"

namespace fastconv {

namespace {

// A fixed number of threads taken from torch's pool, for tests that compare thread counts.
class FixedParallel final : public Parallel {
 public:
  explicit FixedParallel(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t tasks, Body body, void* context) const override {
    const int64_t share = (tasks + threads_ - 1) / threads_;
    at::parallel_for(0, threads_, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t)
        if (t * share < tasks) body(context, t * share, std::min(tasks, (t + 1) * share), static_cast<int>(t));
    });
  }

 private:
  int threads_;
};

// Enums cross the border as their names.
template <class T>
py::object to_python(T value) {
  if constexpr (std::is_enum_v<T>)
    return py::str(std::string(name_of(value)));
  else
    return py::cast(value);
}

template <class T>
void from_python(T& field, const py::handle& value, const char* name) {
  if constexpr (std::is_enum_v<T>) {
    const auto text = value.cast<std::string>();
    const auto& names = names_of(static_cast<T*>(nullptr));
    const auto found = std::find(names.begin(), names.end(), text);
    if (found == names.end()) throw std::invalid_argument(std::string(name) + " has no value '" + text + "'.");
    field = static_cast<T>(found - names.begin());
  } else {
    field = value.cast<T>();
  }
}

const std::string& checked(const std::string& sentence) {
  if (!sentence.empty()) throw std::invalid_argument(sentence);
  return sentence;
}

void bind_axis(py::module_& m) {
  py::class_<Axis>(m, "Axis", "One spatial axis of a problem: sizes, stride, padding, dilation.")
      .def_readonly("size", &Axis::in)
      .def_readonly("window", &Axis::window)
      .def_readonly("stride", &Axis::stride)
      .def_readonly("pad_lo", &Axis::pad_lo)
      .def_readonly("pad_hi", &Axis::pad_hi)
      .def_readonly("dilation", &Axis::dilation)
      .def_readonly("out", &Axis::out)
      .def("__eq__", [](const Axis& a, const Axis& b) { return a == b; });
}

// Every field that replace() may set. h and w are spelled field by field.
template <class F>
void each_field(Problem& p, F&& f) {
  f("op", p.op), f("pass_", p.pass), f("dtype", p.dtype), f("layout", p.layout);
  f("n", p.n), f("c", p.c), f("k", p.k), f("groups", p.groups);
  f("bias", p.epilogue.bias), f("residual", p.epilogue.residual), f("activation", p.epilogue.activation);
  f("alpha", p.epilogue.alpha), f("out_offset", p.epilogue.out_offset), f("out_channels", p.epilogue.out_channels);
  f("ceil_mode", p.ceil_mode), f("count_include_pad", p.count_include_pad);
  f("divisor_override", p.divisor_override), f("index", p.index), f("training", p.training);
  f("size", p.size), f("in_offset", p.in_offset), f("in_channels", p.in_channels);
  f("packed", p.packed), f("scale", p.scale), f("corners", p.corners), f("mask", p.mask);
}

void bind_problem(py::module_& m) {
  py::class_<Problem> problem(m, "Problem",
                              "One convolution or pooling problem; prints to and parses from one string.");
  problem.def(py::init(&parse_problem), py::arg("text"))
      .def("__str__", &Problem::text)
      .def("__repr__", [](const Problem& p) { return "Problem('" + p.text() + "')"; })
      .def("__hash__", &hash_value)
      .def("__eq__", [](const Problem& a,
                        const py::object& b) { return py::isinstance<Problem>(b) && a == b.cast<const Problem&>(); })
      .def(py::pickle([](const Problem& p) { return p.text(); }, [](const std::string& s) { return parse_problem(s); }))
      .def_readonly("h", &Problem::h)
      .def_readonly("w", &Problem::w)
      .def_property_readonly("flops", &Problem::flops)
      .def_property_readonly("bytes", &Problem::bytes)
      .def_property_readonly("is_conv", &Problem::is_conv)
      .def_property_readonly("is_norm", &Problem::is_norm)
      .def_property_readonly("is_depthwise", &Problem::is_depthwise)
      .def_property_readonly("is_pointwise", &Problem::is_pointwise)
      .def("replace", [](Problem p, const py::kwargs& changes) {
        size_t used = 0;
        each_field(p, [&](const char* name, auto& field) {
          if (changes.contains(name)) from_python(field, changes[name], name), ++used;
        });
        if (used != changes.size()) throw std::invalid_argument("Problem.replace() got a field that does not exist.");
        if (!p.is_conv() && !p.is_attention()) p.k = p.c;
        checked(invalid(p));
        return p;
      });
  Problem sample;
  each_field(sample, [&](const char* name, auto&) {
    problem.def_property_readonly(name, [name](Problem& p) {
      py::object found;
      each_field(p, [&](const char* other, auto& field) {
        if (other == name) found = to_python(field);
      });
      return found;
    });
  });
}

py::list kernels() {
  py::list rows;
  for (const Kernel& kernel : cpu_kernels()) {
    py::dict row;
    row["name"] = kernel.name;
    row["op"] = to_python(kernel.op);
    row["pass_"] = to_python(kernel.pass);
    row["isa"] = to_python(kernel.isa);
    rows.append(row);
  }
  return rows;
}

std::string refuses(size_t row, const Problem& problem, const std::string& isa_limit) {
  const Kernel& kernel = cpu_kernels().at(row);
  const auto limit = Isa_from(isa_limit);
  if (!limit) throw std::invalid_argument("There is no instruction set named '" + isa_limit + "'.");
  if (auto sentence = refuses_isa(kernel.isa, *limit); !sentence.empty()) return sentence;
  return refusal(kernel.body, problem);
}

// Seconds on a nominal core, or nothing where the kernel leaves the choice to the order of the list.
// An empty problem costs nothing, and no kernel is asked: their sizes divide by channels and pixels.
bool is_empty(const Problem& p) {
  return p.x_elements() == 0 || p.out_pixels() == 0 || (p.is_conv() && (p.y_elements() == 0 || p.w_elements() == 0));
}

int64_t workspace(size_t row, const Problem& problem, int threads) {
  return is_empty(problem) ? 0 : cpu_kernels().at(row).body.workspace(problem, threads);
}

std::optional<double> estimate(size_t row, const Problem& problem, int threads) {
  const Kernel& kernel = cpu_kernels().at(row);
  if (!kernel.body.cost) return std::nullopt;
  if (is_empty(problem)) return 0;
  return estimated_seconds(kernel.body.cost(problem, threads), threads,
                           nominal_rates(kernel.isa, cpu_has_wide_pipes()));
}

// Bytes and variant of the form a kernel packs a filter into; none where it packs none.
std::optional<std::pair<int64_t, int64_t>> packed_form(size_t row, const Problem& problem) {
  const KernelBody& body = cpu_kernels().at(row).body;
  if (!body.packed) return std::nullopt;
  const PackedForm form = body.packed(problem);
  return std::pair(form.bytes, form.variant);
}

// Packs a filter for run_kernel().
void pack(size_t row, const Problem& problem, const at::Tensor& w, const at::Tensor& out) {
  Args args;
  args.w = w.const_data_ptr();
  for (int i = 0; i < 4; ++i) args.w_stride[i] = w.stride(i);
  py::gil_scoped_release release;
  cpu_kernels().at(row).body.pack(problem, args, out.mutable_data_ptr(), TorchParallel());
}

using OptionalTensor = std::optional<at::Tensor>;

void run_kernel(size_t row, const Problem& problem, const at::Tensor& out, const OptionalTensor& x,
                const OptionalTensor& w, const OptionalTensor& y, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& index, const OptionalTensor& mean,
                const OptionalTensor& variance, const OptionalTensor& stats, const OptionalTensor& scale,
                const OptionalTensor& packed, const OptionalTensor& keys, const OptionalTensor& values,
                const OptionalTensor& mask, double eps, const std::tuple<double, double, double>& response,
                double factor, int threads) {
  const Kernel& kernel = cpu_kernels().at(row);
  checked(refuses_isa(kernel.isa, Isa::avx512));
  auto get = [](const OptionalTensor& t) { return t.value_or(at::Tensor()); };
  const auto [alpha, beta, k] = response;
  Operands o{get(x),    get(w),        get(y),     get(bias), get(residual),   get(index),
             get(mean), get(variance), get(stats), eps,       {alpha, beta, k}};
  o.scale = get(scale), o.packed = get(packed), o.out = out;
  o.keys = get(keys), o.values = get(values), o.mask = get(mask), o.factor = factor;
  py::gil_scoped_release release;
  if (threads > 0)
    run_native(kernel, problem, o, FixedParallel(threads));
  else
    run_native(kernel, problem, o, TorchParallel());
}

// Multiply-adds on every thread of torch's pool at once: FLOPs and seconds of each thread, by its own clock, so that a
// thread that had to wait for its processor spoils no other's figure.
std::vector<std::pair<double, double>> fma_burst(const std::string& isa, bool wide, int64_t rounds) {
  const auto chosen = Isa_from(isa);
  if (!chosen) throw std::invalid_argument("There is no instruction set named '" + isa + "'.");
  multiply_add_burst(*chosen, wide, 1);  // an exception must not start inside the pool
  py::gil_scoped_release release;
  const TorchParallel parallel;
  std::vector<std::pair<double, double>> runs(static_cast<size_t>(parallel.threads()));
  parallel(parallel.threads(), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const double flops = multiply_add_burst(*chosen, wide, rounds);
      runs[static_cast<size_t>(i)] = {flops,
                                      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
    }
  });
  return runs;
}

// Seconds in which two threads of the pool answer each other once; none where there is one, or one does not answer.
std::optional<double> round_trip(int64_t rounds) {
  constexpr auto patience = std::chrono::seconds(1);
  py::gil_scoped_release release;
  const TorchParallel parallel;
  std::atomic<int64_t> turn = 0;
  std::atomic<bool> failed = parallel.threads() < 2;
  const auto start = std::chrono::steady_clock::now();
  if (!failed)
    parallel(2, [&](int64_t mine, int64_t end, int) {
      if (end - mine > 1) failed = true;
      for (int64_t i = 0; i < rounds && !failed; ++i) {
        while (turn.load(std::memory_order_acquire) != 2 * i + mine && !failed)
          if (std::chrono::steady_clock::now() - start > patience) failed = true;
        turn.store(2 * i + mine + 1, std::memory_order_release);
      }
    });
  if (failed) return {};
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / static_cast<double>(rounds);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("torch_version") = FASTCONV_TORCH_VERSION;
  bind_axis(m);
  bind_problem(m);
  bind_program(m);
  m.def("kernels", &kernels, "Every native kernel in order of preference.");
  m.def("refuses", &refuses, py::arg("row"), py::arg("problem"), py::arg("isa_limit"));
  m.def("workspace", &workspace);
  m.def("packed_form", &packed_form, py::arg("row"), py::arg("problem"));
  m.def("pack", &pack, py::arg("row"), py::arg("problem"), py::arg("w"), py::arg("out"));
  m.def("estimate", &estimate, py::arg("row"), py::arg("problem"), py::arg("threads"));
  m.def("run_kernel", &run_kernel, py::arg("row"), py::arg("problem"), py::arg("out"), py::arg("x") = py::none(),
        py::arg("w") = py::none(), py::arg("y") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("index") = py::none(), py::arg("mean") = py::none(),
        py::arg("variance") = py::none(), py::arg("stats") = py::none(), py::arg("scale") = py::none(),
        py::arg("packed") = py::none(), py::arg("keys") = py::none(), py::arg("values") = py::none(),
        py::arg("mask") = py::none(), py::arg("eps") = 0.0,
        py::arg("response") = std::tuple(Response().alpha, Response().beta, Response().k), py::arg("factor") = 1.0,
        py::arg("threads") = 0);
  m.def("set_planner", &set_planner);
  m.def("clear_plans", &clear_plans);
  m.def("plan_count", &plan_count);
  m.def("set_trace", &set_trace);
  m.def("keep_memory", &keep_memory);
  m.def("empty_result", [](const at::Tensor& like) {
    return empty_result(like.sizes(), like.strides(), at::TensorOptions().dtype(like.dtype()));
  });
  m.def("release_memory", &release_memory);
  m.def("memory_stats", [] {
    const MemoryStats stats = memory_stats();
    return std::tuple(stats.live, stats.kept, stats.peak);
  });
  m.def("cpu_supports", [](const std::string& isa) {
    const auto found = Isa_from(isa);
    return found && cpu_supports(*found);
  });
  add_conv_functions(m);
  add_norm_functions(m);
  add_pool_functions(m);
  add_gpu_functions(m);
  add_gpu_pair_functions(m);
  m.def("fma_burst", &fma_burst, py::arg("isa"), py::arg("wide"), py::arg("rounds"));
  m.def("round_trip", &round_trip, py::arg("rounds"));
  m.def("isas", [] { return std::vector<std::string>(Isa_names.begin(), Isa_names.end()); });
}

}  // namespace fastconv
