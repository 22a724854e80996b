// What max pools need beside Vec: the position a maximum came from travels beside it as a lane of the same type (an
// integer below 2^24, exact in float), so that one mask moves both.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// Integers up to this are exact in float lanes.
inline constexpr int64_t exact_tags = int64_t{1} << 24;

#if defined(__AVX512F__) && !defined(FASTCONV_PORTABLE)

// Where x > best or x is NaN, best = x and tag = t: of equal values the first, of several NaN the last, as in torch.
inline void take_greater(Vec<float>& best, Vec<float>& tag, Vec<float> x, Vec<float> t) {
  const __mmask16 m =
      static_cast<__mmask16>(_mm512_cmp_ps_mask(x.v, best.v, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q));
  best.v = _mm512_mask_mov_ps(best.v, m, x.v);
  tag.v = _mm512_mask_mov_ps(tag.v, m, t.v);
}
inline void take_greater(Vec<double>& best, Vec<double>& tag, Vec<double> x, Vec<double> t) {
  const __mmask8 m =
      static_cast<__mmask8>(_mm512_cmp_pd_mask(x.v, best.v, _CMP_GT_OQ) | _mm512_cmp_pd_mask(x.v, x.v, _CMP_UNORD_Q));
  best.v = _mm512_mask_mov_pd(best.v, m, x.v);
  tag.v = _mm512_mask_mov_pd(tag.v, m, t.v);
}
// acc + x where tag == t, acc elsewhere.
inline Vec<float> add_where_equal(Vec<float> acc, Vec<float> tag, Vec<float> t, Vec<float> x) {
  return {_mm512_mask_add_ps(acc.v, _mm512_cmp_ps_mask(tag.v, t.v, _CMP_EQ_OQ), acc.v, x.v)};
}
inline Vec<double> add_where_equal(Vec<double> acc, Vec<double> tag, Vec<double> t, Vec<double> x) {
  return {_mm512_mask_add_pd(acc.v, _mm512_cmp_pd_mask(tag.v, t.v, _CMP_EQ_OQ), acc.v, x.v)};
}
namespace detail {
inline __m128i load_bytes(const uint8_t* p, int count) {
  return _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1u), p);
}
inline void store_bytes(uint8_t* p, __m128i v, int count) {
  _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1u), v);
}
}  // namespace detail
inline Vec<float> load_tags(Vec<float>, const uint8_t* p, int count) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(detail::load_bytes(p, count < 16 ? count : 16)))};
}
inline Vec<double> load_tags(Vec<double>, const uint8_t* p, int count) {
  return {_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(detail::load_bytes(p, count < 8 ? count : 8)))};
}
inline void store_tags(uint8_t* p, Vec<float> v, int count) {
  detail::store_bytes(p, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v.v)), count < 16 ? count : 16);
}
inline void store_tags(uint8_t* p, Vec<double> v, int count) {
  detail::store_bytes(p, _mm256_cvtepi32_epi8(_mm512_cvttpd_epi32(v.v)), count < 8 ? count : 8);
}
// a and b hold consecutive elements: afterwards a holds the even ones and b the odd ones; weave is the inverse.
inline void unweave(Vec<float>& a, Vec<float>& b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512 low = _mm512_permutex2var_ps(a.v, even, b.v);
  b.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b.v);
  a.v = low;
}
inline void weave(Vec<float>& a, Vec<float>& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512 first = _mm512_permutex2var_ps(a.v, low, b.v);
  b.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b.v);
  a.v = first;
}
inline void unweave(Vec<double>& a, Vec<double>& b) {
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512d low = _mm512_permutex2var_pd(a.v, even, b.v);
  b.v = _mm512_permutex2var_pd(a.v, _mm512_add_epi64(even, _mm512_set1_epi64(1)), b.v);
  a.v = low;
}
inline void weave(Vec<double>& a, Vec<double>& b) {
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512d first = _mm512_permutex2var_pd(a.v, low, b.v);
  b.v = _mm512_permutex2var_pd(a.v, _mm512_add_epi64(low, _mm512_set1_epi64(4)), b.v);
  a.v = first;
}

