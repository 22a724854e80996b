// Why this file exists: the general way through torch.ops parses its arguments against a schema and takes longer than
// torch's whole conv2d. Reading them by hand leaves the cost of the operator itself.
#include "conv_python.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "conv_ops.h"

namespace fastconv {

namespace {

using Pair = std::array<int64_t, 2>;

bool read(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

// An int, or a tuple or list of two.
bool read(PyObject* object, Pair& pair) {
  if (PyTuple_CheckExact(object) || PyList_CheckExact(object)) {
    PyObject* const* items = PySequence_Fast_ITEMS(object);
    return PySequence_Fast_GET_SIZE(object) == 2 && read(items[0], pair[0]) && read(items[1], pair[1]);
  }
  if (!read(object, pair[0])) return false;
  pair[1] = pair[0];
  return true;
}

// A Tensor or Parameter itself: a subclass may want to see the call.
bool read(PyObject* object, const at::Tensor*& tensor) {
  if (!THPVariable_CheckExact(object)) return false;
  tensor = &THPVariable_Unpack(object);
  return tensor->dim() == 4;
}

bool read_bias(PyObject* object, OptionalTensor& tensor) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  tensor = THPVariable_Unpack(object);
  return true;
}

// Somebody records or overrides torch's Python functions.
bool observed() { return at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing(); }

PyObject* not_implemented() { Py_RETURN_NOTIMPLEMENTED; }

PyObject* conv2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor *x, *w;
  OptionalTensor bias;
  Pair stride, padding, dilation;
  int64_t groups;
  constexpr Py_ssize_t arguments = 7;
  if (count != arguments || observed() || !read(args[0], x) || !read(args[1], w) || !read_bias(args[2], bias) ||
      !read(args[3], stride) || !read(args[4], padding) || !read(args[5], dilation) || !read(args[6], groups))
    return not_implemented();
  const std::array<int64_t, 4> sides{padding[0], padding[0], padding[1], padding[1]};
  pybind11::gil_scoped_release release;
  at::Tensor y = call_fprop(*x, *w, bias, {stride, sides, dilation, groups});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// Sizes and sides of a transposed convolution on one axis; false where functional/conv.py has something to say.
bool transposed_axis(int64_t in, int64_t window, int64_t stride, int64_t padding, int64_t extra, int64_t dilation,
                     c10::SymInt& size, int64_t* sides) {
  constexpr int64_t ordinary = int64_t{1} << 30;  // keeps the arithmetic below from overflowing
  for (const int64_t value : {in, window, stride, padding, dilation})
    if (value < 0 || value > ordinary) return false;
  if (in == 0 || window == 0 || stride == 0 || dilation == 0 || extra < 0 || extra >= stride) return false;
  size = (in - 1) * stride - 2 * padding + dilation * (window - 1) + 1 + extra;
  sides[0] = sides[1] = padding;
  return true;
}

PyObject* conv_transpose2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor *x, *w;
  OptionalTensor bias;
  Pair stride, padding, extra, dilation;
  int64_t groups;
  constexpr Py_ssize_t arguments = 8;
  if (count != arguments || observed() || !read(args[0], x) || !read(args[1], w) || !read_bias(args[2], bias) ||
      !read(args[3], stride) || !read(args[4], padding) || !read(args[5], extra) || !read(args[6], groups) ||
      !read(args[7], dilation))
    return not_implemented();
  if (x->unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return not_implemented();
  std::array<c10::SymInt, 2> size;
  std::array<int64_t, 4> sides;
  for (int i = 0; i < 2; ++i)
    if (!transposed_axis(x->size(2 + i), w->size(2 + i), stride[i], padding[i], extra[i], dilation[i], size[i],
                         &sides[2 * i]))
      return not_implemented();
  pybind11::gil_scoped_release release;
  at::Tensor y = call_dgrad(*x, *w, bias, size, {stride, sides, dilation, groups});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {
    {"conv2d", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(conv2d)), METH_FASTCALL, nullptr},
    {"conv_transpose2d", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(conv_transpose2d)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_conv_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
