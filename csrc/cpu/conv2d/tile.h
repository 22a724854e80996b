// The register tile of the NCHW kernels and of the weight gradients: an outer product summed over `depth` steps.
#pragma once

#include "ahead.h"
#include "simd/vec.h"

namespace fastconv::FASTCONV_ISA {

template <class A>
struct Tile {
  static constexpr int vectors = 2;
  static constexpr int columns = vectors * Vec<A>::lanes;
  // 14x2 accumulators, 2 columns and a broadcast fill 32 registers; 6x2 fill 16.
  static constexpr int rows = this_isa == Isa::avx512 ? 14 : 6;
};

// c[i][j] = sum over d of a[d·a_step + i] · b[d·b_step + j], added to c when `add` is set. `ahead` is one range.
template <class A>
using TileFunction = void (*)(int64_t depth, const A* a, int64_t a_step, const A* b, int64_t b_step, A* c,
                              int64_t c_step, bool add, Ahead ahead);

// The same with row d of b at b + at[d], and nothing to add to.
template <class A>
using IndirectTile = void (*)(int64_t depth, const A* a, int64_t a_step, const A* b, const int64_t* at, A* c,
                              int64_t c_step);

// The tile of `rows` rows (1 to Tile<A>::rows) and `vectors` registers of columns (1 or 2).
template <class A>
TileFunction<A> tile_for(int64_t rows, int64_t vectors);
template <class A>
IndirectTile<A> indirect_tile_for(int64_t rows, int64_t vectors);

// Rows cut into panels of equal height, so that the last one is not a sliver: 64 rows are 5 panels of 13, not 4 of 14
// and one of 8.
template <class A>
struct RowPanels {
  int64_t total, count, height;
  explicit RowPanels(int64_t rows)
      : total(rows), count((rows + Tile<A>::rows - 1) / Tile<A>::rows), height((rows + count - 1) / count) {
    count = (rows + height - 1) / height;
  }
  int64_t rows(int64_t panel) const { return panel + 1 < count ? height : total - (count - 1) * height; }
};

}  // namespace fastconv::FASTCONV_ISA
