// scale(x, n): x times 2^n in every lane, n whole and within twice the exponents of the type; rounded once, also where
// the result is subnormal or overflows. A NaN in n belongs to a NaN in x.
#pragma once

#include <bit>
#include <type_traits>

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if !defined(FASTCONV_PORTABLE) && defined(__AVX512F__)

inline Vec<float> scale(Vec<float> x, Vec<float> n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline Vec<double> scale(Vec<double> x, Vec<double> n) { return {_mm512_scalef_pd(x.v, n.v)}; }

#else

// Half of n at a time: neither power leaves the exponents, and the first product, of a number near one, is exact.
namespace detail {
inline constexpr int float_bias = 127, float_digits = 23, double_bias = 1023, double_digits = 52;
}

#if !defined(FASTCONV_PORTABLE) && defined(__AVX2__)

inline Vec<float> scale(Vec<float> x, Vec<float> n) {
  const __m256i all = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(all, 1);
  const auto power = [](__m256i e) {
    const __m256i biased = _mm256_add_epi32(e, _mm256_set1_epi32(detail::float_bias));
    return Vec<float>{_mm256_castsi256_ps(_mm256_slli_epi32(biased, detail::float_digits))};
  };
  return x * power(half) * power(_mm256_sub_epi32(all, half));
}
inline Vec<double> scale(Vec<double> x, Vec<double> n) {
  const __m128i all = _mm256_cvtpd_epi32(n.v), half = _mm_srai_epi32(all, 1);
  const auto power = [](__m128i e) {
    const __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(e, _mm_set1_epi32(detail::double_bias)));
    return Vec<double>{_mm256_castsi256_pd(_mm256_slli_epi64(biased, detail::double_digits))};
  };
  return x * power(half) * power(_mm_sub_epi32(all, half));
}

#elif !defined(FASTCONV_PORTABLE) && defined(__ARM_NEON)

inline Vec<float> scale(Vec<float> x, Vec<float> n) {
  const int32x4_t all = vcvtnq_s32_f32(n.v), half = vshrq_n_s32(all, 1);
  const auto power = [](int32x4_t e) {
    const int32x4_t biased = vaddq_s32(e, vdupq_n_s32(detail::float_bias));
    return Vec<float>{vreinterpretq_f32_s32(vshlq_n_s32(biased, detail::float_digits))};
  };
  return x * power(half) * power(vsubq_s32(all, half));
}
inline Vec<double> scale(Vec<double> x, Vec<double> n) {
  const int64x2_t all = vcvtnq_s64_f64(n.v), half = vshrq_n_s64(all, 1);
  const auto power = [](int64x2_t e) {
    const int64x2_t biased = vaddq_s64(e, vdupq_n_s64(detail::double_bias));
    return Vec<double>{vreinterpretq_f64_s64(vshlq_n_s64(biased, detail::double_digits))};
  };
  return x * power(half) * power(vsubq_s64(all, half));
}

#else

template <class A>
Vec<A> scale(Vec<A> x, Vec<A> n) {
  constexpr bool wide = sizeof(A) == sizeof(double);
  using Bits = std::conditional_t<wide, uint64_t, uint32_t>;
  constexpr int bias = wide ? detail::double_bias : detail::float_bias;
  constexpr int digits = wide ? detail::double_digits : detail::float_digits;
  const auto power = [](int e) { return std::bit_cast<A>(static_cast<Bits>(e + bias) << digits); };
  for (int i = 0; i < Vec<A>::lanes; ++i) {
    const int all = n.v[i] == n.v[i] ? static_cast<int>(n.v[i]) : 0, half = all >> 1;
    x.v[i] = x.v[i] * power(half) * power(all - half);
  }
  return x;
}

#endif
#endif

}  // namespace fastconv::FASTCONV_ISA
