// Reads Python arguments by hand: the general way through torch.ops parses them against a schema and takes longer than
// torch's whole conv2d. Each read() is false for what it does not know; the caller then returns NotImplemented, and
// fastconv/functional brings the call into form.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <array>
#include <optional>
#include <string_view>

namespace fastconv::python {

using Pair = std::array<int64_t, 2>;

// Somebody records or overrides torch's Python functions.
inline bool observed() { return at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing(); }

inline bool read(PyObject* object, bool& value) {
  value = object == Py_True;
  return PyBool_Check(object);
}

inline bool read(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

inline bool read(PyObject* object, double& value) {
  if (PyFloat_CheckExact(object)) {
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  int64_t whole;
  if (!read(object, whole)) return false;
  value = static_cast<double>(whole);
  return true;
}

// An int, or a tuple or list of two.
inline bool read(PyObject* object, Pair& pair) {
  if (PyTuple_CheckExact(object) || PyList_CheckExact(object)) {
    PyObject* const* items = PySequence_Fast_ITEMS(object);
    return PySequence_Fast_GET_SIZE(object) == 2 && read(items[0], pair[0]) && read(items[1], pair[1]);
  }
  if (!read(object, pair[0])) return false;
  pair[1] = pair[0];
  return true;
}

// A Tensor or Parameter itself: a subclass may want to see the call.
inline bool read(PyObject* object, const at::Tensor*& tensor) {
  if (!THPVariable_CheckExact(object)) return false;
  tensor = &THPVariable_Unpack(object);
  return true;
}

inline bool read(PyObject* object, std::string_view& value) {
  if (!PyUnicode_CheckExact(object)) return false;
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);
  if (!text) throw python_error();
  value = {text, static_cast<size_t>(size)};
  return true;
}

// None leaves the value unset.
template <class T>
bool read(PyObject* object, std::optional<T>& value) {
  if (object == Py_None) return true;
  return read(object, value.emplace());
}
inline bool read(PyObject* object, std::optional<at::Tensor>& tensor) {
  if (object == Py_None) return true;
  const at::Tensor* given;
  if (!read(object, given)) return false;
  tensor = *given;
  return true;
}

// An entry of a table of methods, which takes a tuple of neither arguments nor keywords.
using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
inline PyMethodDef method(const char* name, Fast function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}
constexpr PyMethodDef last_method{nullptr, nullptr, 0, nullptr};

// All of the arguments, in their order.
template <class... Values>
bool read_all(PyObject* const* arguments, Py_ssize_t count, Values&... values) {
  if (count != sizeof...(values) || observed()) return false;
  return (read(*arguments++, values) && ...);
}

}  // namespace fastconv::python
