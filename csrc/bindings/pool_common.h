// What both files of pooling operators share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/autograd.h>
#include <torch/library.h>

#include "dispatch.h"
#include "pool_problem.h"

namespace fastconv::pool {

using at::IntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline Tensor dense(const Tensor& t, Layout layout) { return t.contiguous(format_of(layout)); }
inline bool is_channels_last(const Tensor& t) { return layout_of(t) == Layout::nhwc; }

// Tensors none of our kernels knows (int, complex, sparse, quantized) go to torch's own operator.
inline bool foreign(const Tensor& t) {
  return t.layout() != at::kStrided || !at::isFloatingType(t.scalar_type()) || dtype_of(t) == Dtype::other;
}
inline bool differentiates(const Tensor& t) {
  return (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(0).defined();
}

// A PoolGeometry that owns its numbers, kept between forward and backward.
struct SavedGeometry {
  std::vector<int64_t> window, stride, padding, dilation;
  bool ceil_mode, count_include_pad;
  std::optional<int64_t> divisor_override;

  static void save(AutogradContext* ctx, const PoolGeometry& g) {
    auto& data = ctx->saved_data;
    data["window"] = g.window.vec(), data["stride"] = g.stride.vec();
    data["padding"] = g.padding.vec(), data["dilation"] = g.dilation.vec();
    data["ceil_mode"] = g.ceil_mode, data["count_include_pad"] = g.count_include_pad;
    data["divisor_override"] = g.divisor_override;
  }
  explicit SavedGeometry(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    window = data["window"].toIntVector(), stride = data["stride"].toIntVector();
    padding = data["padding"].toIntVector(), dilation = data["dilation"].toIntVector();
    ceil_mode = data["ceil_mode"].toBool(), count_include_pad = data["count_include_pad"].toBool();
    divisor_override = data["divisor_override"].toOptional<int64_t>();
  }
  operator PoolGeometry() const {
    return {window, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override};
  }
};

// Saves the input's spatial size (it may be symbolic) and layout for its gradient.
inline void save_input(AutogradContext* ctx, const Tensor& x) {
  ctx->saved_data["h"] = x.sym_size(2);
  ctx->saved_data["w"] = x.sym_size(3);
  ctx->saved_data["channels_last"] = is_channels_last(x);
}
struct SavedInput {
  std::array<c10::SymInt, 2> size;
  bool channels_last;
  explicit SavedInput(AutogradContext* ctx)
      : size{ctx->saved_data["h"].toSymInt(), ctx->saved_data["w"].toSymInt()},
        channels_last(ctx->saved_data["channels_last"].toBool()) {}
};

}  // namespace fastconv::pool
