// Derivatives of the convolution operators. The three passes are closed under differentiation, so every order of
// derivative is again one of these calls:
//
//   y  = fprop(x, w)    dx: dgrad(g, w)    dw: wgrad(g, x)
//   dx = dgrad(dy, w)   ddy: fprop(g, w)   dw: wgrad(dy, g)
//   dw = wgrad(dy, x)   ddy: fprop(x, g)   dx: dgrad(dy, g)
//
// Each pass is linear in either operand, so a forward-mode tangent is the sum of the pass over the operands' tangents.
//
// The kernels of the Autograd key are written as torch's own generated ones are: a Node when a gradient is wanted, the
// value computed below autograd, the tangent set on the result. torch::autograd::Function would be shorter, but it
// costs more than a small convolution may and refuses functorch's transforms.
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "autograd_node.h"
#include "conv_ops.h"

namespace fastconv {

namespace {

using at::IntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalBool = std::optional<bool>;

bool defined(const Tensor& t) { return t.defined(); }
bool defined(const OptionalTensor& t) { return t && t->defined(); }
Tensor value(const Tensor& t) { return t; }
Tensor value(const OptionalTensor& t) { return t.value_or(Tensor()); }

// --- reverse mode ----------------------------------------------------------------------------------------------------

// What backward needs: the operands, the geometry, and the layout of the gradients.
class ConvNode : public Node {
 public:
  void save(const Tensor& a, const Tensor& b, const ConvGeometry& g) {
    a_ = SavedVariable(a, /*is_output=*/false), b_ = SavedVariable(b, false);
    std::copy_n(g.stride.begin(), 2, stride_), std::copy_n(g.padding.begin(), 4, padding_);
    std::copy_n(g.dilation.begin(), 2, dilation_);
    groups_ = g.groups;
    channels_last_ = result_layout(a, b) == Layout::nhwc;
  }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    a_.reset_data(), b_.reset_data();
  }
  // Gradients keep the precision of the forward pass, whatever autocast says when backward runs.
  variable_list apply(variable_list&& grads) final {
    variable_list out(num_outputs());
    if (!grads[0].defined()) return out;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const std::lock_guard lock(mutex_);
    differentiate(grads[0], a_.unpack(), b_.unpack(), out);
    return out;
  }

 protected:
  virtual void differentiate(const Tensor& grad, const Tensor& a, const Tensor& b, variable_list& out) = 0;
  bool wanted(size_t output) const { return task_should_compute_output(output); }
  ConvGeometry geometry() const {
    return {IntArrayRef(stride_, 2), IntArrayRef(padding_, 4), IntArrayRef(dilation_, 2), groups_};
  }
  bool channels_last_ = false;

 private:
  SavedVariable a_, b_;
  int64_t stride_[2] = {}, padding_[4] = {}, dilation_[2] = {}, groups_ = 1;
};

Tensor bias_gradient(const Tensor& g) { return g.sum(IntArrayRef{0, 2, 3}); }

struct FpropNode final : ConvNode {
  std::string name() const override { return "FastconvConv2dBackward"; }
  void differentiate(const Tensor& dy, const Tensor& x, const Tensor& w, variable_list& out) override {
    if (wanted(0)) out[0] = call_dgrad(dy, w, {}, x.sym_sizes().slice(2), geometry(), channels_last_);
    if (wanted(1)) out[1] = call_wgrad(dy, x, w.sym_sizes().slice(2), geometry(), channels_last_);
    if (wanted(2)) out[2] = bias_gradient(dy);
  }
};

struct DgradNode final : ConvNode {
  std::string name() const override { return "FastconvConv2dDgradBackward"; }
  void differentiate(const Tensor& ddx, const Tensor& dy, const Tensor& w, variable_list& out) override {
    if (wanted(0)) out[0] = call_fprop(ddx, w, {}, geometry(), channels_last_);
    if (wanted(1)) out[1] = call_wgrad(dy, ddx, w.sym_sizes().slice(2), geometry(), channels_last_);
    if (wanted(2)) out[2] = bias_gradient(ddx);
  }
};

struct WgradNode final : ConvNode {
  std::string name() const override { return "FastconvConv2dWgradBackward"; }
  void differentiate(const Tensor& ddw, const Tensor& dy, const Tensor& x, variable_list& out) override {
    if (wanted(0)) out[0] = call_fprop(x, ddw, {}, geometry());
    if (wanted(1)) out[1] = call_dgrad(dy, ddw, {}, x.sym_sizes().slice(2), geometry());
  }
};

template <class... Tensors>
bool any_gradient(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && ((defined(tensors) && value(tensors).requires_grad()) || ...);
}

// The node of a call, or null when no gradient is wanted. Its outputs are the tensors in their order.
template <class N, class... Tensors>
NodePointer<N> node_for(const ConvGeometry& g, const Tensor& a, const Tensor& b, const Tensors&... others) {
  if (!any_gradient(a, b, others...)) return {};
  auto node = make_node<N>();
  node->set_next_edges(torch::autograd::collect_next_edges(a, b, value(others)...));
  node->save(a, b, g);
  return node;
}

template <class Call>
Tensor below_autograd(const NodePointer<Node>& node, const Call& call) {
  Tensor out = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  }();
  if (node) torch::autograd::set_history(out, node);
  return out;
}

// --- forward mode ----------------------------------------------------------------------------------------------------

