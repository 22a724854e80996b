// The short way into the pools.
#include "pool_ops.h"
#include "python_arguments.h"
#include "python_functions.h"

namespace fastconv::pool {

namespace {

using python::Pair;

PyObject* max_pool2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor* x;
  Pair window, padding, dilation;
  std::optional<Pair> stride;
  bool ceil_mode;
  if (!python::read_all(args, count, x, window, stride, padding, dilation, ceil_mode) || x->dim() != 4)
    Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = call_max(*x, {window, stride ? *stride : window, padding, dilation, ceil_mode});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyObject* avg_pool2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor* x;
  Pair window, padding;
  std::optional<Pair> stride;
  bool ceil_mode, count_include_pad;
  std::optional<int64_t> divisor;
  if (!python::read_all(args, count, x, window, stride, padding, ceil_mode, count_include_pad, divisor) ||
      x->dim() != 4)
    Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y =
      call_avg(*x, {window, stride ? *stride : window, padding, no_dilation, ceil_mode, count_include_pad, divisor});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyObject* adaptive_avg_pool2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const at::Tensor* x;
  Pair size;
  if (!python::read_all(args, count, x, size) || x->dim() != 4) Py_RETURN_NOTIMPLEMENTED;
  pybind11::gil_scoped_release release;
  at::Tensor y = call_adaptive_avg(*x, std::array<c10::SymInt, 2>{size[0], size[1]});
  pybind11::gil_scoped_acquire acquire;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {python::method("max_pool2d", max_pool2d), python::method("avg_pool2d", avg_pool2d),
                           python::method("adaptive_avg_pool2d", adaptive_avg_pool2d), python::last_method};

}  // namespace

}  // namespace fastconv::pool

namespace fastconv {

void add_pool_functions(pybind11::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), pool::functions) != 0) throw pybind11::error_already_set();
}

}  // namespace fastconv
