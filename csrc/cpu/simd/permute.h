// Permutation<A>: a choice of one lane for every lane of a register. load(p) reads it from `lanes` lane numbers;
// permute(v, choice) gives lane i the lane choice[i] of v.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

template <class A>
struct Permutation;

#if defined(__AVX512F__) && !defined(FASTCONV_PORTABLE)

template <>
struct Permutation<float> {
  __m512i lane;
  static Permutation load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
};
template <>
struct Permutation<double> {
  __m512i lane;
  static Permutation load(const int32_t* p) {
    return {_mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
};
inline Vec<float> permute(Vec<float> v, Permutation<float> choice) {
  return {_mm512_maskz_permutexvar_ps(0xffff, choice.lane, v.v)};
}
inline Vec<double> permute(Vec<double> v, Permutation<double> choice) {
  return {_mm512_maskz_permutexvar_pd(0xff, choice.lane, v.v)};
}

#elif defined(__AVX2__) && !defined(FASTCONV_PORTABLE)

template <>
struct Permutation<float> {
  __m256i lane;
  static Permutation load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
};
template <>
struct Permutation<double> {
  __m256i lane;  // of the halves of each lane: AVX2 permutes 32 bits at a time
  static Permutation load(const int32_t* p) {
    const __m256i wide = _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i low = _mm256_slli_epi64(wide, 1);
    const __m256i high = _mm256_slli_epi64(_mm256_add_epi64(low, _mm256_set1_epi64x(1)), 32);
    return {_mm256_or_si256(low, high)};
  }
};
inline Vec<float> permute(Vec<float> v, Permutation<float> choice) {
  return {_mm256_permutevar8x32_ps(v.v, choice.lane)};
}
inline Vec<double> permute(Vec<double> v, Permutation<double> choice) {
  return {_mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(v.v), choice.lane))};
}

#elif defined(__ARM_NEON) && !defined(FASTCONV_PORTABLE)

template <>
struct Permutation<float> {
  uint8x16_t byte;
  static Permutation load(const int32_t* p) {
    const uint32x4_t lane = vreinterpretq_u32_s32(vld1q_s32(p));
    return {vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), lane, 0x04040404))};
  }
};
template <>
struct Permutation<double> {
  uint8x16_t byte;
  static Permutation load(const int32_t* p) {
    const uint32x2_t lane = vreinterpret_u32_s32(vld1_s32(p));
    const uint32x4_t twice = vcombine_u32(vdup_lane_u32(lane, 0), vdup_lane_u32(lane, 1));
    const uint32x4_t halves = vreinterpretq_u32_u64(vdupq_n_u64(0x0706050403020100));
    return {vreinterpretq_u8_u32(vmlaq_n_u32(halves, twice, 0x08080808))};
  }
};
inline Vec<float> permute(Vec<float> v, Permutation<float> choice) {
  return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v.v), choice.byte))};
}
inline Vec<double> permute(Vec<double> v, Permutation<double> choice) {
  return {vreinterpretq_f64_u8(vqtbl1q_u8(vreinterpretq_u8_f64(v.v), choice.byte))};
}

#else

template <class A>
struct Permutation {
  const int32_t* lane;
  static Permutation load(const int32_t* p) { return {p}; }
};
template <class A>
Vec<A> permute(Vec<A> v, Permutation<A> choice) {
  Vec<A> r;
  for (int i = 0; i < Vec<A>::lanes; ++i) r.v[i] = v.v[choice.lane[i]];
  return r;
}

#endif

}  // namespace fastconv::FASTCONV_ISA
