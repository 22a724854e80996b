// Max pools and unpooling as torch operators. Autograd keeps where each maximum came from: one byte, the tap's number
// in its window, or torch's int64 position in the plane when the caller asked for it or a byte cannot hold it.
//
//   y, index = max(x)          dx:  max_dgrad(g, index)
//   dx = max_dgrad(dy, index)  ddy: take(g, index)
//   y  = unpool(x, index)      dx:  take(g, index)
//   y  = take(x, index)        dx:  torch's scatter_add, since free positions lie in no window
//
// take(x, index)[i] = x[index[i]] in each plane; it is the input gradient of unpooling.
#include "memory.h"
#include "pool_common.h"
#include "pool_ops.h"

namespace fastconv::pool {

namespace {

using Two = std::tuple<Tensor, Tensor>;
using Max = Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool);
using MaxIndexed = Two(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool);
using MaxDgrad = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                        IntArrayRef, bool, bool);
using Adaptive = Tensor(const Tensor&, SymIntArrayRef);
using AdaptiveIndexed = Two(const Tensor&, SymIntArrayRef);
using AdaptiveDgrad = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, bool);
using Unpool = Tensor(const Tensor&, const Tensor&, SymIntArrayRef);
using Take = Tensor(const Tensor&, const Tensor&, bool);

constexpr int64_t max_byte_taps = 255;

Two call_max_indexed(const Tensor& x, const PoolGeometry& g, bool positions) {
  static const auto op = handle<MaxIndexed>("fastconv::max_pool2d_indexed");
  return op.call(x, g.window, g.stride, g.padding, g.dilation, g.ceil_mode, positions);
}
Tensor call_max_dgrad(const Tensor& dy, const Tensor& index, SymIntArrayRef size, const PoolGeometry& g,
                      bool channels_last) {
  static const auto op = handle<MaxDgrad>("fastconv::max_pool2d_dgrad");
  return op.call(dy, index, size, g.window, g.stride, g.padding, g.dilation, g.ceil_mode, channels_last);
}
Tensor call_adaptive(const Tensor& x, SymIntArrayRef size) {
  static const auto op = handle<Adaptive>("fastconv::adaptive_max_pool2d");
  return op.call(x, size);
}
Two call_adaptive_indexed(const Tensor& x, SymIntArrayRef size) {
  static const auto op = handle<AdaptiveIndexed>("fastconv::adaptive_max_pool2d_indexed");
  return op.call(x, size);
}
Tensor call_adaptive_dgrad(const Tensor& dy, const Tensor& index, SymIntArrayRef size, bool channels_last) {
  static const auto op = handle<AdaptiveDgrad>("fastconv::adaptive_max_pool2d_dgrad");
  return op.call(dy, index, size, channels_last);
}
Tensor call_unpool(const Tensor& x, const Tensor& index, SymIntArrayRef size) {
  static const auto op = handle<Unpool>("fastconv::max_unpool2d");
  return op.call(x, index, size);
}
Tensor call_take(const Tensor& x, const Tensor& index, bool channels_last) {
  static const auto op = handle<Take>("fastconv::max_unpool2d_dgrad");
  return op.call(x, index, channels_last);
}

}  // namespace

Tensor call_max(const Tensor& x, const PoolGeometry& g) {
  static const auto op = handle<Max>("fastconv::max_pool2d");
  return op.call(x, g.window, g.stride, g.padding, g.dilation, g.ceil_mode);
}

