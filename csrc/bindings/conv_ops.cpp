// The three passes as torch operators, and conv2d_act. They are closed under differentiation, so every order of
// derivative is again one of these calls:
//
//   y  = fprop(x, w)    dx: dgrad(g, w)    dw: wgrad(g, x)
//   dx = dgrad(dy, w)   ddy: fprop(g, w)   dw: wgrad(dy, g)
//   dw = wgrad(dy, x)   ddy: fprop(x, g)   dx: dgrad(dy, g)
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/autograd.h>
#include <torch/library.h>

#include "conv_problem.h"
#include "dispatch.h"

namespace fastconv {

namespace {

using at::IntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

using Fprop = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef,
                     int64_t);
using Act = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, IntArrayRef, IntArrayRef,
                   IntArrayRef, int64_t, c10::string_view, double);
using Dgrad = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, int64_t);
using Wgrad = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                     bool);

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
Tensor call_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const ConvGeometry& g) {
  static const auto op = handle<Fprop>("fastconv::conv2d");
  return op.call(x, w, bias, g.stride, g.padding, g.dilation, g.groups);
}
Tensor call_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                const ConvGeometry& g, c10::string_view activation, double alpha) {
  static const auto op = handle<Act>("fastconv::conv2d_act");
  return op.call(x, w, bias, residual, g.stride, g.padding, g.dilation, g.groups, activation, alpha);
}
Tensor call_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                  const ConvGeometry& g) {
  static const auto op = handle<Dgrad>("fastconv::conv2d_dgrad");
  return op.call(dy, w, bias, input_size, g.stride, g.padding, g.dilation, g.groups);
}
Tensor call_wgrad(const Tensor& dy, const Tensor& x, const Tensor& like_w, const ConvGeometry& g) {
  static const auto op = handle<Wgrad>("fastconv::conv2d_wgrad");
  const bool channels_last = like_w.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  return op.call(dy, x, like_w.sym_sizes().slice(2), g.stride, g.padding, g.dilation, g.groups, channels_last);
}

// --- running
// ----------------------------------------------------------------------------------------------------------

Tensor dense(const Tensor& tensor, Layout layout) { return tensor.contiguous(format_of(layout)); }
Tensor value_or_undefined(const OptionalTensor& tensor) { return tensor ? tensor->contiguous() : Tensor(); }

Tensor run_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
               IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
               c10::string_view activation, double alpha) {
  Problem p = fprop_problem(x, w, bias, residual, {stride, padding, dilation, groups});
  const auto found = Activation_from({activation.data(), activation.size()});
  TORCH_CHECK(found, "There is no activation named '", activation, "'.");
  p.epilogue.activation = *found;
  if (*found == Activation::leaky_relu) p.epilogue.alpha = alpha;
  Operands o;
  o.x = dense(x, p.layout), o.w = w, o.bias = value_or_undefined(bias);
  if (p.epilogue.residual) o.residual = dense(*residual, p.layout);
  return execute(p, std::move(o));
}

Tensor run_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, int64_t groups) {
  return run_act(x, w, bias, {}, stride, padding, dilation, groups, "none", 0);
}

Tensor run_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, IntArrayRef input_size,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const Problem p = dgrad_problem(dy, w, bias, input_size, {stride, padding, dilation, groups});
  Operands o;
  o.y = dense(dy, p.layout), o.w = w, o.bias = value_or_undefined(bias);
  return execute(p, std::move(o));
}

Tensor run_wgrad(const Tensor& dy, const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, int64_t groups, bool channels_last) {
  const Problem p = wgrad_problem(dy, x, kernel_size, {stride, padding, dilation, groups});
  const int64_t c = p.channels_per_group(), r = p.h.window, s = p.w.window;
  const std::array<int64_t, 4> sizes{p.k, c, r, s};
  const std::array<int64_t, 4> strides =
      channels_last ? std::array<int64_t, 4>{r * s * c, 1, s * c, c} : std::array<int64_t, 4>{c * r * s, r * s, s, 1};
  Operands o;
  o.y = dense(dy, p.layout), o.x = dense(x, p.layout);
  o.w_sizes = sizes, o.w_strides = strides;
  Tensor dw = execute(p, std::move(o));
  return p.n * p.y_elements() == 0 ? dw.zero_() : dw;
}

// --- differentiating
// --------------------------------------------------------------------------------------------------

void save_geometry(AutogradContext* ctx, const ConvGeometry& g) {
  ctx->saved_data["stride"] = g.stride.vec();
  ctx->saved_data["padding"] = g.padding.vec();
  ctx->saved_data["dilation"] = g.dilation.vec();
  ctx->saved_data["groups"] = g.groups;
}

