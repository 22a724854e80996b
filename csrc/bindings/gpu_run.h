// A GPU kernel on tensors of a device: on torch's current stream, with a workspace of torch's allocator, and nothing
// that waits. So CUDA graphs can be captured around it, and streams order it like torch's own operators.
#pragma once

#include "cuda/kernel.h"
#include "dispatch.h"

#include <functional>

namespace fastconv {

// Calls start(workspace, stream) with torch's current stream of the device and so many bytes of its allocator. Torch's
// current device stays what it is.
void on_current_stream(c10::Device device, int64_t workspace_bytes, const std::function<void(void*, Stream)>& start);

// Runs one kernel on tensors that already fit the problem, `out` included.
void run_gpu(const GpuKernel& kernel, const Problem& problem, const Operands& operands);

}  // namespace fastconv
