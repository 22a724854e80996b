// The three passes as torch operators, and conv2d_act: schemas, the run from tensors to kernels, autocast.
// Derivatives stand in conv_autograd.cpp.
#include "conv_ops.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "conv_problem.h"
#include "dispatch.h"

namespace fastconv {

using at::IntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using OptionalBool = std::optional<bool>;

namespace {

using Fprop = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef,
                     int64_t, OptionalBool);
using Act = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, IntArrayRef, IntArrayRef,
                   IntArrayRef, int64_t, c10::string_view, double);
using Dgrad = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, int64_t, OptionalBool);
using Wgrad = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                     bool);

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor dense(const Tensor& tensor, Layout layout) { return tensor.contiguous(format_of(layout)); }
Tensor dense_or_undefined(const OptionalTensor& tensor) { return tensor ? tensor->contiguous() : Tensor(); }

// --- from tensors to the kernel ------------------------------------------------------------------------------------

Tensor run_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, int64_t groups, OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_fprop(x, w, bias, g);
  Problem p = fprop_problem(x, w, bias, {}, g);
  if (channels_last) p.layout = *channels_last ? Layout::nhwc : Layout::nchw;
  Operands o;
  o.x = dense(x, p.layout), o.w = w, o.bias = dense_or_undefined(bias);
  return execute(p, std::move(o));
}

Tensor run_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
               IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
               c10::string_view activation, double alpha) {
  const ConvGeometry g{stride, padding, dilation, groups};
  const auto found = Activation_from({activation.data(), activation.size()});
  TORCH_CHECK(found, "There is no activation named '", activation, "'.");
  if (foreign(x)) return unfused_tail(foreign_fprop(x, w, bias, g), residual, activation, alpha);
  Problem p = fprop_problem(x, w, bias, residual, g);
  p.epilogue.activation = *found;
  if (*found == Activation::leaky_relu) p.epilogue.alpha = alpha;
  Operands o;
  o.x = dense(x, p.layout), o.w = w, o.bias = dense_or_undefined(bias);
  if (p.epilogue.residual) o.residual = dense(*residual, p.layout);
  return execute(p, std::move(o));
}

Tensor run_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, IntArrayRef input_size,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                 OptionalBool channels_last) {
  const ConvGeometry g{stride, padding, dilation, groups};
  if (foreign(dy)) return foreign_dgrad(dy, w, bias, input_size, g);
  Problem p = dgrad_problem(dy, w, bias, input_size, g);
  if (channels_last) p.layout = *channels_last ? Layout::nhwc : Layout::nchw;
  Operands o;
  o.y = dense(dy, p.layout), o.w = w, o.bias = dense_or_undefined(bias);
  return execute(p, std::move(o));
}

Tensor run_wgrad(const Tensor& dy, const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, int64_t groups, bool channels_last) {
  const ConvGeometry geometry{stride, padding, dilation, groups};
  if (foreign(x)) return foreign_wgrad(dy, x, kernel_size, geometry);
  const Problem p = wgrad_problem(dy, x, kernel_size, geometry);
  const int64_t c = p.channels_per_group(), r = p.h.window, s = p.w.window;
  const std::array<int64_t, 4> sizes{p.k, c, r, s};
  const std::array<int64_t, 4> strides =
      channels_last ? std::array<int64_t, 4>{r * s * c, 1, s * c, c} : std::array<int64_t, 4>{c * r * s, r * s, s, 1};
  Operands o;
  o.y = dense(dy, p.layout), o.x = dense(x, p.layout);
  o.w_sizes = sizes, o.w_strides = strides;
  return execute(p, std::move(o));
}

// --- autocast: convolutions run in the lower precision, as torch's do ------------------------------------------------

template <c10::DispatchKey key, c10::DeviceType device>
struct Autocast {
  static Tensor cast(const Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  }
  static OptionalTensor cast(const OptionalTensor& t) { return t ? OptionalTensor(cast(*t)) : t; }

  static Tensor fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, OptionalBool channels_last) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_fprop(cast(x), cast(w), cast(bias), {stride, padding, dilation, groups}, channels_last);
  }
  static Tensor act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    c10::string_view activation, double alpha) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_act(cast(x), cast(w), cast(bias), cast(residual), {stride, padding, dilation, groups}, activation,
                    alpha);
  }
  static Tensor dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                      OptionalBool channels_last) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    return call_dgrad(cast(dy), cast(w), cast(bias), input_size, {stride, padding, dilation, groups}, channels_last);
  }
  static void register_all(torch::Library& m) {
    m.impl("conv2d", &fprop);
    m.impl("conv2d_act", &act);
    m.impl("conv2d_dgrad", &dgrad);
  }
};

}  // namespace

Tensor call_fprop(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const ConvGeometry& g,
                  OptionalBool channels_last) {
  static const auto op = handle<Fprop>("fastconv::conv2d");
  return op.call(x, w, bias, g.stride, g.padding, g.dilation, g.groups, channels_last);
}
Tensor call_act(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
                const ConvGeometry& g, c10::string_view activation, double alpha) {
  static const auto op = handle<Act>("fastconv::conv2d_act");
  return op.call(x, w, bias, residual, g.stride, g.padding, g.dilation, g.groups, activation, alpha);
}
Tensor call_dgrad(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, SymIntArrayRef input_size,
                  const ConvGeometry& g, OptionalBool channels_last) {
  static const auto op = handle<Dgrad>("fastconv::conv2d_dgrad");
  return op.call(dy, w, bias, input_size, g.stride, g.padding, g.dilation, g.groups, channels_last);
}
Tensor call_wgrad(const Tensor& dy, const Tensor& x, SymIntArrayRef kernel_size, const ConvGeometry& g,
                  bool channels_last) {
  static const auto op = handle<Wgrad>("fastconv::conv2d_wgrad");
  return op.call(dy, x, kernel_size, g.stride, g.padding, g.dilation, g.groups, channels_last);
}

// channels_last: the layout of the result; None asks torch's rule (conv_problem.h).
TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.conv2d");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, int groups, "
      "bool? channels_last=None) -> Tensor",
      tags);
  m.def(
      "conv2d_act(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups, str activation, float alpha) -> Tensor",
      tags);
  m.def(
      "conv2d_dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[2] input_size, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups, bool? channels_last=None) -> Tensor",
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

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  Autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>::register_all(m);
}
TORCH_LIBRARY_IMPL(fastconv, AutocastCUDA, m) {
  Autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>::register_all(m);
}

}  // namespace fastconv
