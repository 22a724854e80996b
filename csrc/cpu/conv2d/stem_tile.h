// The register tile of convolutions with few input channels: M neighbouring pixels x V vectors of output channels. All
// pixels of a tile lie `step` apart, and element k of any of them lies at the same `offset[k]`, so that the whole
// depth, taps and channels alike, is one loop.
#pragma once

#include "microkernel.h"

namespace fastconv::FASTCONV_ISA {

template <class A>
struct StemTile : TileEnd<A> {
  const A* x;             // the first pixel
  int64_t step;           // elements between neighbouring pixels
  const int64_t* offset;  // [depth], in elements
  int64_t depth;
  const A* weights;  // [depth][V lanes]
  const A* start;    // V lanes: what the sums start from
};

template <class A>
using StemTileFunction = void (*)(const StemTile<A>&);

template <class A, int M, int V>
void multiply_stem_tile(const StemTile<A>& t) {
  constexpr int lanes = Vec<A>::lanes;
  Vec<A> acc[M][V];
  start_tile(acc, t.start, t);

  const A* weights = t.weights;
  const int64_t step = t.step;
  for (int64_t k = 0; k < t.depth; ++k, weights += V * lanes) {
    Vec<A> w[V];
    unrolled<V>([&](auto v) __attribute__((always_inline)) { w[v] = load(weights + v * lanes); });
    const A* x = t.x + t.offset[k];
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      const Vec<A> pixel = Vec<A>::broadcast(*x);
      unrolled<V>([&](auto v) __attribute__((always_inline)) { fma_into(acc[i][v], pixel, w[v]); });
      x += step;
    });
  }
  finish_tile(acc, t);
}

// The instantiation for `rows` pixels and `vectors` vectors.
template <class A>
StemTileFunction<A> stem_tile_function(int rows, int vectors) {
  static constexpr auto wide = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<StemTileFunction<A>, sizeof...(i)>{multiply_stem_tile<A, i + 1, tile_vectors>...};
  }(std::make_integer_sequence<int, tile_rows>{});
  static constexpr auto narrow = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<StemTileFunction<A>, sizeof...(i)>{multiply_stem_tile<A, i + 1, 1>...};
  }(std::make_integer_sequence<int, max_tile_rows>{});
  return vectors == 1 ? narrow[rows - 1] : wide[rows - 1];
}

}  // namespace fastconv::FASTCONV_ISA