namespace {

// --- running ---

// The forward pass; writes the index the problem asks for.
Two forward(const Problem& p, const Tensor& x) {
  Operands o;
  o.x = dense(x, p.layout);
  if (p.index != Index::none)
    o.index = empty_result({p.n, p.c, p.h.out, p.w.out}, format_of(p.layout),
                           x.options().dtype(p.index == Index::u8 ? at::kByte : at::kLong));
  const Tensor index = o.index;
  return {execute(p, std::move(o)), index};
}

Tensor backward(Problem p, const Tensor& dy, const Tensor& index) {
  check_index(p, index);
  p.index = index.scalar_type() == at::kByte ? Index::u8 : Index::i64;
  Operands o;
  o.y = dense(dy, p.layout), o.index = dense(index, p.layout);
  return execute(p, std::move(o));
}

Tensor run_max(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
               bool ceil_mode) {
  return std::get<0>(forward(pool_problem(Op::maxpool2d, x, {window, stride, padding, dilation, ceil_mode}), x));
}
Two run_max_indexed(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                    bool ceil_mode, bool positions) {
  Problem p = pool_problem(Op::maxpool2d, x, {window, stride, padding, dilation, ceil_mode});
  p.index = positions || p.taps() > max_byte_taps ? Index::i64 : Index::u8;
  return forward(p, x);
}
Tensor run_max_dgrad(const Tensor& dy, const Tensor& index, IntArrayRef input_size, IntArrayRef window,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode,
                     bool channels_last) {
  const PoolGeometry g{window, stride, padding, dilation, ceil_mode};
  return backward(pool_dgrad_problem(Op::maxpool2d, dy, input_size, g, channels_last), dy, index);
}
Tensor run_adaptive(const Tensor& x, IntArrayRef output_size) {
  return std::get<0>(forward(sized_pool_problem(Op::adaptivemax2d, x, output_size), x));
}
Two run_adaptive_indexed(const Tensor& x, IntArrayRef output_size) {
  Problem p = sized_pool_problem(Op::adaptivemax2d, x, output_size);
  p.index = Index::i64;
  return forward(p, x);
}
Tensor run_adaptive_dgrad(const Tensor& dy, const Tensor& index, IntArrayRef input_size, bool channels_last) {
  return backward(sized_pool_dgrad_problem(Op::adaptivemax2d, dy, input_size, channels_last), dy, index);
}
Tensor run_unpool(const Tensor& x, const Tensor& index, IntArrayRef output_size) {
  Problem p = sized_pool_problem(Op::unpool2d, x, output_size);
  check_index(p, index);
  p.index = Index::i64;
  Operands o;
  o.x = dense(x, p.layout), o.index = dense(index, p.layout);
  return execute(p, std::move(o));
}
Tensor run_take(const Tensor& dy, const Tensor& index, bool channels_last) {
  TORCH_CHECK(index.dim() == 4, "The indices must be 4-D, but have shape ", index.sizes(), ".");
  return backward(sized_pool_dgrad_problem(Op::unpool2d, dy, index.sizes().slice(2), channels_last), dy, index);
}

// --- differentiating ---

// Tap numbers of a sliding max pool -> positions in the plane, and whether they lie inside it (a window of a dilated
// pool may not touch the input at all).
Two positions_of(const Tensor& taps, int64_t height, int64_t width, const PoolGeometry& g) {
  const Tensor t = taps.to(at::kLong);
  const Tensor r = t.div(g.window[1], "floor"), s = t.remainder(g.window[1]);
  const auto options = t.options();
  const Tensor oh = at::arange(taps.size(2), options).unsqueeze(1), ow = at::arange(taps.size(3), options);
  const Tensor row = oh * g.stride[0] - g.padding[0] + r * g.dilation[0];
  const Tensor column = ow * g.stride[1] - g.padding[1] + s * g.dilation[1];
  const Tensor inside = row.ge(0) & row.lt(height) & column.ge(0) & column.lt(width);
  return {(row * width + column).masked_fill(inside.logical_not(), 0), inside};
}

struct MaxFunction : torch::autograd::Function<MaxFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const PoolGeometry& g, bool positions) {
    save_input(ctx, x);
    SavedGeometry::save(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [y, index] = call_max_indexed(x, g, positions);
    ctx->save_for_backward({index});
    ctx->mark_non_differentiable({index});
    return {y, index};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(3);
    const SavedInput x(ctx);
    if (grads[0].defined())
      out[0] = call_max_dgrad(grads[0], ctx->get_saved_variables()[0], x.size, SavedGeometry(ctx), x.channels_last);
    return out;
  }
};

