// Batch normalisation as torch operators: schemas and the run from tensors to kernels. Derivatives stand in
// norm_autograd.cpp. There is no autocast rule: as in torch, the input's dtype decides.
#include "norm_ops.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "norm_common.h"

namespace fastconv::norm {

using at::Tensor;

namespace {

using Inference = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                         const Tensor&, double);
using Train = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&, double, double);
using Dgrad = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                                         const Tensor&, bool, double);
using Wgrad = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool, double);

// --- from tensors to the kernel ------------------------------------------------------------------------------------

Problem problem_of(const Tensor& x, Pass pass, bool training) {
  Problem p;
  p.op = Op::batchnorm2d, p.pass = pass, p.training = training;
  return norm_problem("batch_norm", std::move(p), x);
}

// One value a channel, in the arithmetic type.
Tensor channels(const char* name, const Problem& p, const Tensor& x, const Tensor& t) {
  TORCH_CHECK(t.dim() == 1 && t.size(0) == p.c, name, " should contain ", p.c, " elements not ", t.numel(), ".");
  const at::ScalarType type = arithmetic_of(x);
  return (t.scalar_type() == type ? t : t.to(type)).contiguous();
}
Tensor channels(const char* name, const Problem& p, const Tensor& x, const OptionalTensor& t) {
  return t && t->defined() ? channels(name, p, x, *t) : Tensor();
}

Tensor run_inference(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& mean, const Tensor& variance, double eps) {
  const Problem p = problem_of(x, Pass::fprop, false);
  Operands o;
  o.x = dense(p, x), o.eps = eps;
  o.w = channels("weight", p, x, weight), o.bias = channels("bias", p, x, bias);
  o.mean = channels("running_mean", p, x, mean), o.variance = channels("running_var", p, x, variance);
  return shaped_as(x, execute(p, std::move(o)));
}

// running = (1 - momentum)·running + momentum·factor·batch, in double.
void update(const char* name, const Problem& p, const Tensor& running, const Tensor& batch, double momentum,
            double factor) {
  TORCH_CHECK(running.dim() == 1 && running.size(0) == p.c, name, " should contain ", p.c, " elements not ",
              running.numel(), ".");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, running.scalar_type(), "batch_norm", [&] {
    scalar_t* to = running.mutable_data_ptr<scalar_t>();
    const int64_t step = running.stride(0);
    const auto mix = [&](const auto* fresh) {
      for (int64_t c = 0; c < p.c; ++c)
        to[c * step] =
            static_cast<scalar_t>(momentum * factor * fresh[c] + (1 - momentum) * static_cast<double>(to[c * step]));
    };
    if (batch.scalar_type() == at::kDouble)
      mix(batch.const_data_ptr<double>());
    else
      mix(batch.const_data_ptr<float>());
  });
}

std::tuple<Tensor, Tensor> run_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                     const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                     double momentum, double eps) {
  const Problem p = problem_of(x, Pass::fprop, true);
  Operands o;
  o.x = dense(p, x), o.eps = eps;
  o.w = channels("weight", p, x, weight), o.bias = channels("bias", p, x, bias);
  const Tensor stats = o.stats = at::empty({2, p.c}, x.options().dtype(arithmetic_of(x)));
  Tensor y = shaped_as(x, execute(p, std::move(o)));
  const double count = static_cast<double>(p.n * p.in_pixels());
  if (running_mean && running_mean->defined()) update("running_mean", p, *running_mean, stats[0], momentum, 1);
  if (running_var && running_var->defined())
    update("running_var", p, *running_var, stats[1], momentum, count / (count - 1));
  return {std::move(y), stats};
}

Operands gradient_operands(const Problem& p, const Tensor& dy, const Tensor& x, const Tensor& mean,
                           const Tensor& variance, double eps) {
  check_gradient(dy, x);
  Operands o;
  o.y = dense(p, dy), o.x = dense(p, x), o.eps = eps;
  o.mean = channels("mean", p, x, mean), o.variance = channels("variance", p, x, variance);
  return o;
}

std::tuple<Tensor, Tensor> run_dgrad(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                                     const Tensor& mean, const Tensor& variance, bool training, double eps) {
  const Problem p = problem_of(x, Pass::dgrad, training);
  Operands o = gradient_operands(p, dy, x, mean, variance, eps);
  o.w = channels("weight", p, x, weight);
  const Tensor parameters = o.stats = at::empty({2, p.c}, o.mean.options());
  return {shaped_as(x, execute(p, std::move(o))), parameters};
}

Tensor run_wgrad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance, bool training,
                 double eps) {
  const Problem p = problem_of(x, Pass::wgrad, training);
  return execute(p, gradient_operands(p, dy, x, mean, variance, eps));
}

}  // namespace

Tensor call_inference(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& mean, const Tensor& variance, double eps) {
  static const auto op = handle<Inference>("fastconv::batch_norm_inference");
  return op.call(x, weight, bias, mean, variance, eps);
}
std::tuple<Tensor, Tensor> call_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                      double momentum, double eps) {
  static const auto op = handle<Train>("fastconv::batch_norm_train");
  return op.call(x, weight, bias, running_mean, running_var, momentum, eps);
}
std::tuple<Tensor, Tensor> call_dgrad(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                                      const Tensor& mean, const Tensor& variance, bool training, double eps) {
  static const auto op = handle<Dgrad>("fastconv::batch_norm_dgrad");
  return op.call(dy, x, weight, mean, variance, training, eps);
}
Tensor call_wgrad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance, bool training,
                  double eps) {
  static const auto op = handle<Wgrad>("fastconv::batch_norm_wgrad");
  return op.call(dy, x, mean, variance, training, eps);
}

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.norm");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "batch_norm_inference(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor running_var, "
      "float eps) -> Tensor",
      tags);
  m.def(
      "batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "float momentum, float eps) -> (Tensor, Tensor)",
      tags);
  m.def(
      "batch_norm_dgrad(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor variance, bool training, float eps) "
      "-> (Tensor, Tensor)",
      tags);
  m.def("batch_norm_wgrad(Tensor dy, Tensor x, Tensor mean, Tensor variance, bool training, float eps) -> Tensor",
        tags);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("batch_norm_inference", &run_inference);
  m.impl("batch_norm_train", &run_train);
  m.impl("batch_norm_dgrad", &run_dgrad);
  m.impl("batch_norm_wgrad", &run_wgrad);
}

}  // namespace fastconv::norm
