// Which instruction sets this machine can run, by cpuid, and the limit a test or a user may set below that.
#pragma once

#include "types.h"

namespace fastconv {

bool cpu_supports(Isa isa);

// Whether it has AVX512_BF16, which not every processor with AVX-512 has.
bool cpu_multiplies_pairs();

}  // namespace fastconv
