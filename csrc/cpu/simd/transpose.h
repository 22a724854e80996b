// Transposes a square block held in registers: rows[i] lane j becomes rows[j] lane i.
#pragma once

#include <algorithm>

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if defined(__AVX512F__)

inline void transpose(Vec<float> (&rows)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  auto pairs = [](__m512 x, __m512 y, bool high) {
    const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
  };
  for (int i = 0; i < 16; i += 4) {  // b[i + j] 128-bit lane l: column 4 l + j of rows i..i+3
    b[i] = pairs(a[i], a[i + 2], false);
    b[i + 1] = pairs(a[i], a[i + 2], true);
    b[i + 2] = pairs(a[i + 1], a[i + 3], false);
    b[i + 3] = pairs(a[i + 1], a[i + 3], true);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88),
                 odd01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[j + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[j + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[j + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

inline void transpose(Vec<double> (&rows)[8]) {
  __m512d a[8];
  for (int i = 0; i < 8; i += 2) {  // a[i + j] 128-bit lane l: column 2 l + j of rows i, i+1
    a[i] = _mm512_unpacklo_pd(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_pd(rows[i].v, rows[i + 1].v);
  }
  for (int j = 0; j < 2; ++j) {
    const __m512d even01 = _mm512_shuffle_f64x2(a[j], a[j + 2], 0x88),
                  odd01 = _mm512_shuffle_f64x2(a[j], a[j + 2], 0xdd);
    const __m512d even23 = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0x88);
    const __m512d odd23 = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0xdd);
    rows[j].v = _mm512_shuffle_f64x2(even01, even23, 0x88);
    rows[j + 4].v = _mm512_shuffle_f64x2(even01, even23, 0xdd);
    rows[j + 2].v = _mm512_shuffle_f64x2(odd01, odd23, 0x88);
    rows[j + 6].v = _mm512_shuffle_f64x2(odd01, odd23, 0xdd);
  }
}

#elif defined(__AVX2__)

inline void transpose(Vec<float> (&rows)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {  // b[i + j] 128-bit lane l: column 4 l + j of rows i..i+3
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j].v = _mm256_permute2f128_ps(b[j], b[j + 4], 0x20);
    rows[j + 4].v = _mm256_permute2f128_ps(b[j], b[j + 4], 0x31);
  }
}

inline void transpose(Vec<double> (&rows)[4]) {
  __m256d a[4];
  for (int i = 0; i < 4; i += 2) {
    a[i] = _mm256_unpacklo_pd(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_pd(rows[i].v, rows[i + 1].v);
  }
  for (int j = 0; j < 2; ++j) {
    rows[j].v = _mm256_permute2f128_pd(a[j], a[j + 2], 0x20);
    rows[j + 2].v = _mm256_permute2f128_pd(a[j], a[j + 2], 0x31);
  }
}

#else

template <class A>
void transpose(Vec<A> (&rows)[Vec<A>::lanes]) {
  constexpr int lanes = Vec<A>::lanes;
  A block[lanes][lanes], turned[lanes][lanes];
  for (int i = 0; i < lanes; ++i) rows[i].store(block[i]);
  for (int i = 0; i < lanes; ++i)
    for (int j = 0; j < lanes; ++j) turned[j][i] = block[i][j];
  for (int i = 0; i < lanes; ++i) rows[i] = Vec<A>::load(turned[i]);
}

#endif

// dst[j * dst_step + i] = src[i * src_step + j] for i < rows, j < columns, widened to the arithmetic type on the way.
template <class T>
void transpose(const T* src, int64_t src_step, int64_t rows, int64_t columns, arithmetic<T>* dst, int64_t dst_step) {
  using V = Vec<arithmetic<T>>;
  for (int64_t j = 0; j < columns; j += V::lanes)
    for (int64_t i = 0; i < rows; i += V::lanes) {
      const int height = static_cast<int>(std::min<int64_t>(V::lanes, rows - i));
      const int width = static_cast<int>(std::min<int64_t>(V::lanes, columns - j));
      V block[V::lanes];
      for (int r = 0; r < V::lanes; ++r) block[r] = r < height ? load(src + (i + r) * src_step + j, width) : V::zero();
      transpose(block);
      for (int c = 0; c < width; ++c) store(dst + (j + c) * dst_step + i, block[c], height);
    }
}

}  // namespace fastconv::FASTCONV_ISA