struct MaxDgradFunction : torch::autograd::Function<MaxDgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& index, SymIntArrayRef size,
                        const PoolGeometry& g, bool channels_last) {
    ctx->save_for_backward({index});
    SavedGeometry::save(ctx, g);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_max_dgrad(dy, index, size, g, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const Tensor index = ctx->get_saved_variables()[0];
    const bool channels_last = is_channels_last(index);
    if (index.scalar_type() == at::kLong) {
      out[0] = call_take(grads[0], index, channels_last);
      return out;
    }
    const auto [positions, inside] = positions_of(index, grads[0].size(2), grads[0].size(3), SavedGeometry(ctx));
    out[0] = call_take(grads[0], positions, channels_last).masked_fill(inside.logical_not(), 0);
    return out;
  }
};

struct AdaptiveFunction : torch::autograd::Function<AdaptiveFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, SymIntArrayRef size) {
    save_input(ctx, x);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [y, index] = call_adaptive_indexed(x, size);
    ctx->save_for_backward({index});
    ctx->mark_non_differentiable({index});
    return {y, index};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(2);
    const SavedInput x(ctx);
    if (grads[0].defined())
      out[0] = call_adaptive_dgrad(grads[0], ctx->get_saved_variables()[0], x.size, x.channels_last);
    return out;
  }
};

struct AdaptiveDgradFunction : torch::autograd::Function<AdaptiveDgradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& index, SymIntArrayRef size,
                        bool channels_last) {
    ctx->save_for_backward({index});
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_adaptive_dgrad(dy, index, size, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(4);
    const Tensor index = ctx->get_saved_variables()[0];
    if (grads[0].defined()) out[0] = call_take(grads[0], index, is_channels_last(index));
    return out;
  }
};

struct UnpoolFunction : torch::autograd::Function<UnpoolFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& index, SymIntArrayRef size) {
    ctx->save_for_backward({index});
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_unpool(x, index, size);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(3);
    // torch's layout: contiguous, whatever the input's.
    if (grads[0].defined()) out[0] = call_take(grads[0], ctx->get_saved_variables()[0], /*channels_last=*/false);
    return out;
  }
};

struct TakeFunction : torch::autograd::Function<TakeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& index, bool channels_last) {
    save_input(ctx, x);
    ctx->save_for_backward({index});
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_take(x, index, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(3);
    const Tensor& g = grads[0];
    if (!g.defined()) return out;
    const SavedInput x(ctx);
    const Tensor index = ctx->get_saved_variables()[0];
    const Tensor zeros = at::zeros_symint({g.sym_size(0), g.sym_size(1), x.size[0] * x.size[1]}, g.options());
    out[0] = zeros.scatter_add(2, index.flatten(2), g.flatten(2))
                 .view_symint({g.sym_size(0), g.sym_size(1), x.size[0], x.size[1]});
    return out;
  }
};

