// Arguments of the convolution ops -> Problem, with torch's own checks: every size is validated in 64 bits before
// anything is allocated.
#pragma once

#include <ATen/ATen.h>

#include "core/problem.h"

namespace fastconv {

// Stride and dilation per axis (h, w); padding per side (top, bottom, left, right).
struct ConvGeometry {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

Problem fprop_problem(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& residual, const ConvGeometry& geometry);
// dx of size `input_size`, also the forward pass of a transposed convolution.
Problem dgrad_problem(const at::Tensor& dy, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef input_size, const ConvGeometry& geometry);
Problem wgrad_problem(const at::Tensor& dy, const at::Tensor& x, at::IntArrayRef kernel_size,
                      const ConvGeometry& geometry);

// The layout torch gives the result of a convolution of these operands. It asks whether either looks like
// channels_last, makes both dense in that layout, and asks again, which a filter of one element a channel answers
// otherwise. The gradients of both operands lie like the result. (Checked against torch in tests/ops/test_strides.py.)
Layout result_layout(const at::Tensor& input, const at::Tensor& w);

}  // namespace fastconv
