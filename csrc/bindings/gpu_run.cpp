// Torch's device-generic interface alone is used: it reaches the CUDA parts of a CUDA torch at run time, so that
// nothing of CUDA is needed to compile, link or load this file.
#include "gpu_run.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace fastconv {

void on_current_stream(c10::Device device, int64_t workspace_bytes, const std::function<void(void*, Stream)>& start) {
  const c10::DeviceGuard guard(device);
  const c10::impl::VirtualGuardImpl torchs(device.type());
  const auto stream = reinterpret_cast<uint64_t>(torchs.getStreamNativeHandle(torchs.getStream(device)));
  // Freed when this call returns, before the kernels have run: the allocator hands the memory to work that is queued
  // behind them on the same stream, and to no other.
  at::Tensor workspace;
  if (workspace_bytes > 0)
    workspace = at::empty({workspace_bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  start(workspace.defined() ? workspace.mutable_data_ptr() : nullptr, {stream, device.index()});
}

void run_gpu(const GpuKernel& kernel, const Problem& problem, const Operands& operands) {
  on_current_stream(operands.out.device(), kernel.body.workspace(problem), [&](void* workspace, Stream stream) {
    Args args = args_of(problem, operands);
    args.workspace = workspace;
    kernel.body.run(problem, args, stream);
  });
}

}  // namespace fastconv
