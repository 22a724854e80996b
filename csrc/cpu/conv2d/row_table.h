// Where the pixels of a strip read and write: a table of row pointers, [tap][pixel], and the written positions.
#pragma once

#include "phase.h"

namespace fastconv::FASTCONV_ISA {

// Pixels of channels that lie together.
template <class S>
struct Source {
  const S* base;
  int64_t image, row, pixel;  // strides in elements
};

// Pixels [begin, end) of the phase's grid over all images. What lies outside the source reads `zeros`.
template <class S>
void locate(const Phase& phase, const Source<S>& source, const S* zeros, int64_t begin, int64_t end, const S** rows,
            int64_t* pixel) {
  const AxisPhase &h = phase.h, &w = phase.w;
  if (h.identity() && w.identity() && source.row == w.grid * source.pixel && source.image == h.grid * source.row) {
    for (int64_t i = begin; i < end; ++i) *rows++ = source.base + i * source.pixel, *pixel++ = i;
    return;
  }
  const int64_t count = end - begin, step = w.step * source.pixel;
  int64_t n = begin / phase.grid(), i = begin % phase.grid() / w.grid, j = begin % w.grid;
  for (int64_t m = 0; m < count;) {  // a stretch of one grid row at a time
    const int64_t stretch = std::min(count - m, w.grid - j);
    const int64_t written = (n * h.out_size + h.out_first + i * h.out_step) * w.out_size + w.out_first + j * w.out_step;
    for (int64_t q = 0; q < stretch; ++q) pixel[m + q] = written + q * w.out_step;
    const S** row = rows + m;
    for (int64_t a = 0; a < h.taps; ++a) {
      const int64_t y = i * h.step + h.first + a * h.tap_step;
      if (y < 0 || y >= h.source_size) {
        for (int64_t b = 0; b < w.taps; ++b, row += count) std::fill_n(row, stretch, zeros);
        continue;
      }
      const S* line = source.base + n * source.image + y * source.row;
      for (int64_t b = 0; b < w.taps; ++b, row += count) {
        const int64_t x = j * w.step + w.first + b * w.tap_step;
        const S* at = line + x * source.pixel;
        if (x >= 0 && x + (stretch - 1) * w.step < w.source_size)
          for (int64_t q = 0; q < stretch; ++q) row[q] = at + q * step;
        else
          for (int64_t q = 0; q < stretch; ++q) {
            const int64_t column = x + q * w.step;
            row[q] = column >= 0 && column < w.source_size ? at + q * step : zeros;
          }
      }
    }
    m += stretch, j = 0;
    if (++i == h.grid) i = 0, ++n;
  }
}

}  // namespace fastconv::FASTCONV_ISA
