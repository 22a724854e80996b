// The register tiles of gather.cpp, and the rows of them.
#pragma once

#include <type_traits>

#include "grouped.h"
#include "simd/fma_into.h"
#include "simd/permute.h"

namespace fastconv::FASTCONV_ISA::grouped {

inline constexpr int pair_taps = 3;
// The sums and taps of two rows, a source column, a permutation and one to spare.
inline constexpr int pair_columns = 7;
inline constexpr bool registers_hold_pair = vector_registers >= 2 * (pair_columns + pair_taps) + 3;
// A tile has 1 column, or from 4 to as many as leave registers for 3 taps, a source column and a permutation: 10 with
// AVX2. There fewer than 8 sums wait for each other (2 FMAs a cycle, 4 cycles each).
inline constexpr int least_columns = 4, most_columns = registers_hold_pair ? pair_columns : 10;
inline constexpr int64_t busy_columns = registers_hold_pair ? 1 : 8;
inline constexpr int for_reading = 0, into_l2 = 2;  // of __builtin_prefetch

// Columns of the tiles that cut `count` columns in the least time.
inline int64_t columns_of_tile(int64_t count) {
  if (count == 1) return 1;
  int64_t best = most_columns, least = 0;
  for (int64_t columns = most_columns; columns >= least_columns; --columns) {
    const int64_t time = divide_up(count, columns) * std::max(columns, busy_columns);
    if (least == 0 || time < least) best = columns, least = time;
  }
  return best;
}

// One or two output rows of one slice and one residue of their columns.
template <class A>
struct Rows {
  const A* const* source;  // [source row of any output row]: block 0 of the unit
  int64_t source_rows;
  struct {  // an output row reads source row i through tap row i - shift, in [begin, end)
    int64_t shift, begin, end;
    bool reads(int64_t i) const { return i - shift >= begin && i - shift < end; }
  } taps[2];
  const Phase& columns;
  int64_t tile;          // columns of one
  int64_t first, block;  // staged column of output 0 through tap 0; elements from block to block
  int64_t depth, deep;
  const int32_t* choice;
  const A* w;                     // tap row 0, tap 0 of the phase
  int64_t w_row, w_depth, w_tap;  // elements from tap row to tap row, from channel to channel, from tap to tap
  A* out;                         // of output 0
  int64_t out_step, out_row;      // elements from output to output, from output row to output row
  int used;                       // lanes to store
  const char* ahead;              // what the next rows read at source column 0, or null
  int64_t ahead_rows, ahead_row, ahead_pixel;
};

// Adds what one source row gives to output rows [First, Last) of the tile.
template <bool Alone, int S, int Stride, int Columns, int First, int Last, class A>
[[gnu::always_inline]] inline void add_source_row(const Rows<A>& k, int64_t i, int64_t column, Vec<A>* sum) {
  using V = Vec<A>;
  constexpr int64_t lanes = V::lanes;
  const A* x = k.source[i] + column * lanes;
  const A* w[Last - First];
  unroll<Last - First>([&](auto q)
                           __attribute__((always_inline)) { w[q] = k.w + (i - k.taps[First + q].shift) * k.w_row; });
  for (int64_t d = 0; d < k.depth; d += k.deep, x += k.block) {
    const int64_t count = std::min(k.deep, k.depth - d);
    const int32_t* choice = k.choice;
    for (int64_t c = 0; c < count; ++c, choice += lanes) {
      const auto source = [&](int64_t at) __attribute__((always_inline)) {
        if constexpr (Alone)
          return V::broadcast(x[at * lanes + c]);
        else
          return permute(load(x + at * lanes), Permutation<A>::load(choice));
      };
      if constexpr (S > 0) {  // taps side by side, their number and the stride known
        V taps[(Last - First) * S];
        unroll<Last - First>([&](auto q) __attribute__((always_inline)) {
          unroll<S>([&](auto s) __attribute__((always_inline)) {
            taps[q * S + s] = load(w[q] + s * k.w_tap);
            hold(taps[q * S + s]);
          });
          w[q] += k.w_depth;
        });
        unroll<(Columns - 1) * Stride + S>([&](auto at) __attribute__((always_inline)) {
          V v = source(at);
          hold(v);
          unroll<S>([&](auto s) __attribute__((always_inline)) {
            constexpr int ahead = decltype(at)::value - decltype(s)::value, q = ahead / Stride;
            if constexpr (ahead >= 0 && ahead % Stride == 0 && q < Columns)
              unroll<Last - First>([&](auto row) __attribute__((always_inline)) {
                fma_into(sum[(First + row) * Columns + q], v, taps[row * S + s]);
              });
          });
        });
      } else {
        static_assert(First == 0 && Last == 1);
        for (int64_t s = 0; s < k.columns.taps; ++s) {
          const V tap = load(w[0] + s * k.w_tap);
          unroll<Columns>([&](auto q) __attribute__((always_inline)) {
            fma_into(sum[q], source(q * k.columns.in_step + s * k.columns.dilation), tap);
          });
        }
        w[0] += k.w_depth;
      }
    }
  }
}

template <bool Alone, int S, int Stride, int Height, int Columns, class A>
[[gnu::noinline]] void tile(const Rows<A>& k, int64_t j) {
  using V = Vec<A>;
  V sum[Height * Columns];
  unroll<Height * Columns>([&](auto q) __attribute__((always_inline)) { sum[q] = V::zero(); });
  const int64_t column = k.first + j * k.columns.in_step;
  for (int64_t i = 0; i < k.source_rows; ++i) {
    if constexpr (Height == 1) {
      add_source_row<Alone, S, Stride, Columns, 0, 1>(k, i, column, sum);
    } else {
      const bool above = k.taps[0].reads(i), below = k.taps[1].reads(i);
      if (above && below)
        add_source_row<Alone, S, Stride, Columns, 0, 2>(k, i, column, sum);
      else if (above)
        add_source_row<Alone, S, Stride, Columns, 0, 1>(k, i, column, sum);
      else if (below)
        add_source_row<Alone, S, Stride, Columns, 1, 2>(k, i, column, sum);
    }
  }
  A* out = k.out + j * k.out_step;
  const int64_t left = k.columns.count - j;
  if (left >= Columns && k.used == V::lanes) {
    unroll<Height * Columns>([&](auto q) __attribute__((always_inline)) {
      store(out + q / Columns * k.out_row + q % Columns * k.out_step, sum[q]);
    });
  } else {
    unroll<Height * Columns>([&](auto q) __attribute__((always_inline)) {
      if (q % Columns < left) store(out + q / Columns * k.out_row + q % Columns * k.out_step, sum[q], k.used);
    });
  }
}

template <bool Alone, int S, int Stride, int Height, int Columns, class A>
void tiles_of_rows(const Rows<A>& k) {
  for (int64_t j = 0; j < k.columns.count; j += Columns) {
    if (k.ahead)
      for (int64_t row = 0; row < k.ahead_rows; ++row)
        for (int64_t i = 0; i < Columns * k.columns.in_step; ++i)
          __builtin_prefetch(k.ahead + row * k.ahead_row + (j * k.columns.in_step + i) * k.ahead_pixel, for_reading,
                             into_l2);
    tile<Alone, S, Stride, Height, Columns>(k, j);
  }
}

template <bool Alone, int S, int Stride, int Height, class A>
void columns_of_rows(const Rows<A>& k) {
  if (k.tile == 1) return tiles_of_rows<Alone, S, Stride, Height, 1>(k);
  unroll<most_columns - least_columns + 1>([&](auto i) {
    if (k.tile == least_columns + i) tiles_of_rows<Alone, S, Stride, Height, least_columns + i>(k);
  });
}

// Float64 and the portable build have one tile, for any taps: they are to be right, and quick to compile.
template <class A>
constexpr bool has_tiles_of_taps = std::is_same_v<A, float> && this_isa != Isa::scalar;

// Whether two rows share source rows whose taps stand side by side, and registers hold both.
template <class A>
bool pairs(const Phase& rows, const Phase& columns) {
  return has_tiles_of_taps<A> && registers_hold_pair && rows.dilation == 1 && rows.step == 1 && rows.in_step == 1 &&
         rows.taps > 1 && columns.dilation == 1 && columns.step == 1 && columns.in_step == 1 &&
         columns.taps == pair_taps;
}

template <bool Alone, class A>
void run_rows(const Rows<A>& k, int64_t height) {
  const Phase& columns = k.columns;
  if constexpr (has_tiles_of_taps<A>) {
    if constexpr (registers_hold_pair)
      if (height == 2) return columns_of_rows<Alone, pair_taps, 1, 2>(k);
    if (columns.dilation == 1 || columns.taps == 1) {
      // With stride 2, dgrad of 3 taps leaves 1 or 2 side by side.
      if (columns.in_step == 1 && columns.taps == 1) return columns_of_rows<Alone, 1, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 2) return columns_of_rows<Alone, 2, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 3) return columns_of_rows<Alone, 3, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 5) return columns_of_rows<Alone, 5, 1, 1>(k);
      if (columns.in_step == 2 && columns.taps == 3) return columns_of_rows<Alone, 3, 2, 1>(k);
    }
  }
  columns_of_rows<Alone, 0, 0, 1>(k);
}

}  // namespace fastconv::FASTCONV_ISA::grouped
