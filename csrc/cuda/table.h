// All GPU kernels, in order of preference: as the emulator runs them, and as devices do.
#pragma once

#include <vector>

#include "kernel.h"

namespace fastconv {

namespace emulated {
const std::vector<GpuKernel>& gpu_kernels();
const std::vector<GpuPair>& gpu_pairs();
}  // namespace emulated

namespace device {
const std::vector<GpuKernel>& gpu_kernels();  // empty in a build without device code, as the next
const std::vector<GpuPair>& gpu_pairs();
}  // namespace device

}  // namespace fastconv
