// From a problem and tensors to a finished call: look the plan up, allocate, run. Which kernel runs is decided in
// Python (fastconv/dispatch.py), once per problem; afterwards the whole way is one hash lookup.
#pragma once

#include <ATen/ATen.h>
#include <pybind11/pybind11.h>

#include "core/kernel.h"
#include "cuda/kernel.h"

namespace fastconv {

namespace py = pybind11;

// The tensors of one call. Activations lie densely in the problem's layout; undefined where the pass has no use.
struct Operands {
  at::Tensor x, w, y, bias, residual, index;
  at::Tensor mean = {}, variance = {}, stats = {};  // of a norm, in the arithmetic type
  double eps = 0;                                   // likewise
  Response response = {};                           // of a local response norm
  at::Tensor scale = {};                            // of a map2d
  at::Tensor packed = {};                           // in place of w
  at::Tensor keys = {}, values = {}, mask = {};     // of attention, beside the queries in x
  double factor = 1;                                // likewise, of the scores
  at::Tensor out = {};                              // allocated by execute() when undefined
  at::IntArrayRef w_sizes = {}, w_strides = {};     // of dw, for wgrad
};

struct Plan {
  const Kernel* native = nullptr;  // a C++ kernel, or
  const GpuKernel* gpu = nullptr;  // a CUDA C++ kernel, or
  py::object kernel;               // the Python row that runs the problem itself
  bool serial = false;             // too small to share out among threads
};

// Whether a problem is too small to share out among threads.
bool is_serial(const Problem& problem);

// The plan for a problem on a device type; asks the planner on the first call. The reference is valid until
// clear_plans(), which dispatch.py calls when the configuration changes.
std::shared_ptr<const Plan> plan_for(const Problem& problem, c10::DeviceType device);
void set_planner(py::object planner);
void clear_plans();
size_t plan_count();

// Every finished call is reported as sink(problem, kernel name, seconds); None switches the reports off.
void set_trace(py::object sink);

// The pointers and strides of a call's operands, its workspace left open.
Args args_of(const Problem& problem, const Operands& operands);

// A tensor for what the problem writes, beside its operands.
at::Tensor allocate(const Problem& problem, const Operands& operands);

// Runs one native kernel on tensors that already fit the problem, `out` included.
void run_native(const Kernel& kernel, const Problem& problem, const Operands& operands, const Parallel& parallel);

// Runs the planned kernel and returns the tensor it wrote.
at::Tensor execute(const Problem& problem, Operands operands);

Dtype dtype_of(const at::Tensor& tensor);
at::MemoryFormat format_of(Layout layout);
Layout layout_of(const at::Tensor& tensor);

}  // namespace fastconv
