// The Python face of the GPU kernels: their list, and one call of one of them, in the emulator or on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

// Adds gpu_kernels(), gpu_refuses(row, problem), gpu_workspace(row, problem) and gpu_emulate(row, problem, out, ...,
// seed): tensors lie in host memory, and seed draws the order of blocks and threads. gpu_device_code() names the
// architectures that this build holds device code for, and gpu_run(row, problem, ...) starts a kernel on one.
void add_gpu_functions(pybind11::module_& m);

}  // namespace fastconv
