// What the operators of batch normalisation and local response normalisation share: the problem of a tensor, tensors
// as kernels take them, and who wants a derivative.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "dispatch.h"

namespace fastconv::norm {

using OptionalTensor = std::optional<at::Tensor>;

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// --- from tensors to the kernel ------------------------------------------------------------------------------------

// As torch: contiguous wins where a tensor is both; of fewer than four dimensions only the standard order is known.
inline Layout result_layout(const at::Tensor& x) { return x.is_contiguous() ? Layout::nchw : layout_of(x); }

// The problem of x, from one whose other fields are set. name: of the function, for what it refuses.
inline Problem norm_problem(const char* name, Problem p, const at::Tensor& x) {
  const int64_t fewest = p.is_lrn() ? 3 : 2;
  TORCH_CHECK(x.dim() >= fewest && x.dim() <= 4, name, " takes an input of ", fewest,
              " to 4 dimensions, but got shape ", x.sizes(), ".");
  TORCH_CHECK(x.numel() > 0, "This operator takes no empty input, but got shape ", x.sizes(), ".");
  TORCH_CHECK(dtype_of(x) != Dtype::other, name, " has no kernel for ", x.scalar_type(), ".");
  p.dtype = dtype_of(x);
  p.n = x.size(0), p.c = p.k = x.size(1);
  p.h.in = p.h.out = x.dim() == 4 ? x.size(2) : 1;
  p.w.in = p.w.out = x.dim() > 2 ? x.size(-1) : 1;
  p.layout = p.pass == Pass::fprop ? result_layout(x) : layout_of(x);
  const std::string sentence = invalid(p);
  TORCH_CHECK(sentence.empty(), sentence);
  return p;
}

// An activation, dense and in four dimensions.
inline at::Tensor dense(const Problem& p, const at::Tensor& t) {
  const at::Tensor lying = t.contiguous(format_of(p.layout));
  return t.dim() == 4 ? lying : lying.view({p.n, p.c, p.h.in, p.w.in});
}
inline at::Tensor shaped_as(const at::Tensor& x, at::Tensor result) {
  return x.dim() == 4 ? std::move(result) : result.view(x.sizes());
}

inline void check_gradient(const at::Tensor& dy, const at::Tensor& x) {
  TORCH_CHECK(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(), "The gradient has shape ", dy.sizes(),
              " and dtype ", dy.scalar_type(), ", but the input ", x.sizes(), " and ", x.scalar_type(), ".");
}

// --- derivatives -----------------------------------------------------------------------------------------------------

inline at::Tensor value(const at::Tensor& t) { return t; }
inline at::Tensor value(const OptionalTensor& t) { return t.value_or(at::Tensor()); }

template <class... Tensors>
bool any_gradient(const Tensors&... tensors) {
  const auto wants = [](const at::Tensor& t) { return t.defined() && t.requires_grad(); };
  return at::GradMode::is_enabled() && (wants(value(tensors)) || ...);
}
template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  const auto has = [](const at::Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); };
  return (has(value(tensors)) || ...);
}

}  // namespace fastconv::norm
