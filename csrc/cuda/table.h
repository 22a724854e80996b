// All GPU kernels, in order of preference, as this build can run them.
#pragma once

#include <vector>

#include "kernel.h"

namespace fastconv {

namespace emulated {
const std::vector<GpuKernel>& gpu_kernels();
}

}  // namespace fastconv
