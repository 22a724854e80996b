// How a Winograd kernel reads a map: overlapping squares of pixels, one a tile, each transformed channel by channel.
#pragma once

#include <algorithm>

#include "cpu/arena.h"
#include "cut.h"
#include "simd/transpose.h"
#include "transforms.h"

namespace fastconv::FASTCONV_ISA::winograd {

using namespace fastconv::winograd;

inline constexpr int64_t run_tiles = 8;  // of one row of tiles treated together

// Rows of `count` elements that neither share an L1 set with their neighbours nor straddle cache lines.
template <class A>
int64_t spread(int64_t count) {
  constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(A));
  return (divide_up(count, line) | 1) * line;
}

// Neighbouring tiles of one row of tiles.
struct Run {
  int64_t tile, count;  // the first of all, and how many
  int64_t n, y, x;      // image, and the first pixel that the first one writes
};

// The tiles of all images.
struct Tiling {
  AxisTiles h, w;

  Run run(int64_t first, int64_t last) const {
    const int64_t row = first / w.tiles;
    return {first, last - first, row / h.tiles, h.first(row % h.tiles), w.first(first % w.tiles)};
  }
  template <class F>
  void each_run(int64_t first, int64_t last, F&& f) const {
    for (int64_t t = first; t < last;) {
      const int64_t end = std::min({last, t + run_tiles, (t / w.line + 1) * w.line});
      f(run(t, end));
      t = end;
    }
  }
};

// What reading a run needs beside the map.
template <class Step, class A>
struct SquareScratch {
  const void** pixel;  // [from][from] of one tile: of T, or of A in the stage
  A* stage;            // NCHW: [from][stage_pixels][channels] of a run

  SquareScratch(Arena& arena, int64_t stage)
      : pixel(arena.take<const void*>(Step::from * Step::from)), stage(arena.take<A>(stage)) {}
};

// Step makes Step::to numbers of Step::from, along each axis (transforms.h).
template <class Step, class T>
class Squares {
  using A = arithmetic<T>;

 public:
  // Tiles lie `step` pixels of a line apart; h and w say where the first one starts. zeros: channels of them.
  Squares(const T* map, Layout layout, int64_t channels, const AxisTiles& h, const AxisTiles& w, int64_t step,
          const A* zeros)
      : map_(map),
        planes_(layout == Layout::nchw),
        channels_(channels),
        h_(h),
        w_(w),
        step_(step),
        stage_row_(stage_row(channels)),
        zeros_(zeros) {}

  // Elements of the stage: of up to depth_chunk channels of a run.
  static int64_t stage_size(Layout layout, int64_t channels, int64_t step) {
    return layout == Layout::nchw ? Step::from * ((run_tiles - 1) * step + Step::from) * stage_row(channels) : 0;
  }

  // Channels [first, first + count) of a run, count up to depth_chunk. The first tile's frequency 0 goes to `out`;
  // tiles lie tile_step apart there, frequencies frequency_step, and zeros fill the last register.
  void transform(const Run& run, int64_t first, int64_t count, const SquareScratch<Step, A>& scratch, A* out,
                 int64_t tile_step, int64_t frequency_step) const {
    const int64_t y = run.y + h_.origin, x = run.x + w_.origin;
    if (!planes_) {
      const int64_t row = w_.source * channels_;
      const T* corner = map_ + (run.n * h_.source + y) * row + x * channels_ + first;
      return squares(run, y, x, corner, h_.dilation * row, w_.dilation * channels_, count, scratch, out, tile_step,
                     frequency_step);
    }
    const int64_t pixels = (run_tiles - 1) * step_ + Step::from;
    for (int64_t i = 0, row = y; i < Step::from; ++i, row += h_.dilation)
      if (row >= 0 && row < h_.source)
        stage(map_ + ((run.n * channels_ + first) * h_.source + row) * w_.source, x,
              (run.count - 1) * step_ + Step::from, count, scratch.stage + i * pixels * stage_row_);
    squares(run, y, x, static_cast<const A*>(scratch.stage), pixels * stage_row_, stage_row_, count, scratch, out,
            tile_step, frequency_step);
  }

 private:
  static int64_t stage_row(int64_t channels) { return spread<A>(std::min(channels, depth_chunk)); }

  // Of `count` planes from `row` on, pixels x, x + dilation, ... of a row as `out`[pixel][channel], where inside.
  void stage(const T* row, int64_t x, int64_t pixels, int64_t count, A* out) const {
    const int64_t plane = h_.source * w_.source, step = w_.dilation;
    const int64_t begin = x < 0 ? divide_up(-x, step) : 0, end = std::min(pixels, divide_up(w_.source - x, step));
    if (begin >= end) return;
    if (step == 1)
      return fastconv::FASTCONV_ISA::transpose(row + x + begin, plane, count, end - begin, out + begin * stage_row_,
                                               stage_row_);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = begin; i < end; ++i) out[i * stage_row_ + c] = widen(row[c * plane + x + i * step]);
  }

  // `corner` is where the first pixel of the first tile lies, or would lie; `row` and `pixel_step` lead to its
  // neighbours.
  template <class S>
  void squares(const Run& run, int64_t y, int64_t x, const S* corner, int64_t row, int64_t pixel_step, int64_t count,
               const SquareScratch<Step, A>& scratch, A* out, int64_t tile_step, int64_t frequency_step) const {
    const S** pixel = reinterpret_cast<const S**>(scratch.pixel);
    const S* zeros = reinterpret_cast<const S*>(zeros_);
    const auto inside = [](int64_t at, const AxisTiles& a) { return at >= 0 && at < a.source; };
    for (int64_t t = 0; t < run.count; ++t, x += step_ * w_.dilation, corner += step_ * pixel_step) {
      for (int64_t i = 0; i < Step::from; ++i)
        for (int64_t j = 0; j < Step::from; ++j)
          pixel[i * Step::from + j] = inside(y + i * h_.dilation, h_) && inside(x + j * w_.dilation, w_)
                                          ? corner + i * row + j * pixel_step
                                          : zeros;
      if (!planes_) fetch(corner + Step::from * pixel_step, row, pixel_step, count);
      transform_square<Step>(pixel, count, out + t * tile_step, frequency_step);
    }
  }

  // What the next tile reads beside this one's pixels: rows of a few pixels are too short for the hardware to foresee.
  template <class S>
  void fetch(const S* first, int64_t row, int64_t pixel_step, int64_t count) const {
    for (int64_t i = 0; i < Step::from; ++i)
      for (int64_t j = 0; j < step_; ++j)
        for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(S)); byte += cache_line)
          __builtin_prefetch(reinterpret_cast<const char*>(first + i * row + j * pixel_step) + byte, 0, 2);
  }

  const T* map_;
  bool planes_;
  int64_t channels_;
  AxisTiles h_, w_;
  int64_t step_;       // pixels of a line from one tile to the next
  int64_t stage_row_;  // channels of a staged pixel
  const A* zeros_;
};

}  // namespace fastconv::FASTCONV_ISA::winograd
