#pragma once

#include <immintrin.h>

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Vec;

namespace detail {
inline __mmask16 mask16(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline __mmask8 mask8(int count) { return static_cast<__mmask8>((1u << count) - 1u); }
inline __m512 from_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m256i to_bf16_lanes(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
}  // namespace detail

template <>
struct Vec<float> {
  static constexpr int lanes = 16;
  using scalar_type = float;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int count) { return {_mm512_maskz_loadu_ps(detail::mask16(count), p)}; }
  static Vec load(const bf16* p) {
    return {detail::from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load(const bf16* p, int count) {
    return {detail::from_bf16(_mm256_maskz_loadu_epi16(detail::mask16(count), p))};
  }
  static Vec load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Vec load(const f16* p, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(detail::mask16(count), p))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int count) const { _mm512_mask_storeu_ps(p, detail::mask16(count), v); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), detail::to_bf16_lanes(v)); }
  void store(bf16* p, int count) const { _mm256_mask_storeu_epi16(p, detail::mask16(count), detail::to_bf16_lanes(v)); }
  void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0)); }
  void store(f16* p, int count) const { _mm256_mask_storeu_epi16(p, detail::mask16(count), _mm512_cvtps_ph(v, 0)); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 8;
  using scalar_type = double;
  __m512d v;

  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, int count) { return {_mm512_maskz_loadu_pd(detail::mask8(count), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int count) const { _mm512_mask_storeu_pd(p, detail::mask8(count), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline Vec<float> sqrt(Vec<float> a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec<double> sqrt(Vec<double> a) { return {_mm512_sqrt_pd(a.v)}; }

// NaN in either operand gives NaN: the instruction returns its second operand when either is NaN, so a NaN in the
// first is put back by the mask move.
inline Vec<float> max(Vec<float> a, Vec<float> b) {
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline Vec<float> min(Vec<float> a, Vec<float> b) {
  return {_mm512_mask_mov_ps(_mm512_min_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline Vec<double> max(Vec<double> a, Vec<double> b) {
  return {_mm512_mask_mov_pd(_mm512_max_pd(a.v, b.v), _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline Vec<double> min(Vec<double> a, Vec<double> b) {
  return {_mm512_mask_mov_pd(_mm512_min_pd(a.v, b.v), _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
// x within a bound; NaN stays NaN. One instruction, whose second operand wins where there is no order.
inline Vec<float> at_least(Vec<float> x, Vec<float> bound) { return {_mm512_max_ps(bound.v, x.v)}; }
inline Vec<float> at_most(Vec<float> x, Vec<float> bound) { return {_mm512_min_ps(bound.v, x.v)}; }
inline Vec<double> at_least(Vec<double> x, Vec<double> bound) { return {_mm512_max_pd(bound.v, x.v)}; }
inline Vec<double> at_most(Vec<double> x, Vec<double> bound) { return {_mm512_min_pd(bound.v, x.v)}; }
// a where x > 0, b elsewhere (NaN included).
inline Vec<float> where_positive(Vec<float> x, Vec<float> a, Vec<float> b) {
  return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)};
}
inline Vec<double> where_positive(Vec<double> x, Vec<double> a, Vec<double> b) {
  return {_mm512_mask_mov_pd(b.v, _mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_GT_OQ), a.v)};
}

}  // namespace fastconv::FASTCONV_ISA
