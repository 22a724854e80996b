// The convolution operators from torch's own, for tensors that are not ours (see foreign()).
#include <ATen/ATen.h>

#include "conv_ops.h"
#include "dispatch.h"

namespace fastconv {

namespace {

// x with its padding, and the padding that is left for the operator: torch's operators pad both sides alike.
std::pair<at::Tensor, std::array<int64_t, 2>> padded(const at::Tensor& x, const ConvGeometry& g) {
  const auto& p = g.padding;
  if (p[0] == p[1] && p[2] == p[3]) return {x, {p[0], p[2]}};
  return {at::constant_pad_nd(x, {p[2], p[3], p[0], p[1]}), {0, 0}};
}

}  // namespace

bool foreign(const at::Tensor& t) {
  if (t.layout() != at::kStrided || dtype_of(t) == Dtype::other) return true;
  return !t.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && t.numel() == 0;
}

at::Tensor foreign_fprop(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias, const ConvGeometry& g) {
  const auto [input, padding] = padded(x, g);
  return at::conv2d(input, w, bias, g.stride, padding, g.dilation, g.groups);
}

// The whole transposed convolution, then cut or filled with zeros to the wanted window.
at::Tensor foreign_dgrad(const at::Tensor& dy, const at::Tensor& w, const OptionalTensor& bias,
                         at::IntArrayRef input_size, const ConvGeometry& g) {
  const at::Tensor whole = at::conv_transpose2d(dy, w, {}, g.stride, 0, 0, g.groups, g.dilation);
  const auto &p = g.padding, &size = input_size;
  const at::Tensor dx =
      at::constant_pad_nd(whole, {-p[2], size[1] + p[2] - whole.size(3), -p[0], size[0] + p[0] - whole.size(2)});
  return bias && bias->defined() ? dx + bias->view({-1, 1, 1}) : dx;
}

at::Tensor foreign_wgrad(const at::Tensor& dy, const at::Tensor& x, at::IntArrayRef kernel_size,
                         const ConvGeometry& g) {
  const auto [input, padding] = padded(x, g);
  const at::Tensor like_w = x.new_empty({dy.size(1), x.size(1) / g.groups, kernel_size[0], kernel_size[1]});
  return std::get<1>(at::convolution_backward(dy, input, like_w, at::OptionalIntArrayRef(), g.stride, padding,
                                              g.dilation, /*transposed=*/false, {0, 0}, g.groups,
                                              {false, true, false}));
}

at::Tensor unfused_tail(const at::Tensor& y, const OptionalTensor& residual, c10::string_view activation,
                        double alpha) {
  const at::Tensor sum = residual && residual->defined() ? y + *residual : y;
  if (activation == "none") return sum;
  if (activation == "relu") return at::relu(sum);
  if (activation == "relu6") return at::relu6(sum);
  if (activation == "leaky_relu") return at::leaky_relu(sum, alpha);
  if (activation == "silu") return at::silu(sum);
  if (activation == "hardswish") return at::hardswish(sum);
  if (activation == "hardsigmoid") return at::hardsigmoid(sum);
  if (activation == "sigmoid") return at::sigmoid(sum);
  if (activation == "gelu") return at::gelu(sum);
  if (activation == "gelutanh") return at::gelu(sum, "tanh");
  TORCH_CHECK(false, "There is no activation named '", activation, "'.");
}

}  // namespace fastconv