Tensor autograd_max(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                    bool ceil_mode) {
  if (foreign(x)) return at::max_pool2d(x, window, stride, padding, dilation, ceil_mode);
  const PoolGeometry g{window, stride, padding, dilation, ceil_mode};
  if (x.dim() == 4 && differentiates(x)) return MaxFunction::apply(x, g, /*positions=*/false)[0];
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_max(x, g);
}
Two autograd_max_indexed(const Tensor& x, IntArrayRef window, IntArrayRef stride, IntArrayRef padding,
                         IntArrayRef dilation, bool ceil_mode, bool positions) {
  if (foreign(x)) return at::max_pool2d_with_indices(x, window, stride, padding, dilation, ceil_mode);
  const PoolGeometry g{window, stride, padding, dilation, ceil_mode};
  if (x.dim() == 4 && differentiates(x)) {
    const auto out = MaxFunction::apply(x, g, positions);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_max_indexed(x, g, positions);
}
Tensor autograd_max_dgrad(const Tensor& dy, const Tensor& index, SymIntArrayRef size, IntArrayRef window,
                          IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode,
                          bool channels_last) {
  const PoolGeometry g{window, stride, padding, dilation, ceil_mode};
  if (differentiates(dy)) return MaxDgradFunction::apply(dy, index, size, g, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_max_dgrad(dy, index, size, g, channels_last);
}
Tensor autograd_adaptive(const Tensor& x, SymIntArrayRef size) {
  if (foreign(x)) return std::get<0>(at::adaptive_max_pool2d(x, C10_AS_INTARRAYREF_SLOW(size)));
  if (x.dim() == 4 && differentiates(x)) return AdaptiveFunction::apply(x, size)[0];
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_adaptive(x, size);
}
Two autograd_adaptive_indexed(const Tensor& x, SymIntArrayRef size) {
  if (foreign(x)) return at::adaptive_max_pool2d(x, C10_AS_INTARRAYREF_SLOW(size));
  if (x.dim() == 4 && differentiates(x)) {
    const auto out = AdaptiveFunction::apply(x, size);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_adaptive_indexed(x, size);
}
Tensor autograd_adaptive_dgrad(const Tensor& dy, const Tensor& index, SymIntArrayRef size, bool channels_last) {
  if (differentiates(dy)) return AdaptiveDgradFunction::apply(dy, index, size, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_adaptive_dgrad(dy, index, size, channels_last);
}
Tensor autograd_unpool(const Tensor& x, const Tensor& index, SymIntArrayRef size) {
  if (foreign(x)) return at::max_unpool2d_symint(x, index, size);
  if (x.dim() == 4 && differentiates(x)) return UnpoolFunction::apply(x, index, size);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_unpool(x, index, size);
}
Tensor autograd_take(const Tensor& x, const Tensor& index, bool channels_last) {
  if (x.dim() == 4 && differentiates(x)) return TakeFunction::apply(x, index, channels_last);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_take(x, index, channels_last);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.set_python_module("fastconv.ops.pool2d");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "max_pool2d(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode) "
      "-> Tensor",
      tags);
  m.def(
      "max_pool2d_indexed(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode, bool positions) -> (Tensor, Tensor)",
      tags);
  m.def(
      "max_pool2d_dgrad(Tensor dy, Tensor index, SymInt[2] input_size, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, bool ceil_mode, bool channels_last) -> Tensor",
      tags);
  m.def("adaptive_max_pool2d(Tensor x, SymInt[2] output_size) -> Tensor", tags);
  m.def("adaptive_max_pool2d_indexed(Tensor x, SymInt[2] output_size) -> (Tensor, Tensor)", tags);
  m.def("adaptive_max_pool2d_dgrad(Tensor dy, Tensor index, SymInt[2] input_size, bool channels_last) -> Tensor", tags);
  m.def("max_unpool2d(Tensor x, Tensor index, SymInt[2] output_size) -> Tensor", tags);
  m.def("max_unpool2d_dgrad(Tensor dy, Tensor index, bool channels_last) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("max_pool2d", &run_max);
  m.impl("max_pool2d_indexed", &run_max_indexed);
  m.impl("max_pool2d_dgrad", &run_max_dgrad);
  m.impl("adaptive_max_pool2d", &run_adaptive);
  m.impl("adaptive_max_pool2d_indexed", &run_adaptive_indexed);
  m.impl("adaptive_max_pool2d_dgrad", &run_adaptive_dgrad);
  m.impl("max_unpool2d", &run_unpool);
  m.impl("max_unpool2d_dgrad", &run_take);
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("max_pool2d", &autograd_max);
  m.impl("max_pool2d_indexed", &autograd_max_indexed);
  m.impl("max_pool2d_dgrad", &autograd_max_dgrad);
  m.impl("adaptive_max_pool2d", &autograd_adaptive);
  m.impl("adaptive_max_pool2d_indexed", &autograd_adaptive_indexed);
  m.impl("adaptive_max_pool2d_dgrad", &autograd_adaptive_dgrad);
  m.impl("max_unpool2d", &autograd_unpool);
  m.impl("max_unpool2d_dgrad", &autograd_take);
}

}  // namespace fastconv::pool