struct SavedGeometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  explicit SavedGeometry(AutogradContext* ctx)
      : stride(ctx->saved_data["stride"].toIntVector()),
        padding(ctx->saved_data["padding"].toIntVector()),
        dilation(ctx->saved_data["dilation"].toIntVector()),
        groups(ctx->saved_data["groups"].toInt()) {}
  operator ConvGeometry() const { return {stride, padding, dilation, groups}; }
};

Tensor bias_gradient(const Tensor& g) { return g.sum(IntArrayRef{0, 2, 3}); }
OptionalTensor given(const OptionalTensor& t) { return t && t->defined() ? t : OptionalTensor(); }

// Autograd numbers only the tensors it was given: an absent bias takes no number.
constexpr size_t bias_edge = 2;
size_t residual_edge(AutogradContext* ctx) { return ctx->saved_data["bias"].toBool() ? 3 : 2; }
bool wants_bias(AutogradContext* ctx) { return ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(bias_edge); }

struct FpropFunction : torch::autograd::Function<FpropFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
    const ConvGeometry g{stride, padding, dilation, groups};
    ctx->save_for_backward({x, w});
    ctx->saved_data["bias"] = bias.has_value();
    save_geometry(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_fprop(x, w, bias, g);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const SavedGeometry g(ctx);
    variable_list out(7);
    if (!grads[0].defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = call_dgrad(grads[0], saved[1], {}, saved[0].sym_sizes().slice(2), g);
    if (ctx->needs_input_grad(1)) out[1] = call_wgrad(grads[0], saved[0], saved[1], g);
    if (wants_bias(ctx)) out[2] = bias_gradient(grads[0]);
    return out;
  }
};

struct DgradFunction : torch::autograd::Function<DgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& w, const OptionalTensor& bias,
                        SymIntArrayRef input_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                        int64_t groups) {
    const ConvGeometry g{stride, padding, dilation, groups};
    ctx->save_for_backward({dy, w});
    ctx->saved_data["bias"] = bias.has_value();
    save_geometry(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_dgrad(dy, w, bias, input_size, g);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const SavedGeometry g(ctx);
    variable_list out(8);
    if (!grads[0].defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = call_fprop(grads[0], saved[1], {}, g);
    if (ctx->needs_input_grad(1)) out[1] = call_wgrad(saved[0], grads[0], saved[1], g);
    if (wants_bias(ctx)) out[2] = bias_gradient(grads[0]);
    return out;
  }
};

struct WgradFunction : torch::autograd::Function<WgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size,
                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                        bool channels_last) {
    static const auto op = handle<Wgrad>("fastconv::conv2d_wgrad");
    ctx->save_for_backward({dy, x});
    save_geometry(ctx, {stride, padding, dilation, groups});
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(dy, x, kernel_size, stride, padding, dilation, groups, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const SavedGeometry g(ctx);
    variable_list out(8);
    if (!grads[0].defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = call_fprop(saved[1], grads[0], {}, g);
    if (ctx->needs_input_grad(1)) out[1] = call_dgrad(saved[0], grads[0], {}, saved[1].sym_sizes().slice(2), g);
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

Tensor activation_forward(const Tensor& x, c10::string_view activation, double alpha) {
  if (activation == "silu") return at::silu(x);
  if (activation == "hardswish") return at::hardswish(x);
  if (activation == "gelu") return at::gelu(x);
  return at::leaky_relu(x, alpha);
}

struct ActFunction : torch::autograd::Function<ActFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                        int64_t groups, std::string activation, double alpha) {
    const ConvGeometry g{stride, padding, dilation, groups};
    save_geometry(ctx, g);
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["alpha"] = alpha;
    ctx->saved_data["bias"] = bias.has_value();
    ctx->saved_data["residual"] = residual.has_value();
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = call_act(x, w, bias, residual, g, activation, alpha);
    ctx->save_for_backward({x, w, y});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const SavedGeometry g(ctx);
    variable_list out(10);
    if (!grads[0].defined()) return out;
    const Tensor d = activation_backward(grads[0], saved[2], ctx->saved_data["activation"].toStringRef(),
                                         ctx->saved_data["alpha"].toDouble());
    if (ctx->needs_input_grad(0)) out[0] = call_dgrad(d, saved[1], {}, saved[0].sym_sizes().slice(2), g);
    if (ctx->needs_input_grad(1)) out[1] = call_wgrad(d, saved[0], saved[1], g);
    if (wants_bias(ctx)) out[2] = bias_gradient(d);
    if (ctx->saved_data["residual"].toBool() && ctx->needs_input_grad(residual_edge(ctx))) out[3] = d;
    return out;
  }
};

// torch's own operator, with torch's own derivative: for tensors none of our kernels knows (int, complex, sparse).
bool foreign(const Tensor& t) {
  return t.layout() != at::kStrided || !at::isFloatingType(t.scalar_type()) || dtype_of(t) == Dtype::other;
}

Tensor foreign_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const ConvGeometry& g) {
  const auto& p = g.padding;
  const bool symmetric = p[0] == p[1] && p[2] == p[3];
  const Tensor padded = symmetric ? x : at::constant_pad_nd(x, {p[2], p[3], p[0], p[1]});
  const std::array<int64_t, 2> padding{symmetric ? p[0] : 0, symmetric ? p[2] : 0};
  return at::conv2d(padded, w, bias, g.stride, padding, g.dilation, g.groups);
}

