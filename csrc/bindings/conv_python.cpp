// The short way into the convolutions.
#include "conv_norm.h"
#include "conv_ops.h"
#include "python_arguments.h"
#include "python_functions.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>

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

// conv2d_act(input, weight, bias, stride, padding, dilation, groups, activation, alpha)
PyObject* conv2d_act(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor *x, *w;
  OptionalTensor bias;
  Pair stride, padding, dilation;
  int64_t groups;
  std::string_view activation;
  double alpha;
  if (!python::read_all(args, count, x, w, bias, stride, padding, dilation, groups, activation, alpha) ||
      x->dim() != 4 || w->dim() != 4 || c10::impl::dispatch_mode_enabled())
    Py_RETURN_NOTIMPLEMENTED;
  const std::array<int64_t, 4> sides{padding[0], padding[0], padding[1], padding[1]};
  pybind11::gil_scoped_release release;
  at::Tensor y = call_act(*x, *w, bias, {}, {stride, sides, dilation, groups}, activation, alpha);
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// conv2d_norm_act(input, weight, bias, stride, padding, dilation, groups, activation, alpha, running_mean, running_var,
// norm_weight, norm_bias, eps); NotImplemented also where a norm of the result is less work.
PyObject* conv2d_norm_act(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor *x, *w, *mean, *variance;
  OptionalTensor bias, weight, shift;
  Pair stride, padding, dilation;
  int64_t groups;
  std::string_view activation;
  double alpha, eps;
  if (!python::read_all(args, count, x, w, bias, stride, padding, dilation, groups, activation, alpha, mean, variance,
                        weight, shift, eps) ||
      x->dim() != 4 || w->dim() != 4)
    Py_RETURN_NOTIMPLEMENTED;
  const std::array<int64_t, 4> sides{padding[0], padding[0], padding[1], padding[1]};
  const ConvGeometry geometry{stride, sides, dilation, groups};
  const RunningNorm norm{*mean, *variance, weight, shift, eps};
  if (!folds(*x, *w, bias, norm, geometry)) Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  const Folded folded = fold(*w, bias, norm);
  at::Tensor y = call_act(*x, folded.w, folded.bias, {}, geometry, activation, alpha);
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

PyMethodDef functions[] = {python::method("conv2d", conv2d), python::method("conv2d_act", conv2d_act),
                           python::method("conv2d_norm_act", conv2d_norm_act),
                           python::method("conv_transpose2d", conv_transpose2d), python::last_method};

}  // namespace

void add_conv_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
