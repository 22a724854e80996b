// What winograd.cpp derives from a problem before it runs: the tiles, who shares what (Split), the block sizes and the
// layout of the workspace.
#pragma once

#include <algorithm>

#include "core/machine.h"
#include "cpu/conv2d/igemm_shape.h"
#include "transforms.h"

namespace fastconv::FASTCONV_ISA::winograd {

using igemm::Arena, igemm::ceil_div, igemm::round_up;

// Input channels summed in registers before the sum goes to memory. It fixes the order of every sum, so it is a
// constant.
inline constexpr int64_t depth_chunk = 128;
inline constexpr int64_t packed_depth = 16;  // channels of a panel packed at a time: 18 KiB, so that they stay in L1
inline constexpr int64_t run_tiles = 8;      // of one row of tiles treated together
inline constexpr int64_t enough_tiles = 24;  // a block of so many uses a filter often enough
inline constexpr int64_t wide_block = 56;    // where the sums of a block do not fit L2 anyway
inline constexpr int64_t most_shared = 128;  // tiles whose sums for one panel fit L2

// One spatial axis of the pass: fprop reads x from -pad on, dgrad reads dy through the flipped filter.
struct AxisTiles {
  int64_t source, written;
  int64_t origin;  // source position of the first tile's first row
  int64_t tiles;

  AxisTiles(const Axis& a, bool dgrad, int64_t outputs)
      : source(dgrad ? a.out : a.in),
        written(dgrad ? a.in : a.out),
        origin(dgrad ? a.pad_lo - (filter_size - 1) : -a.pad_lo),
        tiles(ceil_div(written, outputs)) {}
};

// Rows of `count` elements that neither share an L1 set with their neighbours nor straddle cache lines.
template <class A>
int64_t spread(int64_t count) {
  constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(A));
  return (ceil_div(count, line) | 1) * line;
}

template <class P, class T>
struct Shape {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  AxisTiles h, w;
  bool dgrad, planes;         // planes: NCHW
  int64_t channels, columns;  // of the source; written
  int64_t tiles;              // of all images
  int vectors, strip;         // of the register tile
  int64_t width, panels;      // channels of a panel
  int64_t chunks;             // of the depth
  bool by_panels;             // threads split the output channels and share the transformed input
  int64_t blocks;             // of tiles, else
  int64_t block;              // tiles of one, at most
  int64_t input_row, input_step;    // of V: between tiles, between frequencies
  int64_t sum_row, sum_step;        // of M
  int64_t filter_step;              // of U, between frequencies
  int64_t runs;                     // of one row of tiles
  int64_t stage_row, stage_pixels;  // of NCHW

  Shape(const Problem& p, int threads)
      : h(p.h, p.pass == Pass::dgrad, P::outputs), w(p.w, p.pass == Pass::dgrad, P::outputs) {
    dgrad = p.pass == Pass::dgrad, planes = p.layout == Layout::nchw;
    channels = dgrad ? p.k : p.c, columns = p.written_channels();
    tiles = p.n * h.tiles * w.tiles;
    vectors = columns <= lanes ? 1 : tile_vectors;
    strip = vectors == 1 ? max_tile_rows : tile_rows;
    width = vectors * lanes, panels = ceil_div(columns, width);
    chunks = ceil_div(channels, depth_chunk);
    by_panels = tiles <= most_shared && tiles <= columns && panels > 1;
    input_row = spread<A>(round_up(channels, lanes));
    sum_row = spread<A>(by_panels ? width : panels * width);
    const int64_t tile_bytes = P::frequencies * (input_row + sum_row) * static_cast<int64_t>(sizeof(A));
    const int64_t fitting = machine().l2 * 3 / 4 / tile_bytes;
    const int64_t wanted = fitting >= enough_tiles ? fitting : wide_block;
    // A whole number of blocks for every thread.
    blocks = by_panels ? 1 : std::min(tiles, round_up(ceil_div(tiles, wanted), threads));
    block = ceil_div(tiles, blocks);
    input_step = spread<A>(block * input_row), sum_step = spread<A>(block * sum_row);
    filter_step = spread<A>(by_panels ? std::min(depth_chunk, channels) * width : panels * channels * width);
    runs = ceil_div(w.tiles, run_tiles);
    stage_row = spread<A>(std::min(channels, depth_chunk)), stage_pixels = (run_tiles - 1) * P::outputs + P::size;
  }

  int panel_vectors(int64_t panel) const {
    return static_cast<int>(ceil_div(std::min(width, columns - panel * width), lanes));
  }
};

template <class P, class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  const void** pixel;     // [size][size] of one tile: of T, or of A in the stage
  const A** input_rows;   // [tile] of V, and of M
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
        packed(arena.take<A>(filter_size * filter_size * packed_depth * s.width)),
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
