// The pooling operators as C++ functions. Each call goes through torch's dispatcher, so autograd, tracing and every
// functional transform see it.
#pragma once

#include "pool_problem.h"

namespace fastconv::pool {

constexpr std::array<int64_t, 2> no_dilation{1, 1};

at::Tensor call_max(const at::Tensor& x, const PoolGeometry& geometry);
at::Tensor call_avg(const at::Tensor& x, const PoolGeometry& geometry);
at::Tensor call_adaptive_avg(const at::Tensor& x, at::SymIntArrayRef output_size);

}  // namespace fastconv::pool
