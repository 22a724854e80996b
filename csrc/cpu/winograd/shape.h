// What winograd.cpp derives from a problem before it runs, beside the Cut: the strides of its arrays and the layout of
// the workspace.
#pragma once

#include <algorithm>

#include "cpu/conv2d/igemm_shape.h"
#include "cut.h"
#include "transforms.h"

namespace fastconv::FASTCONV_ISA::winograd {

using igemm::Arena, igemm::ceil_div, igemm::round_up;
using namespace fastconv::winograd;

inline constexpr int64_t packed_depth = 16;  // channels of a panel packed at a time: 18 KiB, so that they stay in L1
inline constexpr int64_t run_tiles = 8;      // of one row of tiles treated together

// Rows of `count` elements that neither share an L1 set with their neighbours nor straddle cache lines.
template <class A>
int64_t spread(int64_t count) {
  constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(A));
  return (ceil_div(count, line) | 1) * line;
}

template <class P, class T>
struct Shape : Cut {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;
  static_assert(panel_vectors == tile_vectors);

  bool planes;                      // NCHW
  int64_t strip;                    // tiles of a register tile
  int64_t chunks;                   // of the depth
  int64_t runs;                     // of one row of tiles
  int64_t input_row, input_step;    // of V: between tiles, between frequencies
  int64_t sum_row, sum_step;        // of M
  int64_t filter_step;              // of U, between frequencies
  int64_t stage_row, stage_pixels;  // of NCHW

  Shape(const Problem& p, int threads) : Cut(p, threads, P::outputs, lanes, sizeof(A)) {
    planes = p.layout == Layout::nchw;
    strip = width == lanes ? max_tile_rows : tile_rows;
    chunks = ceil_div(channels, depth_chunk);
    runs = ceil_div(w.tiles, run_tiles);
    input_row = spread<A>(round_up(channels, lanes));
    sum_row = spread<A>(by_panels ? width : panels * width);
    input_step = spread<A>(block * input_row), sum_step = spread<A>(block * sum_row);
    filter_step = spread<A>(by_panels ? std::min(depth_chunk, channels) * width : panels * channels * width);
    stage_row = spread<A>(std::min(channels, depth_chunk)), stage_pixels = (run_tiles - 1) * P::outputs + P::size;
  }

  // Registers of a panel that hold channels.
  int vectors(int64_t panel) const {
    return static_cast<int>(ceil_div(std::min(width, columns - panel * width), lanes));
  }
};

template <class P, class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  const void** pixel;    // [size][size] of one tile: of T, or of A in the stage
  const A** input_rows;  // [tile] of V, and of M
  A** sum_rows;
  A* input;   // V of a block
  A* sums;    // M of a block, or of one panel
  A* filter;  // U of a panel and a chunk
  A* packed;
  A* stage;  // NCHW: [size][stage_pixels][channels] of a run
  A* tile;   // NCHW: [outputs][outputs of a run][channels of a panel]

  Private(Arena& arena, const Shape<P, T>& s)
      : pixel(arena.take<const void*>(P::frequencies)),
        input_rows(arena.take<const A*>(s.block)),
        sum_rows(arena.take<A*>(s.block)),
        input(arena.take<A>(s.by_panels ? 0 : P::frequencies * s.input_step)),
        sums(arena.take<A>(P::frequencies * s.sum_step)),
        filter(arena.take<A>(s.by_panels ? P::frequencies * s.filter_step : 0)),
        packed(arena.take<A>(filter_taps * packed_depth * s.width)),
        stage(arena.take<A>(s.planes ? P::size * s.stage_pixels * s.stage_row : 0)),
        tile(arena.take<A>(s.planes ? P::outputs * run_tiles * P::outputs * s.width : 0)) {}
};

template <class P, class T>
struct Work {
  using A = arithmetic<T>;
  A* zeros;   // a pixel of the padding
  A* start;   // what sums start from
  A* input;   // V of all tiles
  A* filter;  // U of all panels
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Shape<P, T>& s, int thread_count)
      : zeros(arena.take<A>(s.channels)),
        start(arena.take<A>(s.width)),
        input(arena.take<A>(s.by_panels ? P::frequencies * s.input_step : 0)),
        filter(arena.take<A>(s.by_panels ? 0 : P::frequencies * s.filter_step)) {
    Arena one(nullptr);
    Private<P, T>(one, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

}  // namespace fastconv::FASTCONV_ISA::winograd
