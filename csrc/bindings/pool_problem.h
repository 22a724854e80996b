// Arguments of the pooling ops -> Problem, with torch's own checks, before anything is allocated.
#pragma once

#include <ATen/ATen.h>

#include "core/problem.h"

namespace fastconv {

// Everything a sliding pool is told, per axis (h, w).
struct PoolGeometry {
  at::IntArrayRef window, stride, padding, dilation;
  bool ceil_mode = false;
  bool count_include_pad = true;
  std::optional<int64_t> divisor_override = std::nullopt;
};

// Forward from x; backward from dy and the input's size. `channels_last` is the layout of what is written.
Problem pool_problem(Op op, const at::Tensor& x, const PoolGeometry& geometry);
Problem pool_dgrad_problem(Op op, const at::Tensor& dy, at::IntArrayRef input_size, const PoolGeometry& geometry,
                           bool channels_last);
// Adaptive pools and unpooling: the output size is given.
Problem sized_pool_problem(Op op, const at::Tensor& x, at::IntArrayRef output_size);
Problem sized_pool_dgrad_problem(Op op, const at::Tensor& dy, at::IntArrayRef input_size, bool channels_last);

// The index fits the problem's output (a pool's) or input (unpooling's).
void check_index(const Problem& problem, const at::Tensor& index);

}  // namespace fastconv
