// Derivatives of the convolution operators. The three passes are closed under differentiation, so every order of
// derivative is again one of these calls:
//
//   y  = fprop(x, w)    dx: dgrad(g, w)    dw: wgrad(g, x)
//   dx = dgrad(dy, w)   ddy: fprop(g, w)   dw: wgrad(dy, g)
//   dw = wgrad(dy, x)   ddy: fprop(x, g)   dx: dgrad(dy, g)
//
// Each pass is linear in either operand, so a forward-mode tangent is the sum of the pass over the operands' tangents.
#include <torch/autograd.h>
#include <torch/library.h>

#include "conv_ops.h"

namespace fastconv {

namespace {

using at::IntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalBool = std::optional<bool>;

// --- what backward needs besides tensors: one list, because every entry of saved_data costs an allocation --------------

enum Flag : int64_t { has_bias = 1, has_residual = 2, channels_last_result = 4 };
int64_t flag_if(bool set, Flag flag) { return set ? static_cast<int64_t>(flag) : 0; }

class Saved {
 public:
  static void put(AutogradContext* ctx, const ConvGeometry& g, int64_t flags) {
    ctx->saved_data["geometry"] = std::vector<int64_t>{g.stride[0],   g.stride[1],   g.padding[0],  g.padding[1],
                                                       g.padding[2],  g.padding[3],  g.dilation[0], g.dilation[1],
                                                       g.groups,      flags};
  }
  explicit Saved(AutogradContext* ctx) : values_(ctx->saved_data["geometry"].toIntVector()) {}
  ConvGeometry geometry() const {
    const IntArrayRef all(values_);
    return {all.slice(0, 2), all.slice(2, 4), all.slice(6, 2), all[8]};
  }
  bool has(Flag flag) const { return values_[9] & flag; }

 private:
  std::vector<int64_t> values_;
};

int64_t layout_flag(const Tensor& x, const Tensor& w) {
  return flag_if(result_layout(x, w) == Layout::nhwc, channels_last_result);
}

OptionalTensor given(const OptionalTensor& t) { return t && t->defined() ? t : OptionalTensor(); }
Tensor bias_gradient(const Tensor& g) { return g.sum(IntArrayRef{0, 2, 3}); }

// Autograd numbers only the tensors it was given: an absent bias takes no number.
constexpr size_t bias_edge = 2;
bool wants_bias(AutogradContext* ctx, const Saved& saved) {
  return saved.has(has_bias) && ctx->needs_input_grad(bias_edge);
}

// Gradients keep the precision of the forward pass, whatever autocast says when backward runs.
struct BackwardGuard {
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

struct FpropFunction : torch::autograd::Function<FpropFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        const ConvGeometry& g, OptionalBool channels_last) {
    ctx->save_for_backward({x, w});
    Saved::put(ctx, g, flag_if(bias.has_value(), has_bias) | layout_flag(x, w));
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_fprop(x, w, bias, g, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const BackwardGuard guard;
    const auto tensors = ctx->get_saved_variables();
    const Saved saved(ctx);
    const Tensor &x = tensors[0], &w = tensors[1], &dy = grads[0];
    if (ctx->needs_input_grad(0))
      out[0] = call_dgrad(dy, w, {}, x.sym_sizes().slice(2), saved.geometry(), saved.has(channels_last_result));
    if (ctx->needs_input_grad(1))
      out[1] = call_wgrad(dy, x, w.sym_sizes().slice(2), saved.geometry(), saved.has(channels_last_result));
    if (wants_bias(ctx, saved)) out[2] = bias_gradient(dy);
    return out;
  }
};

struct DgradFunction : torch::autograd::Function<DgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& w, const OptionalTensor& bias,
                        SymIntArrayRef input_size, const ConvGeometry& g, OptionalBool channels_last) {
    ctx->save_for_backward({dy, w});
    Saved::put(ctx, g, flag_if(bias.has_value(), has_bias) | layout_flag(dy, w));
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_dgrad(dy, w, bias, input_size, g, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(6);
    if (!grads[0].defined()) return out;
    const BackwardGuard guard;
    const auto tensors = ctx->get_saved_variables();
    const Saved saved(ctx);
    const Tensor &dy = tensors[0], &w = tensors[1], &ddx = grads[0];
    if (ctx->needs_input_grad(0)) out[0] = call_fprop(ddx, w, {}, saved.geometry(), saved.has(channels_last_result));
    if (ctx->needs_input_grad(1))
      out[1] = call_wgrad(dy, ddx, w.sym_sizes().slice(2), saved.geometry(), saved.has(channels_last_result));
    if (wants_bias(ctx, saved)) out[2] = bias_gradient(ddx);
    return out;
  }
};

struct WgradFunction : torch::autograd::Function<WgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size,
                        const ConvGeometry& g, bool channels_last) {
    ctx->save_for_backward({dy, x});
    Saved::put(ctx, g, 0);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_wgrad(dy, x, kernel_size, g, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const BackwardGuard guard;
    const auto tensors = ctx->get_saved_variables();
    const Saved saved(ctx);
    const Tensor &dy = tensors[0], &x = tensors[1], &ddw = grads[0];
    if (ctx->needs_input_grad(0)) out[0] = call_fprop(x, ddw, {}, saved.geometry());
    if (ctx->needs_input_grad(1)) out[1] = call_dgrad(dy, ddw, {}, x.sym_sizes().slice(2), saved.geometry());
    return out;
  }
};

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

