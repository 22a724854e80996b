// Average pools as torch operators. A pass and its gradient are each other's derivative, so every order is one of
// these:
//
//   y  = avg(x)          dx:  avg_dgrad(g)
//   dx = avg_dgrad(dy)   ddy: avg(g)
#include "pool_common.h"
#include "pool_ops.h"

namespace fastconv::pool {

namespace {

using Avg = Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool, std::optional<int64_t>);
using AvgDgrad = Tensor(const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool,
                        std::optional<int64_t>, bool);
using Adaptive = Tensor(const Tensor&, SymIntArrayRef);
using AdaptiveDgrad = Tensor(const Tensor&, SymIntArrayRef, bool);

Tensor call_avg_dgrad(const Tensor& dy, SymIntArrayRef size, const PoolGeometry& g, bool channels_last) {
  static const auto op = handle<AvgDgrad>("fastconv::avg_pool2d_dgrad");
  return op.call(dy, size, g.window, g.stride, g.padding, g.ceil_mode, g.count_include_pad, g.divisor_override,
                 channels_last);
}
Tensor call_adaptive_dgrad(const Tensor& dy, SymIntArrayRef size, bool channels_last) {
  static const auto op = handle<AdaptiveDgrad>("fastconv::adaptive_avg_pool2d_dgrad");
  return op.call(dy, size, channels_last);
}

}  // namespace

Tensor call_avg(const Tensor& x, const PoolGeometry& g) {
  static const auto op = handle<Avg>("fastconv::avg_pool2d");
  return op.call(x, g.window, g.stride, g.padding, g.ceil_mode, g.count_include_pad, g.divisor_override);
}
Tensor call_adaptive_avg(const Tensor& x, SymIntArrayRef size) {
  static const auto op = handle<Adaptive>("fastconv::adaptive_avg_pool2d");
  return op.call(x, size);
}

namespace {

// --- running ---

Tensor forward(const Problem& p, const Tensor& x) {
  Operands o;
  o.x = dense(x, p.layout);
  return execute(p, std::move(o));
}
Tensor backward(const Problem& p, const Tensor& dy) {
  Operands o;
  o.y = dense(dy, p.layout);
  return execute(p, std::move(o));
}

Tensor run_avg(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
               bool count_include_pad, std::optional<int64_t> divisor) {
  const PoolGeometry g{window, stride, padding, no_dilation, ceil_mode, count_include_pad, divisor};
  return forward(pool_problem(Op::avgpool2d, x, g), x);
}
Tensor run_avg_dgrad(const Tensor& dy, IntArrayRef input_size, IntArrayRef window, IntArrayRef stride,
                     IntArrayRef padding, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor,
                     bool channels_last) {
  const PoolGeometry g{window, stride, padding, no_dilation, ceil_mode, count_include_pad, divisor};
  return backward(pool_dgrad_problem(Op::avgpool2d, dy, input_size, g, channels_last), dy);
}
Tensor run_adaptive(const Tensor& x, IntArrayRef output_size) {
  return forward(sized_pool_problem(Op::adaptiveavg2d, x, output_size), x);
}
Tensor run_adaptive_dgrad(const Tensor& dy, IntArrayRef input_size, bool channels_last) {
  return backward(sized_pool_dgrad_problem(Op::adaptiveavg2d, dy, input_size, channels_last), dy);
}

// --- differentiating ---

struct AvgFunction : torch::autograd::Function<AvgFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const PoolGeometry& g) {
    save_input(ctx, x);
    SavedGeometry::save(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_avg(x, g);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(2);
    const SavedInput x(ctx);
    if (grads[0].defined()) out[0] = call_avg_dgrad(grads[0], x.size, SavedGeometry(ctx), x.channels_last);
    return out;
  }
};

struct AvgDgradFunction : torch::autograd::Function<AvgDgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, SymIntArrayRef size, const PoolGeometry& g,
                        bool channels_last) {
    SavedGeometry::save(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_avg_dgrad(dy, size, g, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(4);
    if (grads[0].defined()) out[0] = call_avg(grads[0], SavedGeometry(ctx));
    return out;
  }
};

struct AdaptiveFunction : torch::autograd::Function<AdaptiveFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, SymIntArrayRef size) {
    save_input(ctx, x);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_adaptive_avg(x, size);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(2);
    const SavedInput x(ctx);
    if (grads[0].defined()) out[0] = call_adaptive_dgrad(grads[0], x.size, x.channels_last);
    return out;
  }
};

struct AdaptiveDgradFunction : torch::autograd::Function<AdaptiveDgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, SymIntArrayRef size, bool channels_last) {
    save_input(ctx, dy);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_adaptive_dgrad(dy, size, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(3);
    if (grads[0].defined()) out[0] = call_adaptive_avg(grads[0], SavedInput(ctx).size);
    return out;
  }
};

Tensor autograd_avg(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                    bool count_include_pad, std::optional<int64_t> divisor) {
  if (foreign(x)) return at::avg_pool2d(x, window, stride, padding, ceil_mode, count_include_pad, divisor);
  const PoolGeometry g{window, stride, padding, no_dilation, ceil_mode, count_include_pad, divisor};
  if (x.dim() == 4 && differentiates(x)) return AvgFunction::apply(x, g);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_avg(x, g);
}
Tensor autograd_avg_dgrad(const Tensor& dy, SymIntArrayRef size, IntArrayRef window, IntArrayRef stride,
                          IntArrayRef padding, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor,
                          bool channels_last) {
  const PoolGeometry g{window, stride, padding, no_dilation, ceil_mode, count_include_pad, divisor};
  if (differentiates(dy)) return AvgDgradFunction::apply(dy, size, g, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_avg_dgrad(dy, size, g, channels_last);
}
Tensor autograd_adaptive(const Tensor& x, SymIntArrayRef size) {
  if (foreign(x)) return at::adaptive_avg_pool2d_symint(x, size);
  if (x.dim() == 4 && differentiates(x)) return AdaptiveFunction::apply(x, size);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_adaptive_avg(x, size);
}
Tensor autograd_adaptive_dgrad(const Tensor& dy, SymIntArrayRef size, bool channels_last) {
  if (dy.dim() == 4 && differentiates(dy)) return AdaptiveDgradFunction::apply(dy, size, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_adaptive_dgrad(dy, size, channels_last);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.pool2d");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "avg_pool2d(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, "
      "int? divisor_override) -> Tensor",
      tags);
  m.def(
      "avg_pool2d_dgrad(Tensor dy, SymInt[2] input_size, int[2] kernel_size, int[2] stride, int[2] padding, "
      "bool ceil_mode, bool count_include_pad, int? divisor_override, bool channels_last) -> Tensor",
      tags);
  m.def("adaptive_avg_pool2d(Tensor x, SymInt[2] output_size) -> Tensor", tags);
  m.def("adaptive_avg_pool2d_dgrad(Tensor dy, SymInt[2] input_size, bool channels_last) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("avg_pool2d", &run_avg);
  m.impl("avg_pool2d_dgrad", &run_avg_dgrad);
  m.impl("adaptive_avg_pool2d", &run_adaptive);
  m.impl("adaptive_avg_pool2d_dgrad", &run_adaptive_dgrad);
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("avg_pool2d", &autograd_avg);
  m.impl("avg_pool2d_dgrad", &autograd_avg_dgrad);
  m.impl("adaptive_avg_pool2d", &autograd_adaptive);
  m.impl("adaptive_avg_pool2d_dgrad", &autograd_adaptive_dgrad);
}

}  // namespace fastconv::pool