constexpr uint64_t level = 0;  // torch has one level of forward-mode differentiation

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return ((defined(tensors) && value(tensors)._fw_grad(level).defined()) || ...);
}
Tensor primal(const Tensor& t) { return any_tangent(t) ? t._fw_primal(level) : t; }

// Gives y = pass(a, b) + bias the tangent pass(da, b) + pass(a, db) + dbias, where each term exists.
template <class Pass>
void set_tangent(const Tensor& y, const Tensor& a, const Tensor& b, const OptionalTensor& bias, const Pass& pass) {
  Tensor tangent;
  const auto add = [&](const Tensor& term) { tangent = tangent.defined() ? tangent + term : term; };
  if (any_tangent(a)) add(pass(a._fw_grad(level), primal(b)));
  if (any_tangent(b)) add(pass(primal(a), b._fw_grad(level)));
  if (any_tangent(bias)) add(bias->_fw_grad(level).view({-1, 1, 1}).expand_as(y));
  y._set_fw_grad(tangent, level, /*is_inplace_op=*/false);
}

// --- activations -----------------------------------------------------------------------------------------------------

// Activations whose derivative is a function of their value; the others run unfused when a gradient is wanted.
bool differentiable_from_value(c10::string_view activation, double alpha) {
  return activation == "none" || activation == "relu" || activation == "relu6" || activation == "sigmoid" ||
         (activation == "leaky_relu" && alpha >= 0);
}

Tensor activation_backward(const Tensor& g, const Tensor& y, c10::string_view activation, double alpha) {
  if (activation == "relu") return at::threshold_backward(g, y, 0);
  if (activation == "relu6") return at::hardtanh_backward(g, y, 0, 6);
  if (activation == "sigmoid") return at::sigmoid_backward(g, y);
  if (activation == "leaky_relu") return at::leaky_relu_backward(g, y, alpha, /*self_is_result=*/true);
  return g;
}

struct ActNode final : ConvNode {
  SavedVariable result;
  std::string activation;
  double alpha = 0;

  std::string name() const override { return "FastconvConv2dActBackward"; }
  void release_variables() override {
    ConvNode::release_variables();
    result.reset_data();
  }
  void differentiate(const Tensor& grad, const Tensor& x, const Tensor& w, variable_list& out) override {
    const Tensor dy = activation_backward(grad, result.unpack(getptr()), activation, alpha);
    if (wanted(0)) out[0] = call_dgrad(dy, w, {}, x.sym_sizes().slice(2), geometry(), channels_last_);
    if (wanted(1)) out[1] = call_wgrad(dy, x, w.sym_sizes().slice(2), geometry(), channels_last_);
    if (wanted(2)) out[2] = bias_gradient(dy);
    if (wanted(3)) out[3] = dy;
  }
};

// --- the operators ---------------------------------------------------------------------------------------------------

Tensor autograd_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_fprop(x, w, bias, g);
  const auto pass = [&](const Tensor& a, const Tensor& b) { return call_fprop(a, b, {}, g, channels_last); };
  const Tensor y =
      below_autograd(node_for<FpropNode>(g, x, w, bias), [&] { return call_fprop(x, w, bias, g, channels_last); });
  if (any_tangent(x, w, bias)) set_tangent(y, x, w, bias, pass);
  return y;
}

Tensor autograd_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    c10::string_view activation, double alpha) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x) || any_tangent(x, w, bias, residual))
    return unfused_tail(call_fprop(x, w, bias, g), residual, activation, alpha);
  if (any_gradient(x, w, bias, residual) && !differentiable_from_value(activation, alpha))
    return unfused_tail(call_act(x, w, bias, residual, g, "none", 0), {}, activation, alpha);
  const auto node = node_for<ActNode>(g, x, w, bias, residual);
  const Tensor y = below_autograd(node, [&] { return call_act(x, w, bias, residual, g, activation, alpha); });
  if (node) node->result = SavedVariable(y, /*is_output=*/true), node->activation = activation, node->alpha = alpha;
  return y;
}

Tensor autograd_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                      OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(dy)) return foreign_dgrad(dy, w, bias, C10_AS_INTARRAYREF_SLOW(input_size), g);
  const auto pass = [&](const Tensor& a, const Tensor& b) {
    return call_dgrad(a, b, {}, input_size, g, channels_last);
  };
  const Tensor dx = below_autograd(node_for<DgradNode>(g, dy, w, bias),
                                   [&] { return call_dgrad(dy, w, bias, input_size, g, channels_last); });
  if (any_tangent(dy, w, bias)) set_tangent(dx, dy, w, bias, pass);
  return dx;
}

Tensor autograd_wgrad(const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_wgrad(dy, x, C10_AS_INTARRAYREF_SLOW(kernel_size), g);
  const auto pass = [&](const Tensor& a, const Tensor& b) { return call_wgrad(a, b, kernel_size, g, channels_last); };
  const Tensor dw = below_autograd(node_for<WgradNode>(g, dy, x), [&] { return pass(dy, x); });
  if (any_tangent(dy, x)) set_tangent(dw, dy, x, {}, pass);
  return dw;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("conv2d", &autograd_fprop);
  m.impl("conv2d_act", &autograd_act);
  m.impl("conv2d_dgrad", &autograd_dgrad);
  m.impl("conv2d_wgrad", &autograd_wgrad);
}

}  // namespace fastconv
