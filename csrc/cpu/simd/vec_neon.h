#pragma once

#include <arm_neon.h>

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Vec;

namespace detail {
// `count` elements of a register whose other lanes are zero; no byte beyond them is read or written.
template <class S, int lanes>
struct Partial {
  S lane[lanes] = {};
  Partial() = default;
  Partial(const S* p, int count) { __builtin_memcpy(lane, p, sizeof(S) * static_cast<unsigned>(count)); }
  void copy_to(S* p, int count) const { __builtin_memcpy(p, lane, sizeof(S) * static_cast<unsigned>(count)); }
};
inline float32x4_t from_bf16(uint16x4_t v) { return vreinterpretq_f32_u32(vshll_n_u16(v, 16)); }
inline uint16x4_t to_bf16_lanes(float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
}
inline float32x4_t from_f16(const f16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
inline uint16x4_t to_f16_lanes(float32x4_t v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
}  // namespace detail

template <>
struct Vec<float> {
  static constexpr int lanes = 4;
  using scalar_type = float;
  float32x4_t v;

  static Vec zero() { return {vdupq_n_f32(0)}; }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const bf16* p) { return {detail::from_bf16(vld1_u16(reinterpret_cast<const uint16_t*>(p)))}; }
  static Vec load(const f16* p) { return {detail::from_f16(p)}; }
  template <class S>
  static Vec load(const S* p, int count) {
    return load(detail::Partial<S, lanes>(p, count).lane);
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store(bf16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), detail::to_bf16_lanes(v)); }
  void store(f16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), detail::to_f16_lanes(v)); }
  template <class S>
  void store(S* p, int count) const {
    detail::Partial<S, lanes> partial;
    store(partial.lane);
    partial.copy_to(p, count);
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 2;
  using scalar_type = double;
  float64x2_t v;

  static Vec zero() { return {vdupq_n_f64(0)}; }
  static Vec broadcast(double x) { return {vdupq_n_f64(x)}; }
  static Vec load(const double* p) { return {vld1q_f64(p)}; }
  static Vec load(const double* p, int count) { return load(detail::Partial<double, lanes>(p, count).lane); }
  void store(double* p) const { vst1q_f64(p, v); }
  void store(double* p, int count) const {
    detail::Partial<double, lanes> partial;
    store(partial.lane);
    partial.copy_to(p, count);
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f64(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f64(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f64(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f64(a.v, b.v)}; }
};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
inline Vec<float> sqrt(Vec<float> a) { return {vsqrtq_f32(a.v)}; }
inline Vec<double> sqrt(Vec<double> a) { return {vsqrtq_f64(a.v)}; }

// These instructions give NaN when either operand is NaN.
inline Vec<float> max(Vec<float> a, Vec<float> b) { return {vmaxq_f32(a.v, b.v)}; }
inline Vec<float> min(Vec<float> a, Vec<float> b) { return {vminq_f32(a.v, b.v)}; }
inline Vec<double> max(Vec<double> a, Vec<double> b) { return {vmaxq_f64(a.v, b.v)}; }
inline Vec<double> min(Vec<double> a, Vec<double> b) { return {vminq_f64(a.v, b.v)}; }
// x within a bound; NaN stays NaN.
inline Vec<float> at_least(Vec<float> x, Vec<float> bound) { return max(x, bound); }
inline Vec<float> at_most(Vec<float> x, Vec<float> bound) { return min(x, bound); }
inline Vec<double> at_least(Vec<double> x, Vec<double> bound) { return max(x, bound); }
inline Vec<double> at_most(Vec<double> x, Vec<double> bound) { return min(x, bound); }
// a where x > 0, b elsewhere (NaN included).
inline Vec<float> where_positive(Vec<float> x, Vec<float> a, Vec<float> b) {
  return {vbslq_f32(vcgtq_f32(x.v, vdupq_n_f32(0)), a.v, b.v)};
}
inline Vec<double> where_positive(Vec<double> x, Vec<double> a, Vec<double> b) {
  return {vbslq_f64(vcgtq_f64(x.v, vdupq_n_f64(0)), a.v, b.v)};
}

}  // namespace fastconv::FASTCONV_ISA
