// Registers of bfloat16 pairs: every 32-bit lane of a Vec<float> holds two neighbours, the first in its low half. Such
// a register is only moved and taken apart, never read as floats.
#pragma once

#include <cstring>

#include "fma_into.h"

namespace fastconv::FASTCONV_ISA {

// The pair at p in every lane.
[[gnu::always_inline]] inline Vec<float> broadcast_pair(const bf16* p) {
  float bits;
  std::memcpy(&bits, p, sizeof bits);
  return Vec<float>::broadcast(bits);
}
[[gnu::always_inline]] inline Vec<float> load_pairs(const bf16* p) {
  return Vec<float>::load(reinterpret_cast<const float*>(p));
}

inline void store_pairs(bf16* p, Vec<float> pairs) { pairs.store(reinterpret_cast<float*>(p)); }

// pairs_of: two registers of bfloat16 values, widened, as one of pairs.
inline Vec<float> pairs_of(Vec<float> first, Vec<float> second) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first.v), 16);
  return {_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_castps_si512(second.v)))};
}
// acc += first·first + second·second, in float, as one instruction (AVX512_BF16). It takes subnormals for zero.
[[gnu::always_inline]] inline void dot_into(Vec<float>& acc, Vec<float> a, Vec<float> b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}

}  // namespace fastconv::FASTCONV_ISA
