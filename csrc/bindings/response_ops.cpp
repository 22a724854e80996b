// Local response normalisation as torch operators: schemas, autocast, derivatives and the run from tensors to kernels.
// The first order runs on our kernels; the gradient operator is differentiated as a composite of torch's operators, and
// so is everything in forward mode. Autograd keeps the input alone: the kernel of the gradient sums the windows anew.
#include "response_ops.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "autograd_node.h"
#include "norm_common.h"

namespace fastconv::norm {

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Fprop = Tensor(const Tensor&, int64_t, double, double, double);
using Dgrad = Tensor(const Tensor&, const Tensor&, int64_t, double, double, double);

// --- from tensors to the kernel ------------------------------------------------------------------------------------

Problem problem_of(const Tensor& x, Pass pass, int64_t size) {
  Problem p;
  p.op = Op::lrn2d, p.pass = pass, p.size = size;
  return norm_problem("local_response_norm", std::move(p), x);
}

// torch's result is a quotient of x and a contiguous tensor, and its strides follow from theirs. Where they are neither
// of our two layouts, torch says what they are.
Tensor laid_as_torch(const Tensor& x, Tensor y) {
  const bool all = x.dim() == 4 && x.size(1) > 1 && x.size(2) > 1 && x.size(3) > 1;
  if (x.is_contiguous() || (all && x.strides() == y.strides())) return y;
  const auto meta = y.options().device(at::kMeta);
  const Tensor like = at::div(at::empty_strided(x.sizes(), x.strides(), meta), at::empty(x.sizes(), meta));
  if (like.strides() == y.strides()) return y;
  return at::empty_strided(x.sizes(), like.strides(), y.options()).copy_(y);
}

Tensor run_fprop(const Tensor& x, int64_t size, double alpha, double beta, double k) {
  const Problem p = problem_of(x, Pass::fprop, size);
  Operands o;
  o.x = dense(p, x), o.response = {alpha, beta, k};
  return laid_as_torch(x, shaped_as(x, execute(p, std::move(o))));
}

Tensor run_dgrad(const Tensor& dy, const Tensor& x, int64_t size, double alpha, double beta, double k) {
  const Problem p = problem_of(x, Pass::dgrad, size);
  check_gradient(dy, x);
  Operands o;
  o.y = dense(p, dy), o.x = dense(p, x), o.response = {alpha, beta, k};
  return shaped_as(x, execute(p, std::move(o)));
}

// --- the definition, in torch's operators ---------------------------------------------------------------------------

// The mean of `size` channels, `before` of them in front of each; what is outside counts as zero.
Tensor mean_of_channels(const Tensor& t, int64_t size, int64_t before) {
  const Tensor four = t.dim() == 4 ? t : t.unsqueeze(-1);
  const Tensor padded = at::constant_pad_nd(four.unsqueeze(1), {0, 0, 0, 0, before, size - 1 - before});
  const Tensor mean = at::avg_pool3d(padded, {size, 1, 1}, /*stride=*/1).squeeze(1);
  return t.dim() == 4 ? mean : mean.squeeze(-1);
}

Tensor wide(const Tensor& t) { return t.to(at::toOpMathType(t.scalar_type())); }

Tensor base(const Tensor& x, int64_t size, const Response& r) {
  return mean_of_channels(x * x, size, size / 2) * r.alpha + r.k;
}

Tensor composite(const Tensor& x, int64_t size, const Response& r) {
  const Tensor t = wide(x);
  return (t / base(t, size, r).pow(r.beta)).to(x.scalar_type());
}

Tensor composite_dgrad(const Tensor& dy, const Tensor& x, int64_t size, const Response& r) {
  const Tensor t = wide(x), g = wide(dy), s = base(t, size, r);
  const Tensor far = mean_of_channels(g * t * s.pow(-r.beta - 1), size, (size - 1) / 2);
  return (g * s.pow(-r.beta) - 2 * r.alpha * r.beta * t * far).to(x.scalar_type());
}

// --- reverse mode ----------------------------------------------------------------------------------------------------

class ResponseNode final : public Node {
 public:
  std::string name() const override { return "FastconvLocalResponseNormBackward"; }

  void save(const Tensor& x, int64_t size, const Response& r) {
    x_ = SavedVariable(x, /*is_output=*/false), size_ = size, response_ = r;
  }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    x_.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    variable_list out(1);
    const std::lock_guard lock(mutex_);
    if (grads[0].defined()) out[0] = call_response_dgrad(grads[0], x_.unpack(), size_, response_);
    return out;
  }

 private:
  SavedVariable x_;
  int64_t size_ = 1;
  Response response_;
};

Tensor autograd_fprop(const Tensor& x, int64_t size, double alpha, double beta, double k) {
  const Response r{alpha, beta, k};
  if (any_tangent(x)) return composite(x, size, r);
  NodePointer<ResponseNode> node;
  if (any_gradient(x)) {
    node = make_node<ResponseNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(x));
    node->save(x, size, r);
  }
  Tensor y = [&] {
    at::AutoDispatchBelowAutograd guard;
    return call_response(x, size, r);
  }();
  if (node) torch::autograd::set_history(y, node);
  return y;
}

Tensor autograd_dgrad(const Tensor& dy, const Tensor& x, int64_t size, double alpha, double beta, double k) {
  const Response r{alpha, beta, k};
  if (any_gradient(dy, x) || any_tangent(dy, x)) return composite_dgrad(dy, x, size, r);
  at::AutoDispatchBelowAutograd guard;
  return call_response_dgrad(dy, x, size, r);
}

// --- autocast --------------------------------------------------------------------------------------------------------

// torch's autocast takes avg_pool3d in float32, the mean of a map's channels, and so gives float32; a sequence's mean
// is an avg_pool2d, which it leaves alone.
Tensor autocast_fprop(const Tensor& x, int64_t size, double alpha, double beta, double k) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  const Tensor taken = x.dim() > 3 ? at::autocast::cached_cast(at::kFloat, x, c10::DeviceType::CPU) : x;
  return call_response(taken, size, {alpha, beta, k});
}

}  // namespace

Tensor call_response(const Tensor& x, int64_t size, const Response& r) {
  static const auto op = handle<Fprop>("fastconv::local_response_norm");
  return op.call(x, size, r.alpha, r.beta, r.k);
}
Tensor call_response_dgrad(const Tensor& dy, const Tensor& x, int64_t size, const Response& r) {
  static const auto op = handle<Dgrad>("fastconv::local_response_norm_dgrad");
  return op.call(dy, x, size, r.alpha, r.beta, r.k);
}

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.norm");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("local_response_norm(Tensor x, int size, float alpha, float beta, float k) -> Tensor", tags);
  m.def("local_response_norm_dgrad(Tensor dy, Tensor x, int size, float alpha, float beta, float k) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("local_response_norm", &run_fprop);
  m.impl("local_response_norm_dgrad", &run_dgrad);
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("local_response_norm", &autograd_fprop);
  m.impl("local_response_norm_dgrad", &autograd_dgrad);
}

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) { m.impl("local_response_norm", &autocast_fprop); }

}  // namespace fastconv::norm
