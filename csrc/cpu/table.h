// All CPU kernels of this build, in order of preference.
#pragma once

#include <vector>

#include "core/kernel.h"

namespace fastconv {

const std::vector<Kernel>& cpu_kernels();

// The reason this machine cannot run kernels of an instruction set, or none is wanted above `limit`.
std::string refuses_isa(Isa isa, Isa limit);

}  // namespace fastconv
