// Storage types to float and back, one rounding to nearest even.
#pragma once

#include "target.h"

namespace fastconv::FASTCONV_GPU {

FASTCONV_DEVICE float widen(float v) { return v; }

#if defined(__CUDACC__)

FASTCONV_DEVICE float widen(f16 v) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
}
FASTCONV_DEVICE float widen(bf16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }

template <class T>
FASTCONV_DEVICE T narrow(float v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else {
    T out;
    if constexpr (std::is_same_v<T, f16>)
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    else
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
  }
}

// The nearest value of 10 mantissa bits, ties away from zero, as bits of a float.
FASTCONV_DEVICE uint32_t to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

#else

inline float widen(f16 v) { return to_float(v); }
inline float widen(bf16 v) { return to_float(v); }

template <class T>
T narrow(float v) {
  if constexpr (std::is_same_v<T, float>)
    return v;
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(v);
  else
    return to_bf16(v);
}

inline constexpr uint32_t tf32_dropped = 0x1fff;  // mantissa bits that tf32 has not

inline uint32_t to_tf32(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x007fffffu ? bits | 0x00400000u : bits;
  return (bits + (tf32_dropped + 1) / 2) & ~tf32_dropped;
}

#endif

}  // namespace fastconv::FASTCONV_GPU
