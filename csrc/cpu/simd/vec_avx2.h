#pragma once

#include <immintrin.h>

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Vec;

namespace detail {
alignas(32) inline constexpr int32_t mask_window[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i mask32(int count) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask_window + 8 - count));
}
inline __m256i mask64(int count) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask_window + 8 - 2 * count));
}
// `count` 16-bit elements into a register whose other lanes are zero; no byte beyond them is read.
template <class S>
__m128i load16(const S* p, int count) {
  alignas(16) uint16_t lanes[8] = {};
  __builtin_memcpy(lanes, p, sizeof(uint16_t) * static_cast<unsigned>(count));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
}
inline void store16(void* p, __m128i v, int count) {
  alignas(16) uint16_t lanes[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), v);
  __builtin_memcpy(p, lanes, sizeof(uint16_t) * static_cast<unsigned>(count));
}
inline __m256 from_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
inline __m128i to_bf16_lanes(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i chosen =
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return _mm256_castsi256_si128(packed);
}
}  // namespace detail

template <>
struct Vec<float> {
  static constexpr int lanes = 8;
  using scalar_type = float;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int count) { return {_mm256_maskload_ps(p, detail::mask32(count))}; }
  static Vec load(const bf16* p) { return {detail::from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static Vec load(const bf16* p, int count) { return {detail::from_bf16(detail::load16(p, count))}; }
  static Vec load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static Vec load(const f16* p, int count) { return {_mm256_cvtph_ps(detail::load16(p, count))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int count) const { _mm256_maskstore_ps(p, detail::mask32(count), v); }
  void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), detail::to_bf16_lanes(v)); }
  void store(bf16* p, int count) const { detail::store16(p, detail::to_bf16_lanes(v), count); }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0)); }
  void store(f16* p, int count) const { detail::store16(p, _mm256_cvtps_ph(v, 0), count); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 4;
  using scalar_type = double;
  __m256d v;

  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, int count) { return {_mm256_maskload_pd(p, detail::mask64(count))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int count) const { _mm256_maskstore_pd(p, detail::mask64(count), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline Vec<float> sqrt(Vec<float> a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec<double> sqrt(Vec<double> a) { return {_mm256_sqrt_pd(a.v)}; }

// NaN in either operand gives NaN: the instruction returns its second operand when either is NaN, so a NaN in the
// first is put back by the blend.
inline Vec<float> max(Vec<float> a, Vec<float> b) {
  return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline Vec<float> min(Vec<float> a, Vec<float> b) {
  return {_mm256_blendv_ps(_mm256_min_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline Vec<double> max(Vec<double> a, Vec<double> b) {
  return {_mm256_blendv_pd(_mm256_max_pd(a.v, b.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q))};
}
inline Vec<double> min(Vec<double> a, Vec<double> b) {
  return {_mm256_blendv_pd(_mm256_min_pd(a.v, b.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q))};
}
// x within a bound; NaN stays NaN. One instruction, whose second operand wins where there is no order.
inline Vec<float> at_least(Vec<float> x, Vec<float> bound) { return {_mm256_max_ps(bound.v, x.v)}; }
inline Vec<float> at_most(Vec<float> x, Vec<float> bound) { return {_mm256_min_ps(bound.v, x.v)}; }
inline Vec<double> at_least(Vec<double> x, Vec<double> bound) { return {_mm256_max_pd(bound.v, x.v)}; }
inline Vec<double> at_most(Vec<double> x, Vec<double> bound) { return {_mm256_min_pd(bound.v, x.v)}; }
// a where x > 0, b elsewhere (NaN included).
inline Vec<float> where_positive(Vec<float> x, Vec<float> a, Vec<float> b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
}
inline Vec<double> where_positive(Vec<double> x, Vec<double> a, Vec<double> b) {
  return {_mm256_blendv_pd(b.v, a.v, _mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_GT_OQ))};
}

}  // namespace fastconv::FASTCONV_ISA
