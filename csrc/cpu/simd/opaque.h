// A pointer whose origin the compiler cannot see. Of an unrolled loop over base + i·step it would otherwise take every
// i·step out of the loop around it, keep dozens of them on the stack and load one for each access.
#pragma once

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <class P>
[[gnu::always_inline]] inline P* opaque(P* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

}  // namespace fastconv::FASTCONV_ISA
