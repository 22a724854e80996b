// The short way into the convolutions.
#include "conv_ops.h"
#include "python_arguments.h"
#include "python_functions.h"

namespace fastconv {

namespace {

using python::Pair;

PyObject* conv2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor *x, *w;
  OptionalTensor bias;
  Pair stride, padding, dilation;
  int64_t groups;
  if (!python::read_all(args, count, x, w, bias, stride, padding, dilation, groups) || x->dim() != 4 || w->dim() != 4)
    Py_RETURN_NOTIMPLEMENTED;
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
  if (!python::read_all(args, count, x, w, bias, stride, padding, extra, groups, dilation) || x->dim() != 4 ||
      w->dim() != 4 || x->unsafeGetTensorImpl()->has_symbolic_sizes_strides())
    Py_RETURN_NOTIMPLEMENTED;
  std::array<c10::SymInt, 2> size;
  std::array<int64_t, 4> sides;
  for (int i = 0; i < 2; ++i)
    if (!transposed_axis(x->size(2 + i), w->size(2 + i), stride[i], padding[i], extra[i], dilation[i], size[i],
                         &sides[2 * i]))
      Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = call_dgrad(*x, *w, bias, size, {stride, sides, dilation, groups});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {python::method("conv2d", conv2d), python::method("conv_transpose2d", conv_transpose2d),
                           python::last_method};

}  // namespace

void add_conv_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
