// Sentences that several kernels refuse problems with; empty: accepted.
#pragma once

#include <string>

#include "target.h"

namespace fastconv::FASTCONV_GPU {

inline std::string refuses_for_matrix(Dtype dtype) {
  if (dtype == Dtype::f32)
    return "Tensor cores take f16, bf16 and tf32; in f32 they would drop 13 of 23 mantissa bits.";
  return {};
}

inline std::string refuses_for_plain(Dtype dtype) {
  if (dtype != Dtype::f32) return "It multiplies in f32; tensor cores are for " + std::string(name_of(dtype)) + ".";
  return {};
}

// Places along an axis are sums of these numbers, and fit an int.
inline std::string refuses_places(const Problem& p, int64_t largest = int64_t{1} << 29) {
  for (const Axis* a : {&p.h, &p.w})
    for (int64_t size : {a->in, a->out, a->reach(), a->pad_lo, a->stride})
      if (size > largest)
        return "Its places are 32-bit numbers, but a size, window, stride or padding is " + std::to_string(size) + ".";
  return {};
}

}  // namespace fastconv::FASTCONV_GPU
