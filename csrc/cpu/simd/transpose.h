// transpose(): a block of planes into pixels, or filters into columns, widened to the arithmetic type on the way.
#pragma once

#include <algorithm>

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if defined(__AVX2__)

namespace detail {

inline constexpr int square = 8;         // floats
inline constexpr int square_double = 4;  // doubles

inline __m256i lanes_below(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i lanes_below_double(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
template <class T>
__m128i eight_halves(const T* p, int count) {
  if (count >= square) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  alignas(16) uint16_t lanes[square] = {};
  __builtin_memcpy(lanes, p, sizeof(uint16_t) * static_cast<unsigned>(count));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
}
inline __m256 eight(const float* p, int count) {
  return count >= square ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes_below(count));
}
inline __m256 eight(const bf16* p, int count) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_halves(p, count)), 16));
}
inline __m256 eight(const f16* p, int count) { return _mm256_cvtph_ps(eight_halves(p, count)); }

// Stores lanes [0, count). Masked stores of AVX2 cost a dozen cycles on some machines: halves, quarters and one
// instead.
inline void first_lanes(float* p, __m256 v, int count) {
  if (count == square) return _mm256_storeu_ps(p, v);
#if defined(__AVX512VL__)
  _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << count) - 1u), v);
#else
  __m128 part = _mm256_castps256_ps128(v);
  if (count & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(v, 1), p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part), p += 2;
  }
  if (count & 1) _mm_store_ss(p, part);
#endif
}

// rows, columns <= 8; rows and columns of the source, which come out swapped.
template <class T>
void transpose_square(const T* src, int64_t src_step, int rows, int columns, float* dst, int64_t dst_step) {
  __m256 a[square], b[square];
  for (int i = 0; i < square; ++i) a[i] = i < rows ? eight(src + i * src_step, columns) : _mm256_setzero_ps();
  for (int i = 0; i < square; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < square; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < square / 2; ++i) {
    b[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
    b[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
  }
  for (int i = 0; i < columns; ++i) first_lanes(dst + i * dst_step, b[i], rows);
}
inline void transpose_square(const double* src, int64_t src_step, int rows, int columns, double* dst,
                             int64_t dst_step) {
  __m256d a[square_double], b[square_double];
  const __m256i read = lanes_below_double(columns), write = lanes_below_double(rows);
  for (int i = 0; i < square_double; ++i)
    a[i] = i < rows ? _mm256_maskload_pd(src + i * src_step, read) : _mm256_setzero_pd();
  for (int i = 0; i < square_double; i += 2) {
    b[i] = _mm256_unpacklo_pd(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_pd(a[i], a[i + 1]);
  }
  a[0] = _mm256_permute2f128_pd(b[0], b[2], 0x20);
  a[1] = _mm256_permute2f128_pd(b[1], b[3], 0x20);
  a[2] = _mm256_permute2f128_pd(b[0], b[2], 0x31);
  a[3] = _mm256_permute2f128_pd(b[1], b[3], 0x31);
  for (int i = 0; i < columns; ++i) _mm256_maskstore_pd(dst + i * dst_step, write, a[i]);
}

}  // namespace detail

// dst[j · dst_step + i] = src[i · src_step + j] for i < rows, j < columns.
template <class T>
void transpose(const T* src, int64_t src_step, int64_t rows, int64_t columns, arithmetic<T>* dst, int64_t dst_step) {
  constexpr int64_t side = sizeof(arithmetic<T>) == sizeof(float) ? detail::square : detail::square_double;
  for (int64_t j = 0; j < columns; j += side)
    for (int64_t i = 0; i < rows; i += side)
      detail::transpose_square(src + i * src_step + j, src_step, static_cast<int>(std::min(side, rows - i)),
                               static_cast<int>(std::min(side, columns - j)), dst + j * dst_step + i, dst_step);
}

#else

template <class T>
void transpose(const T* src, int64_t src_step, int64_t rows, int64_t columns, arithmetic<T>* dst, int64_t dst_step) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) dst[j * dst_step + i] = widen(src[i * src_step + j]);
}

#endif

}  // namespace fastconv::FASTCONV_ISA
