// The arithmetic ceiling of this machine, measured rather than looked up: multiply-adds that never leave registers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace fastconv {

// Runs `rounds` rounds of independent multiply-adds with the widest registers of `isa`, in double when `wide`, and
// returns how many FLOPs that were. Throws std::invalid_argument when this build or this CPU lacks the set.
double multiply_add_burst(Isa isa, bool wide, int64_t rounds);

}  // namespace fastconv
