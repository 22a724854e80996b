// Which instruction sets this machine can run, by cpuid, and the limit a test or a user may set below that.
#pragma once

#include "types.h"

namespace fastconv {

bool cpu_supports(Isa isa);

}  // namespace fastconv
