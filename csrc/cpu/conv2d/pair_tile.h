// The register tile over bfloat16 pairs: microkernel.h's, with two neighbouring input channels in each lane and each
// broadcast. The weights come packed as [tap][run / 2][V lanes][2]; `run` is even.
#pragma once

#include "microkernel.h"
#include "simd/pairs.h"

namespace fastconv::FASTCONV_ISA {

using PairTile = PixelTile<float, bf16>;
using PairTileFunction = void (*)(const PairTile&);

template <int M, int V>
void multiply_pair_tile(const PairTile& t) {
  constexpr int lanes = Vec<float>::lanes;
  Vec<float> acc[M][V];
  start_tile(acc, t.start, t);
  const bf16* weights = t.weights;
  const bf16* const* rows = t.rows;
  const char* ahead = t.ahead.at;
  const int64_t end = t.offset + t.run;
  for (int64_t tap = 0; tap < t.taps; ++tap, rows += M) {
    const bf16* pixel[M];
    unrolled<M>([&](auto i) __attribute__((always_inline)) { pixel[i] = rows[i]; });
    for (int64_t c = t.offset; c < end; ahead += t.ahead.jump) {
      const int64_t stop = c + std::min(t.ahead.run, end - c);
      for (; c < stop; c += 2, weights += 2 * V * lanes, ahead += 2 * t.ahead.step) {
        __builtin_prefetch(ahead, for_reading, into_l2);
        Vec<float> w[V];
        unrolled<V>([&](auto v) __attribute__((always_inline)) { w[v] = load_pairs(weights + 2 * v * lanes); });
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
          const Vec<float> x = broadcast_pair(pixel[i] + c);
          unrolled<V>([&](auto v) __attribute__((always_inline)) { dot_into(acc[i][v], x, w[v]); });
        });
      }
    }
  }
  finish_tile(acc, t);
}

// The instantiation for `rows` pixels and `vectors` vectors.
inline PairTileFunction pair_tile_function(int rows, int vectors) {
  static constexpr auto wide = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<PairTileFunction, sizeof...(i)>{multiply_pair_tile<i + 1, tile_vectors>...};
  }(std::make_integer_sequence<int, tile_rows>{});
  static constexpr auto narrow = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<PairTileFunction, sizeof...(i)>{multiply_pair_tile<i + 1, 1>...};
  }(std::make_integer_sequence<int, max_tile_rows>{});
  return vectors == 1 ? narrow[rows - 1] : wide[rows - 1];
}

}  // namespace fastconv::FASTCONV_ISA
