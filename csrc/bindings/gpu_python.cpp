#include "gpu_python.h"

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <sstream>

#include "cuda/emulator/block.h"
#include "cuda/table.h"
#include "gpu_run.h"

namespace fastconv {

namespace {

namespace py = pybind11;
using OptionalTensor = std::optional<at::Tensor>;

const GpuKernel& row_at(size_t row) { return emulated::gpu_kernels().at(row); }

py::list kernels() {
  py::list rows;
  for (const GpuKernel& kernel : emulated::gpu_kernels()) {
    py::dict row;
    row["name"] = kernel.name;
    row["op"] = std::string(name_of(kernel.op));
    row["pass_"] = std::string(name_of(kernel.pass));
    rows.append(row);
  }
  return rows;
}

Operands operands_of(const OptionalTensor& out, const OptionalTensor& x, const OptionalTensor& w,
                     const OptionalTensor& y, const OptionalTensor& bias, const OptionalTensor& residual,
                     const OptionalTensor& index) {
  auto get = [](const OptionalTensor& t) { return t.value_or(at::Tensor()); };
  Operands o{get(x), get(w), get(y), get(bias), get(residual), get(index)};
  o.out = get(out);
  return o;
}

void check_accepted(const GpuKernel& kernel, const Problem& problem) {
  if (const std::string sentence = refusal(kernel.body, problem); !sentence.empty())
    throw std::invalid_argument(sentence);
}

void emulate(size_t row, const Problem& problem, const at::Tensor& out, const OptionalTensor& x,
             const OptionalTensor& w, const OptionalTensor& y, const OptionalTensor& bias,
             const OptionalTensor& residual, const OptionalTensor& index, const OptionalTensor& workspace,
             uint64_t seed) {
  const GpuKernel& kernel = row_at(row);
  check_accepted(kernel, problem);
  Args args = args_of(problem, operands_of(out, x, w, y, bias, residual, index));
  args.workspace = workspace ? workspace->mutable_data_ptr() : nullptr;
  if (out.numel() == 0) return;
  std::vector<emulated::Range> ranges;
  auto allow = [&](const OptionalTensor& t, bool written) {
    if (t) ranges.push_back({t->const_data_ptr(), extent_of(*t), written});
  };
  const bool writes_index = problem.pass == Pass::fprop && problem.op != Op::unpool2d;
  for (const OptionalTensor& t : {x, w, y, bias, residual}) allow(t, false);
  allow(index, writes_index), allow(workspace, true), allow(out, true);
  const emulated::Allowed allowed(std::move(ranges));
  py::gil_scoped_release release;
  kernel.body.run(problem, args, Stream{seed});
}

// The architectures this build holds device code for, and where it holds none, why.
std::pair<std::vector<std::string>, std::string> device_code() {
  std::vector<std::string> architectures;
  std::istringstream words(FASTCONV_DEVICE_ARCHITECTURES);
  for (std::string word; std::getline(words, word, ',');) architectures.push_back(word);
  return {architectures, FASTCONV_WITHOUT_DEVICE_CODE};
}

at::Tensor run(size_t row, const Problem& problem, const OptionalTensor& out, const OptionalTensor& x,
               const OptionalTensor& w, const OptionalTensor& y, const OptionalTensor& bias,
               const OptionalTensor& residual, const OptionalTensor& index) {
  check_device_code();
  const GpuKernel& kernel = device::gpu_kernels().at(row);
  check_accepted(kernel, problem);
  Operands o = operands_of(out, x, w, y, bias, residual, index);
  check_one_device(kernel.name, {o.x.defined() ? o.x : o.y, o.x, o.w, o.y, o.bias, o.residual, o.index, o.out});
  const bool forward = problem.pass == Pass::fprop, gradient = problem.pass == Pass::wgrad;
  TORCH_CHECK((o.x.defined() || !(forward || gradient)) && (o.y.defined() || forward) &&
                  (o.w.defined() || gradient || !problem.is_conv()) &&
                  (o.index.defined() || problem.index == Index::none) && (o.bias.defined() || !problem.epilogue.bias) &&
                  (o.residual.defined() || !problem.epilogue.residual),
              problem.text(), " has an operand that is missing.");
  // A new gradient of the weights lies contiguously.
  const int64_t c = problem.channels_per_group(), r = problem.h.window, s = problem.w.window;
  const std::array<int64_t, 4> sizes{problem.k, c, r, s}, strides{c * r * s, r * s, s, 1};
  o.w_sizes = sizes, o.w_strides = strides;
  if (!o.out.defined()) {
    TORCH_CHECK(problem.epilogue.out_channels == 0, problem.text(), " writes a slice of ",
                problem.epilogue.out_channels, " channels and needs the buffer: out.");
    o.out = allocate(problem, o);
  }
  if (o.out.numel() == 0) return o.out;
  py::gil_scoped_release release;
  run_gpu(kernel, problem, o);
  return o.out;
}

}  // namespace

int64_t extent_of(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return t.numel() ? (last + 1) * t.element_size() : 0;
}

void check_device_code() {
  if (device::gpu_kernels().empty())
    throw std::runtime_error(std::string("This build has no device code: ") + FASTCONV_WITHOUT_DEVICE_CODE + ".");
}

void check_one_device(const std::string& kernel, std::initializer_list<at::Tensor> tensors) {
  const at::Tensor& like = *tensors.begin();
  for (const at::Tensor& t : tensors)
    TORCH_CHECK(!t.defined() || (t.is_cuda() && t.device() == like.device()), kernel,
                " takes tensors of one CUDA device, but one is on ", t.device(), ".");
}

void add_gpu_functions(py::module_& m) {
  m.def("gpu_kernels", &kernels, "Every GPU kernel in order of preference.");
  m.def("gpu_refuses", [](size_t row, const Problem& problem) { return refusal(row_at(row).body, problem); });
  m.def("gpu_workspace", [](size_t row, const Problem& problem) { return row_at(row).body.workspace(problem); });
  m.def("gpu_emulate", &emulate, py::arg("row"), py::arg("problem"), py::arg("out"), py::arg("x") = py::none(),
        py::arg("w") = py::none(), py::arg("y") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("index") = py::none(), py::arg("workspace") = py::none(),
        py::arg("seed") = 0);
  m.def("gpu_device_code", &device_code);
  m.def("gpu_run", &run, py::arg("row"), py::arg("problem"), py::arg("out") = py::none(), py::arg("x") = py::none(),
        py::arg("w") = py::none(), py::arg("y") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("index") = py::none());
}

}  // namespace fastconv
