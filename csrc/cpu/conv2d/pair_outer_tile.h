// tile.h's outer product over bfloat16 pairs: two pixels at a time, for AVX-512.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "simd/pairs.h"
#include "simd/unrolled.h"
#include "tile.h"

namespace fastconv::FASTCONV_ISA {

// `rows` rows of `width` bfloat16 values, widened, to [rows / 2][width] pairs; an odd last row is paired with zeros.
inline void pair_rows(const float* rows, int64_t width, int64_t count, bf16* out) {
  constexpr int lanes = Vec<float>::lanes;
  for (int64_t f = 0; f < count; f += 2, rows += 2 * width, out += 2 * width)
    for (int64_t i = 0; i < width; i += lanes) {
      const int some = static_cast<int>(std::min<int64_t>(lanes, width - i));
      const Vec<float> second = f + 1 < count ? load(rows + width + i, some) : Vec<float>::zero();
      pairs_of(load(rows + i, some), second).store(reinterpret_cast<float*>(out + 2 * i), some);
    }
}

// c[i][j] = sum over steps of the products of the pairs i of a and j of b, added to c when `add` is set. Steps are in
// elements.
using PairOuterTile = void (*)(int64_t steps, const bf16* a, int64_t a_step, const bf16* b, int64_t b_step, float* c,
                               int64_t c_step, bool add);

template <int Rows, int Vectors>
void pair_outer_tile(int64_t steps, const bf16* a, int64_t a_step, const bf16* b, int64_t b_step, float* c,
                     int64_t c_step, bool add) {
  using V = Vec<float>;
  V acc[Rows * Vectors];
  unrolled<Rows * Vectors>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
  for (; steps > 0; --steps, a += a_step, b += b_step) {
    V columns[Vectors];
    unrolled<Vectors>([&](auto v) __attribute__((always_inline)) { columns[v] = load_pairs(b + 2 * v * V::lanes); });
    unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
      const V row = broadcast_pair(a + 2 * i);
      unrolled<Vectors>([&](auto v)
                            __attribute__((always_inline)) { dot_into(acc[i * Vectors + v], row, columns[v]); });
    });
  }
  unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
    unrolled<Vectors>([&](auto v) __attribute__((always_inline)) {
      float* out = c + i * c_step + v * V::lanes;
      (add ? V::load(out) + acc[i * Vectors + v] : acc[i * Vectors + v]).store(out);
    });
  });
}

inline PairOuterTile pair_outer_tile_for(int64_t rows, int64_t vectors) {
  constexpr int most = Tile<float>::vectors;
  static constexpr auto all = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<PairOuterTile, sizeof...(i)>{pair_outer_tile<i / most + 1, i % most + 1>...};
  }(std::make_integer_sequence<int, Tile<float>::rows * most>{});
  return all[static_cast<size_t>((rows - 1) * most + vectors - 1)];
}

}  // namespace fastconv::FASTCONV_ISA
