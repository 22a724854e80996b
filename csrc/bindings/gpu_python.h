// The Python face of the GPU kernels: their list, and one call of one of them, in the emulator or on a device.
#pragma once

#include <ATen/ATen.h>
#include <pybind11/pybind11.h>

namespace fastconv {

// Adds gpu_kernels(), gpu_refuses(row, problem), gpu_workspace(row, problem) and gpu_emulate(row, problem, out, ...,
// seed): tensors lie in host memory, and seed draws the order of blocks and threads. gpu_device_code() names the
// architectures that this build holds device code for, and gpu_run(row, problem, ...) starts a kernel on one.
void add_gpu_functions(pybind11::module_& m);

// Adds the same for kernels of two problems: gpu_pairs(), gpu_pair_refuses(row, first, second), gpu_pair_workspace,
// gpu_pair_emulate and gpu_pair_run. Tensors: x, w and depthwise_bias of the first; filter, bias and residual of the
// second.
void add_gpu_pair_functions(pybind11::module_& m);

// Bytes from a tensor's first element to the end of its last.
int64_t extent_of(const at::Tensor& t);

// RuntimeError where this build has no device code.
void check_device_code();

// RuntimeError unless every defined tensor is on the first one's CUDA device.
void check_one_device(const std::string& kernel, std::initializer_list<at::Tensor> tensors);

}  // namespace fastconv
