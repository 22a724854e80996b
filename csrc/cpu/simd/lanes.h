// Lanes<A>: any set of lanes of a register, made from one bit a lane. load(p, lanes) brings those lanes from p[lane];
// the others are zero and their memory is not touched.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

template <class A>
struct Lanes;

#if defined(__AVX512F__) && !defined(FASTCONV_PORTABLE)

template <>
struct Lanes<float> {
  __mmask16 mask;
  static Lanes of(uint64_t bits) { return {static_cast<__mmask16>(bits)}; }
};
template <>
struct Lanes<double> {
  __mmask8 mask;
  static Lanes of(uint64_t bits) { return {static_cast<__mmask8>(bits)}; }
};
inline Vec<float> load(const float* p, Lanes<float> lanes) { return {_mm512_maskz_loadu_ps(lanes.mask, p)}; }
inline Vec<double> load(const double* p, Lanes<double> lanes) { return {_mm512_maskz_loadu_pd(lanes.mask, p)}; }

#elif defined(__AVX2__) && !defined(FASTCONV_PORTABLE)

template <>
struct Lanes<float> {
  __m256i mask;
  static Lanes of(uint64_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return {_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane)};
  }
};
template <>
struct Lanes<double> {
  __m256i mask;
  static Lanes of(uint64_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    return {_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(bits)), lane), lane)};
  }
};
inline Vec<float> load(const float* p, Lanes<float> lanes) { return {_mm256_maskload_ps(p, lanes.mask)}; }
inline Vec<double> load(const double* p, Lanes<double> lanes) { return {_mm256_maskload_pd(p, lanes.mask)}; }

#else

template <class A>
struct Lanes {
  uint64_t bits;
  static Lanes of(uint64_t bits) { return {bits}; }
};
template <class A>
Vec<A> load(const A* p, Lanes<A> lanes) {
  A value[Vec<A>::lanes] = {};
  for (int i = 0; i < Vec<A>::lanes; ++i)
    if (lanes.bits >> i & 1) value[i] = p[i];
  return Vec<A>::load(value);
}

#endif

}  // namespace fastconv::FASTCONV_ISA
