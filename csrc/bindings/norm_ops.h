// The batch normalisation operators as C++ functions. Each call goes through torch's dispatcher, so autograd, tracing
// and every functional transform see it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <tuple>

namespace fastconv::norm {

using OptionalTensor = std::optional<at::Tensor>;

// x·scale + shift with scale = weight / sqrt(variance + eps) and shift = bias - mean·scale; a missing tensor is 1 or 0.
at::Tensor call_inference(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& mean, const at::Tensor& variance, double eps);
// y, and the batch's mean and biased variance as a (2, C) tensor of the arithmetic type; updates the running ones.
std::tuple<at::Tensor, at::Tensor> call_train(const at::Tensor& x, const OptionalTensor& weight,
                                              const OptionalTensor& bias, const OptionalTensor& running_mean,
                                              const OptionalTensor& running_var, double momentum, double eps);
// dx, and dweight and dbias as a (2, C) tensor of the arithmetic type. training: mean and variance are x's own.
std::tuple<at::Tensor, at::Tensor> call_dgrad(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& weight,
                                              const at::Tensor& mean, const at::Tensor& variance, bool training,
                                              double eps);
at::Tensor call_wgrad(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& variance,
                      bool training, double eps);

// float for 16-bit types.
inline at::ScalarType arithmetic_of(const at::Tensor& x) { return at::toOpMathType(x.scalar_type()); }

}  // namespace fastconv::norm
