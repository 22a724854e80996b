// The ISA build axis. CMake compiles every kernel source once per instruction set, with FASTCONV_ISA naming it; each
// copy lives in a namespace of that name, so the copies never collide.
#pragma once

#include "core/types.h"

#ifndef FASTCONV_ISA
#define FASTCONV_ISA scalar
#endif

#define FASTCONV_ISA_STRING_(isa) #isa
#define FASTCONV_ISA_STRING(isa) FASTCONV_ISA_STRING_(isa)

namespace fastconv::FASTCONV_ISA {
inline constexpr Isa this_isa = Isa::FASTCONV_ISA;
}
