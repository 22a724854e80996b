// Columns of an im2col matrix, packed on the way into the register tile: never stored as a whole.
#pragma once

#include <cstring>

#include "cpu/epilogue.h"
#include "tile.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

// `count` pixels, `stride` apart, widened to dst. May write zeros up to the next full register, but not past `room`.
template <class T>
inline void copy_pixels(const T* src, int64_t stride, int64_t count, arithmetic<T>* dst, int64_t room) {
  using V = Vec<arithmetic<T>>;
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) dst[i] = widen(src[i * stride]);
    return;
  }
  for (int64_t i = 0; i < count; i += V::lanes) {
    const int left = static_cast<int>(std::min<int64_t>(V::lanes, count - i));
    const V v = load(src + i, left);
    if (room - i >= V::lanes)
      v.store(dst + i);
    else
      v.store(dst + i, left);
  }
}

// The columns one group of one walk reads from NCHW planes. Column index: pixels of all images in a row, image by
// image. Row index: channel · taps + tap, the order of a KCRS filter.
template <class T>
struct Columns {
  using A = arithmetic<T>;
  Walk h, w;
  const T* source;     // first channel of the group in the first image
  int64_t image_step;  // elements from one image to the next
  int64_t plane;       // elements of a channel

  int64_t taps() const { return h.taps * w.taps; }
  int64_t pixels() const { return h.count * w.count; }

  struct Run {  // consecutive columns that read consecutive source positions of one row
    int64_t at, count, from;
  };

  // Rows [d0, d1) of columns [f0, f0 + count) to dst, `width` (at most Tile::columns) to a row; the rest is zero.
  void pack(int64_t d0, int64_t d1, int64_t f0, int64_t count, int64_t width, A* dst) const {
    for (int64_t tap = 0; tap < taps(); ++tap) {
      const int64_t first = d0 > tap ? divide_up(d0 - tap, taps()) : 0;
      const int64_t last = d1 > tap ? divide_up(d1 - tap, taps()) : 0;
      if (first >= last) continue;
      Run runs[Tile<A>::columns];
      int64_t covered = 0;
      const int64_t found = find_runs(tap, f0, count, runs, covered);
      for (int64_t c = first; c < last; ++c) {
        A* row = dst + (c * taps() + tap - d0) * width;
        if (covered < width) std::memset(row, 0, static_cast<size_t>(width) * sizeof(A));
        for (int64_t i = 0; i < found; ++i)
          copy_pixels(source + c * plane + runs[i].from, w.stride, runs[i].count, row + runs[i].at, width - runs[i].at);
      }
    }
  }

 private:
  int64_t find_runs(int64_t tap, int64_t f0, int64_t count, Run* runs, int64_t& covered) const {
    const int64_t tr = tap / w.taps, ts = tap % w.taps;
    int64_t image = f0 / pixels(), i = f0 % pixels() / w.count, j = f0 % w.count, found = 0;
    for (int64_t at = 0; at < count;) {
      const int64_t length = std::min(count - at, w.count - j);
      const int64_t row = h.source(i, tr);
      if (row >= 0 && row < h.size) {
        int64_t first, last;
        w.inside(ts, j, j + length, first, last);
        if (first < last) {
          runs[found++] = {at + first - j, last - first, image * image_step + row * w.size + w.source(first, ts)};
          covered += last - first;
        }
      }
      at += length, j = 0;
      if (++i == h.count) i = 0, ++image;
    }
    return found;
  }
};

}  // namespace fastconv::FASTCONV_ISA
