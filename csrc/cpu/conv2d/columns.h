// Columns of an im2col matrix, packed on the way into the register tile: never stored as a whole.
#pragma once

#include "cpu/epilogue.h"
#include "simd/load_between.h"
#include "tile.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

// The columns one group of one walk reads from NCHW planes. Column index: pixels of all images in a row, image by
// image. Row index: channel · taps + tap, the order of a KCRS filter.
template <class T>
struct Columns {
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int most = Tile<A>::columns;

  Walk h, w;
  const T* source;     // first channel of the group in the first image
  int64_t image_step;  // elements from one image to the next
  int64_t plane;       // elements of a channel

  int64_t taps() const { return h.taps * w.taps; }
  int64_t pixels() const { return h.count * w.count; }

  // Rows [d0, d1) of columns [f0, f0 + count) to dst, `width` (a multiple of the register, at most `most`) to a row;
  // what has no source is zero.
  void pack(int64_t d0, int64_t d1, int64_t f0, int64_t count, int64_t width, A* dst) const {
    const Start start{f0 / pixels(), f0 % pixels() / w.count, f0 % w.count};
    for (int64_t tap = 0; tap < taps(); ++tap) {
      const int64_t first = d0 > tap ? divide_up(d0 - tap, taps()) : 0;
      const int64_t last = d1 > tap ? divide_up(d1 - tap, taps()) : 0;
      if (first >= last) continue;
      Piece pieces[most];
      const int found = find_pieces(tap, start, count, pieces);
      A* row = dst + (first * taps() + tap - d0) * width;
      const T* from = source + first * plane;
      const int64_t step = taps() * width;
      if (w.stride > 2)
        copy_strided(from, last - first, pieces, found, width, step, row);
      else if (w.stride == 1 && whole(pieces, found, width))
        copy_whole(from + pieces[0].from, last - first, width, step, row);
      else
        copy_pieces(from, last - first, pieces, found, width, step, row);
    }
  }

 private:
  // Lanes [first, last) of register `at` hold consecutive outputs of one row; lane 0 would read source[from].
  struct Piece {
    int at, first, last;
    int64_t from;
  };

  struct Start {
    int64_t image, i, j;
  };

  int find_pieces(int64_t tap, Start start, int64_t count, Piece* pieces) const {
    const int64_t tr = tap / w.taps, ts = tap % w.taps;
    auto [image, i, j] = start;
    int found = 0;
    for (int64_t at = 0; at < count;) {
      const int64_t length = std::min(count - at, w.count - j);
      const int64_t row = h.source(i, tr);
      if (row >= 0 && row < h.size) {
        int64_t first, last;
        w.inside(ts, j, j + length, first, last);
        const int64_t from = image * image_step + row * w.size + w.source(j, ts) - at * w.stride;
        add(at + first - j, at + last - j, from, pieces, found);
      }
      at += length, j = 0;
      if (++i == h.count) i = 0, ++image;
    }
    return found;
  }

  // Columns [begin, end), of which column c reads source[from + c · stride], cut at registers. Rows that follow each
  // other in memory grow together.
  void add(int64_t begin, int64_t end, int64_t from, Piece* pieces, int& found) const {
    while (begin < end) {
      const int at = static_cast<int>(begin / V::lanes), first = static_cast<int>(begin % V::lanes);
      const int last = static_cast<int>(std::min<int64_t>(V::lanes, first + end - begin));
      const int64_t base = from + at * V::lanes * w.stride;
      Piece* before = found > 0 ? pieces + found - 1 : nullptr;
      if (before && before->at == at && before->last == first && before->from == base)
        before->last = last;
      else
        pieces[found++] = {at, first, last, base};
      begin += last - first;
    }
  }

  static bool whole(const Piece* pieces, int found, int64_t width) {
    if (found * int64_t{V::lanes} != width) return false;
    for (int i = 0; i < found; ++i)
      if (pieces[i].first != 0 || pieces[i].last != V::lanes || pieces[i].from != pieces[0].from + i * V::lanes)
        return false;
    return true;
  }

  void copy_whole(const T* from, int64_t channels, int64_t width, int64_t step, A* row) const {
    for (; channels > 0; --channels, from += plane, row += step)
      for (int64_t at = 0; at < width; at += V::lanes) load(from + at).store(row + at);
  }

  // Lanes [first, last) from p[2 · lane].
  static V load_evens(const T* p, int first, int last) {
    const int begin = 2 * first, end = 2 * last - 1;
    const V low = load_between(p, std::min(begin, V::lanes), std::min(end, V::lanes));
    const V high = load_between(p + V::lanes, std::max(begin - V::lanes, 0), std::max(end - V::lanes, 0));
    return evens(low, high);
  }

  void copy_pieces(const T* from, int64_t channels, const Piece* pieces, int found, int64_t width, int64_t step,
                   A* row) const {
    for (; channels > 0; --channels, from += plane, row += step) {
      const Piece* piece = pieces;
      for (int64_t at = 0; at < width / V::lanes; ++at) {
        V v = V::zero();
        for (; piece < pieces + found && piece->at == at; ++piece)
          v = either(v, w.stride == 1 ? load_between(from + piece->from, piece->first, piece->last)
                                      : load_evens(from + piece->from, piece->first, piece->last));
        v.store(row + at * V::lanes);
      }
    }
  }

  void copy_strided(const T* from, int64_t channels, const Piece* pieces, int found, int64_t width, int64_t step,
                    A* row) const {
    const int64_t stride = w.stride;
    for (; channels > 0; --channels, from += plane, row += step) {
      for (int64_t at = 0; at < width; at += V::lanes) V::zero().store(row + at);
      for (const Piece* piece = pieces; piece < pieces + found; ++piece) {
        const T* src = from + piece->from;
        A* dst = row + piece->at * V::lanes;
        for (int lane = piece->first; lane < piece->last; ++lane) dst[lane] = widen(src[lane * stride]);
      }
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA
