// The short way from functional.conv2d and conv_transpose2d to their operators.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

// Adds conv2d(input, weight, bias, stride, padding, dilation, groups) and conv_transpose2d(input, weight, bias, stride,
// padding, output_padding, groups, dilation): positional, torch's order. They take the ordinary call (plain 4-D
// tensors, ints and pairs of ints) and return NotImplemented for every other, which functional/conv.py then brings into
// form.
void add_conv_functions(pybind11::module_& m);

// Likewise batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps) and
// local_response_norm(input, size, alpha, beta, k) (norm_python.cpp).
void add_norm_functions(pybind11::module_& m);

}  // namespace fastconv
