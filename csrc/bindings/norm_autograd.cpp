// Derivatives of batch normalisation. The first order runs on our kernels: a Node when a gradient is wanted, as in
// conv_autograd.cpp. The gradient operators themselves are differentiated as a composite of torch's operators, and so
// is everything in forward mode: a second order is rare, and its formulas are long.
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "autograd_node.h"
#include "norm_common.h"
#include "norm_ops.h"

namespace fastconv::norm {

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// --- the definition, in torch's operators ---------------------------------------------------------------------------

struct Gradients {
  Tensor x, weight, bias;
};

// A channel's value against (N, C, ...).
Tensor over(const Tensor& channel, const Tensor& x) {
  std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
  shape[1] = -1;
  return channel.to(arithmetic_of(x)).view(shape);
}

Gradients composite(const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
                    const Tensor& variance, bool training, double eps) {
  const Tensor wide = x.to(arithmetic_of(x)), g = dy.to(arithmetic_of(x));
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != 1) dims.push_back(d);
  const Tensor center = training ? wide.mean(dims, /*keepdim=*/true) : over(mean, x);
  const Tensor off = wide - center;
  const Tensor spread = training ? (off * off).mean(dims, true) : over(variance, x);
  const Tensor inverse = (spread + eps).rsqrt(), normal = off * inverse, product = g * normal;
  Tensor dx = g;
  if (training) dx = dx - g.mean(dims, true) - normal * product.mean(dims, true);
  dx = dx * inverse;
  if (weight && weight->defined()) dx = dx * over(*weight, x);
  return {dx.to(x.scalar_type()), product.sum(dims), g.sum(dims)};
}

// --- reverse mode ----------------------------------------------------------------------------------------------------

class NormNode final : public Node {
 public:
  std::string name() const override { return "FastconvBatchNormBackward"; }

  // training: mean holds the batch's statistics, and variance is undefined.
  void save(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
            const Tensor& variance, bool training, double eps) {
    const auto keep = [](const Tensor& t) { return SavedVariable(t, /*is_output=*/false); };
    x_ = keep(x), weight_ = keep(value(weight)), mean_ = keep(mean), variance_ = keep(variance);
    const auto type = [](const OptionalTensor& t) { return t && t->defined() ? t->scalar_type() : at::kFloat; };
    weight_type_ = type(weight), bias_type_ = type(bias);
    training_ = training, eps_ = eps;
  }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable* saved : {&x_, &weight_, &mean_, &variance_}) saved->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    variable_list out(num_outputs());
    const Tensor& dy = grads[0];
    if (!dy.defined()) return out;
    const std::lock_guard lock(mutex_);
    const Tensor x = x_.unpack(), weight = weight_.unpack();
    const Tensor stats = mean_.unpack(), mean = training_ ? stats.select(0, 0) : stats;
    const Tensor variance = training_ ? stats.select(0, 1) : variance_.unpack();
    const bool parameters = wanted(1) || wanted(2);
    Tensor pair;
    if (!wanted(0)) {
      if (parameters) pair = call_wgrad(dy, x, mean, variance, training_, eps_);
    } else if (training_ || parameters) {
      std::tie(out[0], pair) = call_dgrad(dy, x, weight, mean, variance, training_, eps_);
    } else {
      out[0] = call_inference(dy.contiguous(x.suggest_memory_format()), weight, {}, {}, variance, eps_);
    }
    if (wanted(1)) out[1] = pair.select(0, 0).to(weight_type_);
    if (wanted(2)) out[2] = pair.select(0, 1).to(bias_type_);
    return out;
  }

 private:
  bool wanted(size_t output) const { return task_should_compute_output(output); }

  SavedVariable x_, weight_, mean_, variance_;
  at::ScalarType weight_type_ = at::kFloat, bias_type_ = at::kFloat;
  bool training_ = false;
  double eps_ = 0;
};

NodePointer<NormNode> node_for(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias) {
  if (!any_gradient(x, weight, bias)) return {};
  auto node = make_node<NormNode>();
  node->set_next_edges(torch::autograd::collect_next_edges(x, value(weight), value(bias)));
  return node;
}

Tensor autograd_inference(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& mean, const Tensor& variance, double eps) {
  if (any_tangent(x, weight, bias) || any_gradient(mean, variance)) {
    const Tensor center = mean && mean->defined() ? *mean : at::zeros_like(variance);
    return at::batch_norm(x, weight, bias, center, variance, false, 0, eps, false);
  }
  const auto node = node_for(x, weight, bias);
  if (node)
    node->save(x, weight, bias, mean && mean->defined() ? *mean : at::zeros_like(variance), variance, false, eps);
  Tensor y = [&] {
    at::AutoDispatchBelowAutograd guard;
    return call_inference(x, weight, bias, mean, variance, eps);
  }();
  if (node) torch::autograd::set_history(y, node);
  return y;
}

std::tuple<Tensor, Tensor> autograd_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                          double momentum, double eps) {
  if (any_tangent(x, weight, bias)) {
    const Tensor y = at::batch_norm(x, weight, bias, running_mean, running_var, true, momentum, eps, false);
    return {y, at::zeros_symint({2, x.sym_size(1)}, x.options().dtype(arithmetic_of(x)))};
  }
  const auto node = node_for(x, weight, bias);
  auto [y, stats] = [&] {
    at::AutoDispatchBelowAutograd guard;
    return call_train(x, weight, bias, running_mean, running_var, momentum, eps);
  }();
  if (node) {
    node->save(x, weight, bias, stats, {}, true, eps);
    torch::autograd::set_history(y, node);
  }
  return {y, stats};
}

std::tuple<Tensor, Tensor> autograd_dgrad(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                                          const Tensor& mean, const Tensor& variance, bool training, double eps) {
  if (any_gradient(dy, x, weight, mean, variance) || any_tangent(dy, x, weight)) {
    const Gradients all = composite(dy, x, weight, mean, variance, training, eps);
    return {all.x, at::stack({all.weight, all.bias})};
  }
  at::AutoDispatchBelowAutograd guard;
  return call_dgrad(dy, x, weight, mean, variance, training, eps);
}

Tensor autograd_wgrad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance, bool training,
                      double eps) {
  if (any_gradient(dy, x, mean, variance) || any_tangent(dy, x)) {
    const Gradients all = composite(dy, x, {}, mean, variance, training, eps);
    return at::stack({all.weight, all.bias});
  }
  at::AutoDispatchBelowAutograd guard;
  return call_wgrad(dy, x, mean, variance, training, eps);
}

// What changes the running statistics says so to autograd, which finds tensors that were saved before.
std::tuple<Tensor, Tensor> counted_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                         double momentum, double eps) {
  for (const OptionalTensor& running : {running_mean, running_var})
    if (running && running->defined()) torch::autograd::impl::bump_version(*running);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_train(x, weight, bias, running_mean, running_var, momentum, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("batch_norm_inference", &autograd_inference);
  m.impl("batch_norm_train", &autograd_train);
  m.impl("batch_norm_dgrad", &autograd_dgrad);
  m.impl("batch_norm_wgrad", &autograd_wgrad);
}

TORCH_LIBRARY_IMPL(fastconv, ADInplaceOrView, m) { m.impl("batch_norm_train", &counted_train); }

}  // namespace fastconv::norm
