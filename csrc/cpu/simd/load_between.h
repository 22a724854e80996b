// load_between(p, first, last): lanes [first, last) of a register from p[lane], widened; the other lanes are zero and
// their memory is not touched. evens(a, b): every second lane of two registers in a row. either(a, b) joins registers
// of which at most one holds something in each lane.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if defined(__AVX512F__)

namespace detail {
inline uint32_t lanes_between(int first, int last) { return ((1u << last) - 1u) & ~((1u << first) - 1u); }
}  // namespace detail

inline Vec<float> load_between(const float* p, int first, int last) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(detail::lanes_between(first, last)), p)};
}
inline Vec<double> load_between(const double* p, int first, int last) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(detail::lanes_between(first, last)), p)};
}
inline Vec<float> load_between(const bf16* p, int first, int last) {
  return {detail::from_bf16(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(detail::lanes_between(first, last)), p))};
}
inline Vec<float> load_between(const f16* p, int first, int last) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(detail::lanes_between(first, last)), p))};
}
inline Vec<float> either(Vec<float> a, Vec<float> b) { return {_mm512_or_ps(a.v, b.v)}; }
inline Vec<double> either(Vec<double> a, Vec<double> b) { return {_mm512_or_pd(a.v, b.v)}; }
inline Vec<float> evens(Vec<float> a, Vec<float> b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return {_mm512_permutex2var_ps(a.v, even, b.v)};
}
inline Vec<double> evens(Vec<double> a, Vec<double> b) {
  return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b.v)};
}

#else

#if defined(__AVX2__)
inline Vec<float> load_between(const float* p, int first, int last) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_maskload_ps(p, _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                                    _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane)))};
}
inline Vec<double> load_between(const double* p, int first, int last) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return {_mm256_maskload_pd(p, _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(first), lane),
                                                    _mm256_cmpgt_epi64(_mm256_set1_epi64x(last), lane)))};
}
inline Vec<float> either(Vec<float> a, Vec<float> b) { return {_mm256_or_ps(a.v, b.v)}; }
inline Vec<double> either(Vec<double> a, Vec<double> b) { return {_mm256_or_pd(a.v, b.v)}; }
inline Vec<float> evens(Vec<float> a, Vec<float> b) {
  const __m256 halves = _mm256_shuffle_ps(a.v, b.v, 0x88);
  return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(halves), 0xd8))};
}
inline Vec<double> evens(Vec<double> a, Vec<double> b) {
  return {_mm256_permute4x64_pd(_mm256_unpacklo_pd(a.v, b.v), 0xd8)};
}
#else
template <class T>
Vec<T> either(Vec<T> a, Vec<T> b) {
  return a + b;
}
template <class T>
Vec<T> evens(Vec<T> a, Vec<T> b) {
  constexpr int half = Vec<T>::lanes / 2;
  Vec<T> out;
  for (int i = 0; i < half; ++i) out.v[i] = a.v[2 * i], out.v[half + i] = b.v[2 * i];
  return out;
}
#endif

// Storage types without a masked load: by way of the stack.
template <class T>
Vec<arithmetic<T> > load_between(const T* p, int first, int last) {
  T lanes[Vec<arithmetic<T> >::lanes] = {};
  for (int i = first; i < last; ++i) lanes[i] = p[i];
  return load(static_cast<const T*>(lanes));
}

#endif

}  // namespace fastconv::FASTCONV_ISA
