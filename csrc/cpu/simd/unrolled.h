// A loop the compiler must unroll: f(0), f(1), ... with the index as a constant.
#pragma once

#include <utility>

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <int count, class F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

}  // namespace fastconv::FASTCONV_ISA
