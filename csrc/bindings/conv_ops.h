// The convolution operators as C++ functions. Each call goes through torch's dispatcher, so autograd, autocast, tracing
// and every functional transform see it.
#pragma once

#include <ATen/ATen.h>

#include "conv_problem.h"

namespace fastconv {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor call_fprop(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias, const ConvGeometry& g,
                      std::optional<bool> channels_last = {});
at::Tensor call_act(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias,
                    const OptionalTensor& residual, const ConvGeometry& g, c10::string_view activation, double alpha);
at::Tensor call_dgrad(const at::Tensor& dy, const at::Tensor& w, const OptionalTensor& bias,
                      at::SymIntArrayRef input_size, const ConvGeometry& g, std::optional<bool> channels_last = {});
at::Tensor call_wgrad(const at::Tensor& dy, const at::Tensor& x, at::SymIntArrayRef kernel_size, const ConvGeometry& g,
                      bool channels_last);

// Tensors none of our kernels knows (int, complex, sparse, quantized), and those without an element, run on torch's own
// operators, with torch's own derivatives, errors and strides.
bool foreign(const at::Tensor& t);
at::Tensor foreign_fprop(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias, const ConvGeometry& g);
at::Tensor foreign_dgrad(const at::Tensor& dy, const at::Tensor& w, const OptionalTensor& bias,
                         at::IntArrayRef input_size, const ConvGeometry& g);
at::Tensor foreign_wgrad(const at::Tensor& dy, const at::Tensor& x, at::IntArrayRef kernel_size, const ConvGeometry& g);
// residual and activation as torch operators.
at::Tensor unfused_tail(const at::Tensor& y, const OptionalTensor& residual, c10::string_view activation, double alpha);

}  // namespace fastconv
