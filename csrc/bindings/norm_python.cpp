// The short way into the norms; why there is one stands in conv_python.cpp.
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "conv_python.h"
#include "dispatch.h"
#include "norm_ops.h"
#include "response_ops.h"

namespace fastconv::norm {

namespace {

bool read(PyObject* object, OptionalTensor& tensor) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  tensor = THPVariable_Unpack(object);
  return true;
}

bool read(PyObject* object, double& value) {
  if (PyFloat_CheckExact(object)) {
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = static_cast<double>(PyLong_AsLongLongAndOverflow(object, &overflow));
  return overflow == 0;
}

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
  constexpr Py_ssize_t arguments = 8;
  OptionalTensor mean, variance, weight, bias;
  double momentum, eps;
  if (count != arguments || at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing() ||
      !THPVariable_CheckExact(args[0]) || !read(args[1], mean) || !read(args[2], variance) || !read(args[3], weight) ||
      !read(args[4], bias) || !PyBool_Check(args[5]) || !read(args[6], momentum) || !read(args[7], eps))
    Py_RETURN_NOTIMPLEMENTED;
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  const bool training = args[5] == Py_True;
  if (mean.has_value() != variance.has_value() || (!training && !mean) ||
      !ours(x, {&mean, &variance, &weight, &bias}, training, eps))
    Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = training ? std::get<0>(call_train(x, weight, bias, mean, variance, momentum, eps))
                          : call_inference(x, weight, bias, mean, *variance, eps);
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

bool read(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

// local_response_norm(input, size, alpha, beta, k)
PyObject* local_response_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  constexpr Py_ssize_t arguments = 5;
  constexpr int64_t most = int64_t{1} << 31;
  int64_t size;
  Response r;
  if (count != arguments || at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing() ||
      !THPVariable_CheckExact(args[0]) || !read(args[1], size) || !read(args[2], r.alpha) || !read(args[3], r.beta) ||
      !read(args[4], r.k) || size < 1 || size >= most)
    Py_RETURN_NOTIMPLEMENTED;
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  if (!ours(x) || x.dim() < 3) Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = call_response(x, size, r);
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {
    {"local_response_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(local_response_norm)),
     METH_FASTCALL, nullptr},
    {"batch_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batch_norm)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

}  // namespace fastconv::norm

namespace fastconv {

void add_norm_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), norm::functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
