// The short way into the norms.
#include "dispatch.h"
#include "norm_ops.h"
#include "python_arguments.h"
#include "python_functions.h"
#include "response_ops.h"

namespace fastconv::norm {

namespace {

// What our kernels take; torch's own function runs the rest, and has the errors. functional/ says the same of traced
// tensors.
bool ours(const at::Tensor& x) {
  return !x.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && x.layout() == at::kStrided && x.is_cpu() &&
         x.dim() >= 2 && x.dim() <= 4 && dtype_of(x) != Dtype::other && x.numel() > 0;
}
bool ours(const at::Tensor& x, const std::array<const OptionalTensor*, 4>& parameters, bool training, double eps) {
  if (!ours(x) || !(eps > 0)) return false;
  if (training && x.numel() == x.size(1)) return false;
  std::optional<at::ScalarType> type;
  for (const OptionalTensor* parameter : parameters) {
    if (!*parameter) continue;
    const at::Tensor& t = **parameter;
    if (t.dim() != 1 || t.layout() != at::kStrided || !t.is_cpu() || t.size(0) != x.size(1)) return false;
    if (type && *type != t.scalar_type()) return false;
    type = t.scalar_type();
  }
  return !type || *type == x.scalar_type() || *type == arithmetic_of(x);
}

// batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
PyObject* batch_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor* x;
  OptionalTensor mean, variance, weight, bias;
  bool training;
  double momentum, eps;
  if (!python::read_all(args, count, x, mean, variance, weight, bias, training, momentum, eps) ||
      mean.has_value() != variance.has_value() || (!training && !mean) ||
      !ours(*x, {&mean, &variance, &weight, &bias}, training, eps))
    Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = training ? std::get<0>(call_train(*x, weight, bias, mean, variance, momentum, eps))
                          : call_inference(*x, weight, bias, mean, *variance, eps);
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// local_response_norm(input, size, alpha, beta, k)
PyObject* local_response_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  constexpr int64_t most = int64_t{1} << 31;
  const at::Tensor* x;
  int64_t size;
  Response r;
  if (!python::read_all(args, count, x, size, r.alpha, r.beta, r.k) || size < 1 || size >= most || !ours(*x) ||
      x->dim() < 3)
    Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = call_response(*x, size, r);
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {python::method("batch_norm", batch_norm),
                           python::method("local_response_norm", local_response_norm), python::last_method};

}  // namespace

}  // namespace fastconv::norm

namespace fastconv {

void add_norm_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), norm::functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
