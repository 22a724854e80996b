// What winograd.cpp derives from a problem before it runs, beside the Cut: the strides of its arrays and the layout of
// the workspace.
#pragma once

#include <algorithm>

#include "cpu/conv2d/microkernel.h"
#include "squares.h"

namespace fastconv::FASTCONV_ISA::winograd {

inline constexpr int64_t packed_depth = 16;  // channels of a panel packed at a time: 18 KiB, so that they stay in L1

template <class P, class T>
struct Shape : Cut {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;
  static_assert(panel_vectors == tile_vectors);

  Layout layout;
  int64_t strip;                  // tiles of a register tile
  int64_t chunks;                 // of the depth
  int64_t input_row, input_step;  // of V: between tiles, between frequencies
  int64_t sum_row, sum_step;      // of M
  int64_t filter_step;            // of U, between frequencies

  Shape(const Problem& p, int threads) : Cut(p, threads, P::outputs, lanes, sizeof(A)) {
    layout = p.layout;
    strip = width == lanes ? max_tile_rows : tile_rows;
    chunks = divide_up(channels, depth_chunk);
    input_row = spread<A>(round_up(by_panels ? std::min(channels, depth_chunk) : channels, lanes));
    sum_row = spread<A>(group * width);
    input_step = spread<A>(block * input_row), sum_step = spread<A>(block * sum_row);
    filter_step = spread<A>(whole_filter() ? panels * channels * width : std::min(depth_chunk, channels) * width);
  }

  // Whether U of all panels lies together, [frequency][panel][channel][width]; else a panel's lasts while it is used.
  bool whole_filter() const { return !by_panels; }
  int64_t filter_elements() const { return frequencies * filter_step; }
  int64_t packed_elements() const { return taps * channels * round_up(columns, lanes); }
  // Registers of a panel that hold channels.
  int vectors(int64_t panel) const {
    return static_cast<int>(divide_up(std::min(width, columns - panel * width), lanes));
  }
};

template <class P, class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  SquareScratch<InputStep<P>, A> square;
  const A** input_rows;  // [tile] of V, and of M
  A** sum_rows;
  A* input;   // V of a block, or of all tiles and a chunk of channels
  A* sums;    // M of a block, or of a group of panels
  A* filter;  // U of a panel and a chunk
  A* packed;
  A* tile;  // NCHW: [outputs][outputs of a run][channels of a panel]

  Private(Arena& arena, const Shape<P, T>& s)
      : square(arena, Squares<InputStep<P>, T>::stage_size(s.layout, s.channels, P::outputs)),
        input_rows(arena.take<const A*>(s.block)),
        sum_rows(arena.take<A*>(s.block)),
        input(arena.take<A>(P::frequencies * s.input_step)),
        sums(arena.take<A>(P::frequencies * s.sum_step)),
        filter(arena.take<A>(s.whole_filter() ? 0 : s.filter_elements())),
        packed(arena.take<A>(s.taps * packed_depth * s.width)),
        tile(arena.take<A>(s.layout == Layout::nchw ? P::outputs * run_tiles * P::outputs * s.width : 0)) {}
};

template <class P, class T>
struct Work {
  using A = arithmetic<T>;
  A* zeros;   // a pixel of the padding
  A* start;   // what sums start from
  A* filter;  // U of all panels
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Shape<P, T>& s, int thread_count)
      : zeros(arena.take<A>(s.channels)),
        start(arena.take<A>(s.width)),
        filter(arena.take<A>(s.whole_filter() ? s.filter_elements() : 0)) {
    Arena one(nullptr);
    Private<P, T>(one, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

}  // namespace fastconv::FASTCONV_ISA::winograd
