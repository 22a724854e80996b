// Columns of an im2col matrix, packed on the way into the register tile: never stored as a whole.
#pragma once

#include "core/machine.h"
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
    const Start start = start_of(f0);
    for (int64_t tap = 0; tap < taps(); ++tap) {
      const int64_t first = d0 > tap ? divide_up(d0 - tap, taps()) : 0;
      const int64_t last = d1 > tap ? divide_up(d1 - tap, taps()) : 0;
      if (first < last)
        pack_tap(tap_of(tap), start, source + first * plane, last - first, count, width,
                 dst + (first * taps() + tap - d0) * width);
    }
  }

  // All rows of `channels` channels for columns [f0, f0 + count), a panel of `most` after the other; the last one is
  // as wide as its registers.
  void pack_panels(int64_t channels, int64_t f0, int64_t count, A* dst) const {
    if (flat()) return pack_flat(channels, f0, count, dst);
    const int64_t depth = channels * taps();
    for (int64_t tap = 0; tap < taps(); ++tap) {
      const Tap from = tap_of(tap);
      Start start = start_of(f0);
      for (int64_t f = 0; f < count; f += most, start.advance(most, h.count, w.count)) {
        const int64_t columns = std::min<int64_t>(most, count - f), width = round_up(columns, V::lanes);
        pack_tap(from, start, source, channels, columns, width, dst + f * depth + tap * width);
      }
    }
  }

 private:
  // Lanes [first, last) of register `at` hold consecutive outputs of one row; lane 0 would read source[from].
  struct Piece {
    int at, first, last;
    int64_t from;
  };

  struct Start {  // a column
    int64_t image, i, j;
    void advance(int64_t columns, int64_t rows, int64_t width) {
      for (j += columns; j >= width; j -= width)
        if (++i == rows) i = 0, ++image;
    }
  };
  Start start_of(int64_t f) const { return {f / pixels(), f % pixels() / w.count, f % w.count}; }

  struct Tap {
    int64_t r, s;
    int64_t first, last;  // outputs of a row that read inside the source
  };
  Tap tap_of(int64_t tap) const {
    Tap t{tap / w.taps, tap % w.taps, 0, 0};
    w.inside(t.s, 0, w.count, t.first, t.last);
    return t;
  }

  // Output pixel f reads input pixel f and no other.
  bool flat() const {
    return taps() == 1 && h.stride == 1 && w.stride == 1 && h.offset == 0 && w.offset == 0 && h.count == h.size &&
           w.count == w.size;
  }

  // Runs of panels inside one image are copied a channel at a time, so that memory is read in order; the channels after
  // it are on their way meanwhile.
  void pack_flat(int64_t channels, int64_t f0, int64_t count, A* dst) const {
    constexpr int64_t channels_ahead = 2;
    for (int64_t f = 0; f < count;) {
      const int64_t n = (f0 + f) / pixels(), at = (f0 + f) % pixels();
      const int64_t run = std::min(pixels() - at, count - f) / most * most;
      if (run == 0) {
        const int64_t columns = std::min<int64_t>(most, count - f);
        pack(0, channels, f0 + f, columns, round_up(columns, V::lanes), dst + f * channels);
        f += most;
        continue;
      }
      const T* from = source + n * image_step + at;
      A* to = dst + f * channels;
      for (int64_t c = 0; c < channels; ++c, from += plane, to += most)
        for (int64_t i = 0; i < run; i += most) {
          __builtin_prefetch(from + channels_ahead * plane + i);
          if constexpr (most * sizeof(T) > cache_line)
            __builtin_prefetch(from + channels_ahead * plane + i + cache_line / sizeof(T));
          for (int64_t v = 0; v < most; v += V::lanes) load(from + i + v).store(to + i * channels + v);
        }
      f += run;
    }
  }

  // One tap of `channels` channels; rows of dst lie taps() apart.
  void pack_tap(const Tap& tap, const Start& start, const T* from, int64_t channels, int64_t count, int64_t width,
                A* row) const {
    Piece pieces[most];
    const int found = find_pieces(tap, start, count, pieces);
    const int64_t step = taps() * width;
    if (w.stride > 2)
      copy_strided(from, channels, pieces, found, width, step, row);
    else if (w.stride == 1 && whole(pieces, found, width))
      copy_whole(from + pieces[0].from, channels, width, step, row);
    else
      copy_pieces(from, channels, pieces, found, width, step, row);
  }

  int find_pieces(const Tap& tap, Start start, int64_t count, Piece* pieces) const {
    auto [image, i, j] = start;
    int found = 0;
    for (int64_t at = 0; at < count;) {
      const int64_t length = std::min(count - at, w.count - j);
      const int64_t row = h.source(i, tap.r);
      if (row >= 0 && row < h.size) {
        const int64_t first = std::max(j, tap.first), last = std::min(j + length, tap.last);
        const int64_t from = image * image_step + row * w.size + w.source(j, tap.s) - at * w.stride;
        if (first < last) add(at + first - j, at + last - j, from, pieces, found);
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

  // Every second element from p, a whole register of them; what lies behind the last is not read.
  static V load_evens(const T* p) { return evens(load(p), load_between(p + V::lanes, 0, V::lanes - 1)); }

  void copy_pieces(const T* from, int64_t channels, const Piece* pieces, int found, int64_t width, int64_t step,
                   A* row) const {
    const Piece* end = pieces + found;
    for (int64_t at = 0; at < width / V::lanes; ++at, row += V::lanes) {
      const Piece* next = pieces;
      while (next < end && next->at == at) ++next;
      const T* x = from;
      A* to = row;
      if (next == pieces + 1 && pieces->first == 0 && pieces->last == V::lanes) {
        for (int64_t c = 0; c < channels; ++c, x += plane, to += step)
          (w.stride == 1 ? load(x + pieces->from) : load_evens(x + pieces->from)).store(to);
      } else {
        for (int64_t c = 0; c < channels; ++c, x += plane, to += step) {
          V v = V::zero();
          for (const Piece* piece = pieces; piece < next; ++piece)
            v = either(v, w.stride == 1 ? load_between(x + piece->from, piece->first, piece->last)
                                        : load_evens(x + piece->from, piece->first, piece->last));
          v.store(to);
        }
      }
      pieces = next;
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