struct ActFunction : torch::autograd::Function<ActFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        const OptionalTensor& residual, const ConvGeometry& g, std::string activation, double alpha) {
    Saved::put(ctx, g, flag_if(bias.has_value(), has_bias) | flag_if(residual.has_value(), has_residual) | layout_flag(x, w));
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["alpha"] = alpha;
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = call_act(x, w, bias, residual, g, activation, alpha);
    ctx->save_for_backward({x, w, y});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(7);
    if (!grads[0].defined()) return out;
    const BackwardGuard guard;
    const auto tensors = ctx->get_saved_variables();
    const Saved saved(ctx);
    const Tensor &x = tensors[0], &w = tensors[1];
    const Tensor dy = activation_backward(grads[0], tensors[2], ctx->saved_data["activation"].toStringRef(),
                                          ctx->saved_data["alpha"].toDouble());
    if (ctx->needs_input_grad(0))
      out[0] = call_dgrad(dy, w, {}, x.sym_sizes().slice(2), saved.geometry(), saved.has(channels_last_result));
    if (ctx->needs_input_grad(1))
      out[1] = call_wgrad(dy, x, w.sym_sizes().slice(2), saved.geometry(), saved.has(channels_last_result));
    if (wants_bias(ctx, saved)) out[2] = bias_gradient(dy);
    const size_t residual_edge = saved.has(has_bias) ? 3 : 2;
    if (saved.has(has_residual) && ctx->needs_input_grad(residual_edge)) out[3] = dy;
    return out;
  }
};

// --- forward mode ----------------------------------------------------------------------------------------------------

constexpr uint64_t level = 0;  // torch has one level of forward-mode differentiation

bool defined(const Tensor& t) { return t.defined(); }
bool defined(const OptionalTensor& t) { return t && t->defined(); }
const Tensor& value(const Tensor& t) { return t; }
const Tensor& value(const OptionalTensor& t) { return *t; }

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return ((defined(tensors) && value(tensors)._fw_grad(level).defined()) || ...);
}
template <class... Tensors>
bool any_gradient(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && ((defined(tensors) && value(tensors).requires_grad()) || ...);
}

Tensor primal(const Tensor& t) { return any_tangent(t) ? t._fw_primal(level) : t; }
OptionalTensor primal(const OptionalTensor& t) { return any_tangent(t) ? OptionalTensor(t->_fw_primal(level)) : t; }

// y with the tangent pass(dx, w) + pass(x, dw) + dbias, where each term exists. A tangent of zeros may come in as an
// undefined tensor or as one without storage; torch's operators take both.
template <class Pass>
Tensor bilinear(const Tensor& a, const Tensor& b, const OptionalTensor& bias, const Pass& pass) {
  const Tensor y = pass(primal(a), primal(b), primal(bias));
  Tensor tangent;
  const auto add = [&](const Tensor& term) { tangent = tangent.defined() ? tangent + term : term; };
  if (any_tangent(a)) add(pass(a._fw_grad(level), primal(b), {}));
  if (any_tangent(b)) add(pass(primal(a), b._fw_grad(level), {}));
  if (any_tangent(bias)) add(bias->_fw_grad(level).view({-1, 1, 1}).expand_as(y));
  return at::_make_dual(y, tangent, level);
}

// --- the operators ---------------------------------------------------------------------------------------------------

Tensor autograd_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_fprop(x, w, bias, g);
  if (any_tangent(x, w, bias))
    return bilinear(x, w, bias, [&](const Tensor& a, const Tensor& b, const OptionalTensor& c) {
      return call_fprop(a, b, c, g, channels_last);
    });
  if (any_gradient(x, w, bias)) return FpropFunction::apply(x, w, given(bias), g, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_fprop(x, w, bias, g, channels_last);
}

Tensor autograd_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    c10::string_view activation, double alpha) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x) || any_tangent(x, w, bias, residual))
    return unfused_tail(call_fprop(x, w, bias, g), residual, activation, alpha);
  if (any_gradient(x, w, bias, residual)) {
    if (differentiable_from_value(activation, alpha))
      return ActFunction::apply(x, w, given(bias), given(residual), g, std::string(activation), alpha);
    return unfused_tail(call_act(x, w, bias, residual, g, "none", 0), {}, activation, alpha);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_act(x, w, bias, residual, g, activation, alpha);
}

Tensor autograd_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                      OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(dy)) return foreign_dgrad(dy, w, bias, C10_AS_INTARRAYREF_SLOW(input_size), g);
  if (any_tangent(dy, w, bias))
    return bilinear(dy, w, bias, [&](const Tensor& a, const Tensor& b, const OptionalTensor& c) {
      return call_dgrad(a, b, c, input_size, g, channels_last);
    });
  if (any_gradient(dy, w, bias)) return DgradFunction::apply(dy, w, given(bias), input_size, g, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_dgrad(dy, w, bias, input_size, g, channels_last);
}

Tensor autograd_wgrad(const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_wgrad(dy, x, C10_AS_INTARRAYREF_SLOW(kernel_size), g);
  if (any_tangent(dy, x))
    return bilinear(dy, x, {}, [&](const Tensor& a, const Tensor& b, const OptionalTensor&) {
      return call_wgrad(a, b, kernel_size, g, channels_last);
    });
  if (any_gradient(dy, x)) return WgradFunction::apply(dy, x, kernel_size, g, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_wgrad(dy, x, kernel_size, g, channels_last);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("conv2d", &autograd_fprop);
  m.impl("conv2d_act", &autograd_act);
  m.impl("conv2d_dgrad", &autograd_dgrad);
  m.impl("conv2d_wgrad", &autograd_wgrad);
}

}  // namespace fastconv
