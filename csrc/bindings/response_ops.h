// The local response normalisation operators as C++ functions. Each call goes through torch's dispatcher, so autograd,
// autocast, tracing and every functional transform see it.
#pragma once

#include <ATen/ATen.h>

#include "core/kernel.h"

namespace fastconv::norm {

// x / (k + alpha / size · the squares of a window of `size` channels)^beta.
at::Tensor call_response(const at::Tensor& x, int64_t size, const Response& r);
at::Tensor call_response_dgrad(const at::Tensor& dy, const at::Tensor& x, int64_t size, const Response& r);

}  // namespace fastconv::norm
