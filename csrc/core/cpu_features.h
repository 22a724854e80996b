// Which instruction sets this machine can run, by cpuid, and the limit a test or a user may set below that.
#pragma once

#include "types.h"

namespace fastconv {

bool cpu_supports(Isa isa);

// Whether it has AVX512_BF16, which not every processor with AVX-512 has.
bool cpu_multiplies_pairs();

// Whether AVX-512 does twice in a cycle what AVX2 does: Intel's, and AMD's from Zen 5 on, are taken for it.
bool cpu_has_wide_pipes();

}  // namespace fastconv
