// The register tile every dense convolution is built from: M pixels x V vectors of output channels, held in registers
// while a list of taps goes by. A tap gives each pixel a pointer to a run of `run` consecutive elements (input
// channels); the weights come packed as [tap][run][V lanes]. Per element of the run: V weight loads, M broadcasts, M·V
// FMAs.
//
// Full tile: 6 x 16 floats on AVX2 (12 accumulators, 2 weights, 1 broadcast), 14 x 32 on AVX-512 (28, 2, 1). Fewer rows
// and one vector are instantiations of the same template. A tile of one vector may have twice the rows.
#pragma once

#include <algorithm>
#include <array>

#include "ahead.h"
#include "core/machine.h"
#include "simd/fma_into.h"
#include "simd/stream.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

inline constexpr int tile_vectors = 2;
// Registers left beside the accumulators: the weights, one broadcast, and one to spare where the file is large.
inline constexpr int tile_rows = (vector_registers - tile_vectors - 1) / tile_vectors;
inline constexpr int max_tile_rows = tile_vectors * tile_rows;

// Where a tile's sums go and what is done to them on the way.
template <class A>
struct TileEnd {
  A* const* out;                   // [pixel]
  int64_t out_offset;              // added to every out pointer
  int64_t out_ahead = 0;           // elements from there to the lines that are fetched for writing
  const A* const* sums = nullptr;  // [pixel], of the depths before, or null
  const A* const* residual;        // [pixel], or null
  int64_t channel;                 // added to every pointer of sums and residual
  bool clamped;                    // the activation is a clamp to [low, high]
  A low, high;
  int last;     // lanes of the last vector that exist
  bool stream;  // out passes the caches by; its registers are whole and aligned
};

// E: what rows and weights hold.
template <class A, class E = A>
struct PixelTile : TileEnd<A> {
  const E* const* rows;  // [tap][pixel]
  int64_t taps;
  int64_t run;
  int64_t offset;    // added to every row pointer: the first channel of a group
  const E* weights;  // [tap][run][V lanes]
  const A* start;    // V lanes: what the sums start from (the bias, or zeros)
  Ahead ahead;
};

template <class A>
using PixelTileFunction = void (*)(const PixelTile<A>&);

template <class A, int M, int V>
[[gnu::always_inline]] inline void start_tile(Vec<A> (&acc)[M][V], const A* from, const TileEnd<A>& t) {
  constexpr int lanes = Vec<A>::lanes;
  unrolled<V>([&](auto v) __attribute__((always_inline)) {
    const Vec<A> start = load(from + v * lanes);
    unrolled<M>([&](auto i) __attribute__((always_inline)) { acc[i][v] = start; });
  });
  // The stores come in one burst: their lines are fetched while the sums are still running.
  if (!t.stream)
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      const A* out = t.out[i] + t.out_offset + t.out_ahead;
      __builtin_prefetch(out, 1);
      if constexpr (V * sizeof(Vec<A>) > cache_line) __builtin_prefetch(out + cache_line / sizeof(A), 1);
    });
}

template <class A, int M, int V>
[[gnu::always_inline]] inline void add_to_tile(Vec<A> (&acc)[M][V], const A* const* rows, const TileEnd<A>& t) {
  constexpr int lanes = Vec<A>::lanes;
  unrolled<M>([&](auto i) __attribute__((always_inline)) {
    const A* row = rows[i] + t.channel;
    unrolled<V>([&](auto v) __attribute__((always_inline)) {
      const bool cut = v == V - 1 && t.last < lanes;
      acc[i][v] = acc[i][v] + (cut ? load(row + v * lanes, t.last) : load(row + v * lanes));
    });
  });
}

template <class A, int M, int V>
[[gnu::always_inline]] inline void finish_tile(Vec<A> (&acc)[M][V], const TileEnd<A>& t) {
  constexpr int lanes = Vec<A>::lanes;
  const bool partial = t.last < lanes;
  if (t.sums) add_to_tile(acc, t.sums, t);
  if (t.residual) add_to_tile(acc, t.residual, t);
  if (t.clamped) {
    const Vec<A> low = Vec<A>::broadcast(t.low), high = Vec<A>::broadcast(t.high);
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      unrolled<V>([&](auto v) __attribute__((always_inline)) { acc[i][v] = at_most(at_least(acc[i][v], low), high); });
    });
  }
  if (t.stream)
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      A* out = t.out[i] + t.out_offset;
      unrolled<V>([&](auto v) __attribute__((always_inline)) { stream(out + v * lanes, acc[i][v]); });
    });
  else if (!partial)
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      A* out = t.out[i] + t.out_offset;
      unrolled<V>([&](auto v) __attribute__((always_inline)) { store(out + v * lanes, acc[i][v]); });
    });
  else
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      A* out = t.out[i] + t.out_offset;
      unrolled<V - 1>([&](auto v) __attribute__((always_inline)) { store(out + v * lanes, acc[i][v]); });
      acc[i][V - 1].store(out + (V - 1) * lanes, t.last);
    });
}

template <class A, int M, int V>
void multiply_tile(const PixelTile<A>& t) {
  constexpr int lanes = Vec<A>::lanes;
  Vec<A> acc[M][V];
  start_tile(acc, t.start, t);

  const A* weights = t.weights;
  const A* const* rows = t.rows;
  const char* ahead = t.ahead.at;
  const int64_t end = t.offset + t.run;
  for (int64_t tap = 0; tap < t.taps; ++tap, rows += M) {
    const A* pixel[M];
    unrolled<M>([&](auto i) __attribute__((always_inline)) { pixel[i] = rows[i]; });
    for (int64_t c = t.offset; c < end; ahead += t.ahead.jump) {
      const int64_t stop = c + std::min(t.ahead.run, end - c);
      for (; c < stop; ++c, weights += V * lanes, ahead += t.ahead.step) {
        __builtin_prefetch(ahead, for_reading, into_l2);
        Vec<A> w[V];
        unrolled<V>([&](auto v) __attribute__((always_inline)) { w[v] = load(weights + v * lanes); });
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
          const Vec<A> x = Vec<A>::broadcast(pixel[i][c]);
          unrolled<V>([&](auto v) __attribute__((always_inline)) { fma_into(acc[i][v], x, w[v]); });
        });
      }
    }
  }

  finish_tile(acc, t);
}

// The instantiation for `rows` pixels and `vectors` vectors.
template <class A>
PixelTileFunction<A> tile_function(int rows, int vectors) {
  static constexpr auto wide = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<PixelTileFunction<A>, sizeof...(i)>{multiply_tile<A, i + 1, tile_vectors>...};
  }(std::make_integer_sequence<int, tile_rows>{});
  static constexpr auto narrow = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<PixelTileFunction<A>, sizeof...(i)>{multiply_tile<A, i + 1, 1>...};
  }(std::make_integer_sequence<int, max_tile_rows>{});
  return vectors == 1 ? narrow[rows - 1] : wide[rows - 1];
}

}  // namespace fastconv::FASTCONV_ISA