// The sum of a register's lanes, halves first.
inline float sum_lanes(Vec<float> v) { return _mm512_reduce_add_ps(v.v); }
inline double sum_lanes(Vec<double> v) { return _mm512_reduce_add_pd(v.v); }

#elif defined(__AVX2__) && !defined(FASTCONV_PORTABLE)

inline void take_greater(Vec<float>& best, Vec<float>& tag, Vec<float> x, Vec<float> t) {
  const __m256 m = _mm256_or_ps(_mm256_cmp_ps(x.v, best.v, _CMP_GT_OQ), _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  best.v = _mm256_blendv_ps(best.v, x.v, m);
  tag.v = _mm256_blendv_ps(tag.v, t.v, m);
}
inline void take_greater(Vec<double>& best, Vec<double>& tag, Vec<double> x, Vec<double> t) {
  const __m256d m = _mm256_or_pd(_mm256_cmp_pd(x.v, best.v, _CMP_GT_OQ), _mm256_cmp_pd(x.v, x.v, _CMP_UNORD_Q));
  best.v = _mm256_blendv_pd(best.v, x.v, m);
  tag.v = _mm256_blendv_pd(tag.v, t.v, m);
}
inline Vec<float> add_where_equal(Vec<float> acc, Vec<float> tag, Vec<float> t, Vec<float> x) {
  return {_mm256_blendv_ps(acc.v, _mm256_add_ps(acc.v, x.v), _mm256_cmp_ps(tag.v, t.v, _CMP_EQ_OQ))};
}
inline Vec<double> add_where_equal(Vec<double> acc, Vec<double> tag, Vec<double> t, Vec<double> x) {
  return {_mm256_blendv_pd(acc.v, _mm256_add_pd(acc.v, x.v), _mm256_cmp_pd(tag.v, t.v, _CMP_EQ_OQ))};
}
namespace detail {
template <int lanes>
__m128i load_bytes(const uint8_t* p, int count) {
  uint64_t bytes = 0;
  if (count >= lanes)
    __builtin_memcpy(&bytes, p, lanes);
  else
    __builtin_memcpy(&bytes, p, static_cast<unsigned>(count));
  return _mm_cvtsi64_si128(static_cast<long long>(bytes));
}
template <int lanes>
void store_bytes(uint8_t* p, __m128i words, int count) {  // 32-bit lanes, four at a time, already packed to 16 bits
  const long long bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
  if (count >= lanes)
    __builtin_memcpy(p, &bytes, lanes);
  else
    __builtin_memcpy(p, &bytes, static_cast<unsigned>(count));
}
}  // namespace detail
inline Vec<float> load_tags(Vec<float>, const uint8_t* p, int count) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(detail::load_bytes<8>(p, count)))};
}
inline Vec<double> load_tags(Vec<double>, const uint8_t* p, int count) {
  return {_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(detail::load_bytes<4>(p, count)))};
}
inline void store_tags(uint8_t* p, Vec<float> v, int count) {
  const __m256i wide = _mm256_cvttps_epi32(v.v);
  detail::store_bytes<8>(p, _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)), count);
}
inline void store_tags(uint8_t* p, Vec<double> v, int count) {
  const __m128i wide = _mm256_cvttpd_epi32(v.v);
  detail::store_bytes<4>(p, _mm_packus_epi32(wide, wide), count);
}
// a and b hold consecutive elements: afterwards a holds the even ones and b the odd ones; weave is the inverse.
inline void unweave(Vec<float>& a, Vec<float>& b) {
  const __m256 even = _mm256_shuffle_ps(a.v, b.v, 0x88), odd = _mm256_shuffle_ps(a.v, b.v, 0xdd);
  a.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
  b.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
}
inline void weave(Vec<float>& a, Vec<float>& b) {
  const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
  a.v = _mm256_permute2f128_ps(low, high, 0x20);
  b.v = _mm256_permute2f128_ps(low, high, 0x31);
}
inline void unweave(Vec<double>& a, Vec<double>& b) {
  const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
  a.v = _mm256_permute4x64_pd(even, 0xd8);
  b.v = _mm256_permute4x64_pd(odd, 0xd8);
}
inline void weave(Vec<double>& a, Vec<double>& b) {
  const __m256d low = _mm256_unpacklo_pd(a.v, b.v), high = _mm256_unpackhi_pd(a.v, b.v);
  a.v = _mm256_permute2f128_pd(low, high, 0x20);
  b.v = _mm256_permute2f128_pd(low, high, 0x31);
}
inline float sum_lanes(Vec<float> v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline double sum_lanes(Vec<double> v) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v.v), _mm256_extractf128_pd(v.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#else

// The same verbs a lane at a time, through memory, for registers without their own.
namespace detail {
template <class V>
struct Lanes {
  typename V::scalar_type v[V::lanes];
  explicit Lanes(V x) { x.store(v); }
  V vec() const { return V::load(v); }
};
}  // namespace detail

template <class A>
void take_greater(Vec<A>& best, Vec<A>& tag, Vec<A> x, Vec<A> t) {
  detail::Lanes b(best), g(tag), a(x), u(t);
  for (int i = 0; i < Vec<A>::lanes; ++i)
    if (a.v[i] > b.v[i] || a.v[i] != a.v[i]) b.v[i] = a.v[i], g.v[i] = u.v[i];
  best = b.vec(), tag = g.vec();
}
template <class A>
Vec<A> add_where_equal(Vec<A> acc, Vec<A> tag, Vec<A> t, Vec<A> x) {
  detail::Lanes b(acc), g(tag), u(t), a(x);
  for (int i = 0; i < Vec<A>::lanes; ++i)
    if (g.v[i] == u.v[i]) b.v[i] += a.v[i];
  return b.vec();
}
template <class A>
Vec<A> load_tags(Vec<A>, const uint8_t* p, int count) {
  A lanes[Vec<A>::lanes] = {};
  for (int i = 0; i < Vec<A>::lanes && i < count; ++i) lanes[i] = static_cast<A>(p[i]);
  return Vec<A>::load(lanes);
}
template <class A>
void store_tags(uint8_t* p, Vec<A> v, int count) {
  detail::Lanes l(v);
  for (int i = 0; i < Vec<A>::lanes && i < count; ++i) p[i] = static_cast<uint8_t>(l.v[i]);
}
template <class A>
A sum_lanes(Vec<A> v) {
  detail::Lanes l(v);
  for (int half = Vec<A>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) l.v[i] += l.v[i + half];
  return l.v[0];
}
// a and b hold consecutive elements: afterwards a holds the even ones and b the odd ones; weave is the inverse.
template <class A>
void unweave(Vec<A>& a, Vec<A>& b) {
  constexpr int n = Vec<A>::lanes;
  A from[2 * n], to[2 * n];
  a.store(from), b.store(from + n);
  for (int i = 0; i < n; ++i) to[i] = from[2 * i], to[n + i] = from[2 * i + 1];
  a = Vec<A>::load(to), b = Vec<A>::load(to + n);
}
template <class A>
void weave(Vec<A>& a, Vec<A>& b) {
  constexpr int n = Vec<A>::lanes;
  A from[2 * n], to[2 * n];
  a.store(from), b.store(from + n);
  for (int i = 0; i < n; ++i) to[2 * i] = from[i], to[2 * i + 1] = from[n + i];
  a = Vec<A>::load(to), b = Vec<A>::load(to + n);
}

#endif

// int64 positions: written and read only when a caller asks for torch's indices.
template <class A>
Vec<A> load_tags(Vec<A>, const int64_t* p, int count) {
  A lanes[Vec<A>::lanes] = {};
  if (count >= Vec<A>::lanes)
    for (int i = 0; i < Vec<A>::lanes; ++i) lanes[i] = static_cast<A>(p[i]);
  else
    for (int i = 0; i < count; ++i) lanes[i] = static_cast<A>(p[i]);
  return Vec<A>::load(lanes);
}
template <class A>
void store_tags(int64_t* p, Vec<A> v, int count) {
  A lanes[Vec<A>::lanes];
  v.store(lanes);
  if (count >= Vec<A>::lanes)
    for (int i = 0; i < Vec<A>::lanes; ++i) p[i] = static_cast<int64_t>(lanes[i]);
  else
    for (int i = 0; i < count; ++i) p[i] = static_cast<int64_t>(lanes[i]);
}

}  // namespace fastconv::FASTCONV_ISA
