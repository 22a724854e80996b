// Three registers of planes <-> three registers of triples: rgb images in registers.
#pragma once

#include <array>
#include <utility>

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

namespace detail {
// Of three registers one behind the other, the lane each lane of three others takes.
template <int lanes>
using Choice = std::array<std::array<int32_t, lanes>, 3>;
template <int lanes>
constexpr Choice<lanes> triples_of_planes() {
  Choice<lanes> choice{};
  for (int i = 0; i < 3 * lanes; ++i) choice[i / lanes][i % lanes] = i % 3 * lanes + i / 3;
  return choice;
}
template <int lanes>
constexpr Choice<lanes> planes_of_triples() {
  Choice<lanes> choice{};
  for (int i = 0; i < 3 * lanes; ++i) choice[i / lanes][i % lanes] = 3 * (i % lanes) + i / lanes;
  return choice;
}
template <int lanes>
inline constexpr Choice<lanes> woven = triples_of_planes<lanes>();
template <int lanes>
inline constexpr Choice<lanes> parted = planes_of_triples<lanes>();

// Lane i of the result: lane choice[i] of the three registers one behind the other.
#if defined(__AVX512F__) && !defined(FASTCONV_PORTABLE)
inline Vec<float> choose(const Vec<float> (&v)[3], const std::array<int32_t, 16>& choice) {
  const __m512i lane = _mm512_loadu_si512(choice.data());
  const __mmask16 last = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(32));
  return {_mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(v[0].v, lane, v[1].v), last, lane, v[2].v)};
}
inline Vec<double> choose(const Vec<double> (&v)[3], const std::array<int32_t, 8>& choice) {
  const __m512i lane = _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(choice.data())));
  const __mmask8 last = _mm512_cmpge_epi64_mask(lane, _mm512_set1_epi64(16));
  return {_mm512_mask_permutexvar_pd(_mm512_permutex2var_pd(v[0].v, lane, v[1].v), last, lane, v[2].v)};
}
#elif defined(__AVX2__) && !defined(FASTCONV_PORTABLE)
inline Vec<float> choose(const Vec<float> (&v)[3], const std::array<int32_t, 8>& choice) {
  const __m256i lane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(choice.data()));
  const auto beyond = [&](int border) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(border - 1)));
  };
  const auto from = [&](int i) { return _mm256_permutevar8x32_ps(v[i].v, lane); };
  return {_mm256_blendv_ps(_mm256_blendv_ps(from(0), from(1), beyond(8)), from(2), beyond(16))};
}
#endif
template <class A, size_t lanes>
Vec<A> choose(const Vec<A> (&v)[3], const std::array<int32_t, lanes>& choice) {
  A all[3 * lanes], chosen[lanes];
  for (size_t i = 0; i < 3; ++i) v[i].store(all + i * lanes);
  for (size_t i = 0; i < lanes; ++i) chosen[i] = all[choice[i]];
  return Vec<A>::load(chosen);
}

template <class A, class Choice>
void choose_all(Vec<A> (&v)[3], const Choice& choice) {
  const Vec<A> first = choose(v, choice[0]), second = choose(v, choice[1]);
  v[2] = choose(v, choice[2]), v[0] = first, v[1] = second;
}
}  // namespace detail

// a0 a1 ..., b0 b1 ..., c0 c1 ... become a0 b0 c0 a1 b1 c1 ...
template <class A>
void weave(Vec<A> (&v)[3]) {
  detail::choose_all(v, detail::woven<Vec<A>::lanes>);
}
// And back.
template <class A>
void unweave(Vec<A> (&v)[3]) {
  detail::choose_all(v, detail::parted<Vec<A>::lanes>);
}

}  // namespace fastconv::FASTCONV_ISA
