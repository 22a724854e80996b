// The Python face of the GPU kernels: their list, and one call of one of them in the emulator.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

// Adds gpu_kernels(), gpu_refuses(row, problem), gpu_workspace(row, problem) and gpu_emulate(row, problem, out, ...,
// seed): tensors lie in host memory, and seed draws the order of blocks and threads.
void add_gpu_functions(pybind11::module_& m);

}  // namespace fastconv
