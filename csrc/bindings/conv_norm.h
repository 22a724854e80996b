// A convolution, the batch norm behind it and an activation as one call, where no derivative is wanted.
#pragma once

#include <ATen/ATen.h>

#include "conv_ops.h"

namespace fastconv {

// The running statistics and parameters of a batch norm: y = (x - mean) / sqrt(variance + eps)·weight + bias.
struct RunningNorm {
  at::Tensor mean, variance;
  OptionalTensor weight, bias;
  double eps;
};

// A filter and a bias that norm what they convolve.
struct Folded {
  at::Tensor w, bias;
};

// Whether norming the filter is possible and is less work than norming the result of a convolution of x.
bool folds(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias, const RunningNorm& norm,
           const ConvGeometry& g);
Folded fold(const at::Tensor& w, const OptionalTensor& bias, const RunningNorm& norm);

}  // namespace fastconv
