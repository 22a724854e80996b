// The short ways from fastconv.functional to its operators. Each takes the ordinary call, positional and in torch's
// order, and returns NotImplemented for every other, which fastconv/functional then brings into form.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

// conv2d(input, weight, bias, stride, padding, dilation, groups) and
// conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation): plain 4-D tensors, ints and
// pairs of ints.
void add_conv_functions(pybind11::module_& m);

// batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps) and
// local_response_norm(input, size, alpha, beta, k).
void add_norm_functions(pybind11::module_& m);

// max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode),
// avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override) and
// adaptive_avg_pool2d(input, output_size); a stride of None is the window.
void add_pool_functions(pybind11::module_& m);

}  // namespace fastconv
