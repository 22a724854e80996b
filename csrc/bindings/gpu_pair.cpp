// Kernels of two problems, seen from Python.
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "cuda/emulator/block.h"
#include "cuda/table.h"
#include "gpu_python.h"
#include "gpu_run.h"

namespace fastconv {

namespace {

namespace py = pybind11;
using OptionalTensor = std::optional<at::Tensor>;

const GpuPair& pair_at(size_t row) { return emulated::gpu_pairs().at(row); }

py::list names() {
  py::list out;
  for (const GpuPair& pair : emulated::gpu_pairs()) out.append(pair.name);
  return out;
}

struct Tensors {
  at::Tensor x, w, filter;
  OptionalTensor depthwise_bias, bias, residual;
  at::Tensor out;
};

PairArgs pair_args(const Problem& first, const Problem& second, const Tensors& t, void* workspace) {
  auto get = [](const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); };
  Operands one{t.x, t.w, {}, get(t.depthwise_bias), {}, {}};
  Operands two{{}, t.filter, {}, get(t.bias), get(t.residual), {}};
  one.out = two.out = t.out;  // of the first it is never read
  PairArgs args{args_of(first, one), args_of(second, two)};
  args.second.workspace = workspace;
  return args;
}

void check_accepted(const GpuPair& pair, const Problem& first, const Problem& second, const Tensors& t) {
  if (const std::string sentence = refusal(pair.body, first, second); !sentence.empty())
    throw std::invalid_argument(sentence);
  TORCH_CHECK((t.depthwise_bias || !first.epilogue.bias) && (t.bias || !second.epilogue.bias) &&
                  (t.residual || !second.epilogue.residual),
              first.text(), " and ", second.text(), " have an operand that is missing.");
}

void emulate(size_t row, const Problem& first, const Problem& second, const at::Tensor& out, const at::Tensor& x,
             const at::Tensor& w, const at::Tensor& filter, const OptionalTensor& depthwise_bias,
             const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& workspace,
             uint64_t seed) {
  const GpuPair& pair = pair_at(row);
  const Tensors tensors{x, w, filter, depthwise_bias, bias, residual, out};
  check_accepted(pair, first, second, tensors);
  if (out.numel() == 0) return;
  const PairArgs args = pair_args(first, second, tensors, workspace ? workspace->mutable_data_ptr() : nullptr);
  std::vector<emulated::Range> ranges;
  auto allow = [&](const OptionalTensor& t, bool written) {
    if (t) ranges.push_back({t->const_data_ptr(), extent_of(*t), written});
  };
  for (const OptionalTensor& t :
       {OptionalTensor(x), OptionalTensor(w), OptionalTensor(filter), depthwise_bias, bias, residual})
    allow(t, false);
  allow(workspace, true), allow(out, true);
  const emulated::Allowed allowed(std::move(ranges));
  py::gil_scoped_release release;
  pair.body.run(first, second, args, Stream{seed});
}

at::Tensor run(size_t row, const Problem& first, const Problem& second, const at::Tensor& x, const at::Tensor& w,
               const at::Tensor& filter, const OptionalTensor& depthwise_bias, const OptionalTensor& bias,
               const OptionalTensor& residual, const OptionalTensor& out) {
  check_device_code();
  const GpuPair& pair = device::gpu_pairs().at(row);
  Tensors tensors{x, w, filter, depthwise_bias, bias, residual, out.value_or(at::Tensor())};
  check_accepted(pair, first, second, tensors);
  auto get = [](const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); };
  check_one_device(pair.name, {x, w, filter, get(depthwise_bias), get(bias), get(residual), tensors.out});
  if (!out) {
    TORCH_CHECK(second.epilogue.out_channels == 0, second.text(), " writes a slice of ", second.epilogue.out_channels,
                " channels and needs the buffer: out.");
    tensors.out = at::empty({second.n, second.k, second.h.out, second.w.out},
                            x.options().memory_format(format_of(second.layout)));
  }
  if (tensors.out.numel() == 0) return tensors.out;
  py::gil_scoped_release release;
  on_current_stream(x.device(), pair.body.workspace(first, second), [&](void* workspace, Stream stream) {
    pair.body.run(first, second, pair_args(first, second, tensors, workspace), stream);
  });
  return tensors.out;
}

}  // namespace

void add_gpu_pair_functions(py::module_& m) {
  m.def("gpu_pairs", &names, "The names of the GPU kernels of two problems in order of preference.");
  m.def("gpu_pair_refuses", [](size_t row, const Problem& first, const Problem& second) {
    return refusal(pair_at(row).body, first, second);
  });
  m.def("gpu_pair_workspace", [](size_t row, const Problem& first, const Problem& second) {
    return pair_at(row).body.workspace(first, second);
  });
  m.def("gpu_pair_emulate", &emulate, py::arg("row"), py::arg("first"), py::arg("second"), py::arg("out"), py::arg("x"),
        py::arg("w"), py::arg("filter"), py::arg("depthwise_bias") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("workspace") = py::none(), py::arg("seed") = 0);
  m.def("gpu_pair_run", &run, py::arg("row"), py::arg("first"), py::arg("second"), py::arg("x"), py::arg("w"),
        py::arg("filter"), py::arg("depthwise_bias") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("out") = py::none());
}

}  // namespace fastconv
