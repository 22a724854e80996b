// A run of elements, register by register.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// f(place, how many) for the places of [0, length): whole registers, whose count is a constant, then the rest.
template <class V, class F>
[[gnu::always_inline]] inline void each_register(int64_t length, F&& f) {
  int64_t i = 0;
  for (; i + V::lanes <= length; i += V::lanes) f(i, std::integral_constant<int, V::lanes>());
  if (i < length) f(i, static_cast<int>(length - i));
}

}  // namespace fastconv::FASTCONV_ISA
