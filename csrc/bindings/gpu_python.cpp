#include "gpu_python.h"

#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "cuda/emulator/block.h"
#include "cuda/table.h"

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

// Bytes from the first element to the end of the last.
int64_t extent(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return t.numel() ? (last + 1) * t.element_size() : 0;
}

void emulate(size_t row, const Problem& problem, const at::Tensor& out, const OptionalTensor& x,
             const OptionalTensor& w, const OptionalTensor& y, const OptionalTensor& bias,
             const OptionalTensor& residual, const OptionalTensor& index, const OptionalTensor& workspace,
             uint64_t seed) {
  const GpuKernel& kernel = row_at(row);
  if (const std::string sentence = refusal(kernel.body, problem); !sentence.empty())
    throw std::invalid_argument(sentence);
  auto read = [](const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; };
  auto write = [](const OptionalTensor& t) { return t ? t->mutable_data_ptr() : nullptr; };
  Args args;
  args.x = read(x), args.w = read(w), args.y = read(y), args.bias = read(bias), args.residual = read(residual);
  args.index = write(index), args.workspace = write(workspace), args.out = out.mutable_data_ptr();
  const at::Tensor filter = problem.pass == Pass::wgrad ? out : w.value_or(at::Tensor());
  if (problem.is_conv() && filter.defined())
    for (int i = 0; i < 4; ++i) args.w_stride[i] = filter.stride(i);
  if (out.numel() == 0) return;
  std::vector<emulated::Range> ranges;
  auto allow = [&](const OptionalTensor& t, bool written) {
    if (t) ranges.push_back({t->const_data_ptr(), extent(*t), written});
  };
  const bool writes_index = problem.pass == Pass::fprop && problem.op != Op::unpool2d;
  for (const OptionalTensor& t : {x, w, y, bias, residual}) allow(t, false);
  allow(index, writes_index), allow(workspace, true), allow(out, true);
  const emulated::Allowed allowed(std::move(ranges));
  py::gil_scoped_release release;
  kernel.body.run(problem, args, Stream{seed});
}

}  // namespace

void add_gpu_functions(py::module_& m) {
  m.def("gpu_kernels", &kernels, "Every GPU kernel in order of preference.");
  m.def("gpu_refuses", [](size_t row, const Problem& problem) { return refusal(row_at(row).body, problem); });
  m.def("gpu_workspace", [](size_t row, const Problem& problem) { return row_at(row).body.workspace(problem); });
  m.def("gpu_emulate", &emulate, py::arg("row"), py::arg("problem"), py::arg("out"), py::arg("x") = py::none(),
        py::arg("w") = py::none(), py::arg("y") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("index") = py::none(), py::arg("workspace") = py::none(),
        py::arg("seed") = 0);
}

}  // namespace fastconv
