// A GPU kernel on tensors of a device: on torch's current stream, with a workspace of torch's allocator, and nothing
// that waits. So CUDA graphs can be captured around it, and streams order it like torch's own operators.
#pragma once

#include "cuda/kernel.h"
#include "dispatch.h"

namespace fastconv {

// Runs one kernel on tensors that already fit the problem, `out` included. Torch's current device stays what it is.
void run_gpu(const GpuKernel& kernel, const Problem& problem, const Operands& operands);

}  // namespace fastconv