bool differentiates(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t->defined() && ((at::GradMode::is_enabled() && t->requires_grad()) || t->_fw_grad(0).defined())) return true;
  return false;
}
const Tensor& or_undefined(const OptionalTensor& t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

Tensor autograd_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_fprop(x, w, bias, g);
  if (differentiates({&x, &w, &or_undefined(bias)}))
    return FpropFunction::apply(x, w, given(bias), stride, padding, dilation, groups);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_fprop(x, w, bias, g);
}

Tensor autograd_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    c10::string_view activation, double alpha) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (differentiates({&x, &w, &or_undefined(bias), &or_undefined(residual)})) {
    if (differentiable_from_value(activation, alpha))
      return ActFunction::apply(x, w, given(bias), given(residual), stride, padding, dilation, groups,
                                std::string(activation), alpha);
    return activation_forward(call_act(x, w, bias, residual, g, "none", 0), activation, alpha);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_act(x, w, bias, residual, g, activation, alpha);
}

Tensor autograd_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  if (differentiates({&dy, &w, &or_undefined(bias)}))
    return DgradFunction::apply(dy, w, given(bias), input_size, stride, padding, dilation, groups);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_dgrad(dy, w, bias, input_size, {stride, padding, dilation, groups});
}

Tensor autograd_wgrad(const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool channels_last) {
  if (differentiates({&dy, &x}))
    return WgradFunction::apply(dy, x, kernel_size, stride, padding, dilation, groups, channels_last);
  static const auto op = handle<Wgrad>("fastconv::conv2d_wgrad");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(dy, x, kernel_size, stride, padding, dilation, groups, channels_last);
}

// --- autocast: convolutions run in the lower precision, as torch's do
// -------------------------------------------------

template <c10::DispatchKey key, c10::DeviceType device>
struct Autocast {
  static Tensor cast(const Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  }
  static OptionalTensor cast(const OptionalTensor& t) { return t ? OptionalTensor(cast(*t)) : t; }

  static Tensor fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_fprop(cast(x), cast(w), cast(bias), {stride, padding, dilation, groups});
  }
  static Tensor act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    c10::string_view activation, double alpha) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_act(cast(x), cast(w), cast(bias), cast(residual), {stride, padding, dilation, groups}, activation,
                    alpha);
  }
  static Tensor dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_dgrad(cast(dy), cast(w), cast(bias), input_size, {stride, padding, dilation, groups});
  }
  static void register_all(torch::Library& m) {
    m.impl("conv2d", &fprop);
    m.impl("conv2d_act", &act);
    m.impl("conv2d_dgrad", &dgrad);
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.conv2d");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, int groups) "
      "-> Tensor",
      tags);
  m.def(
      "conv2d_act(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups, str activation, float alpha) -> Tensor",
      tags);
  m.def(
      "conv2d_dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[2] input_size, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups) -> Tensor",
      tags);
  m.def(
      "conv2d_wgrad(Tensor dy, Tensor x, SymInt[2] kernel_size, int[2] stride, int[4] padding, int[2] dilation, "
      "int groups, bool channels_last) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("conv2d", &run_fprop);
  m.impl("conv2d_act", &run_act);
  m.impl("conv2d_dgrad", &run_dgrad);
  m.impl("conv2d_wgrad", &run_wgrad);
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("conv2d", &autograd_fprop);
  m.impl("conv2d_act", &autograd_act);
  m.impl("conv2d_dgrad", &autograd_dgrad);
  m.impl("conv2d_wgrad", &autograd_wgrad);
}

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  Autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>::register_all(m);
}
TORCH_LIBRARY_IMPL(fastconv, AutocastCUDA, m) {
  Autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>::register_all(m);
}

}  // namespace fastconv
