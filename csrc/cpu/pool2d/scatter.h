// The gradient of NCHW planes: each output adds to the pixel its index names, in the order of the outputs, and a plane
// belongs to one thread. It is added up in dx itself, or in scratch where the sums have a wider type. An index outside
// the plane adds nothing, nor does a window that misses the input, as a dilated one may: its position is that of no
// maximum.
#pragma once

#include <array>
#include <limits>
#include <type_traits>

#include "rows.h"

namespace fastconv::FASTCONV_ISA {

template <class T, class I>
class Scatter {
  using A = arithmetic<T>;

 public:
  Scatter(const Problem& p, const Args& args)
      : p(p), args(args), rows(p, p.h), columns(p, p.w), number(p), may_miss_(rows.step > 1 || columns.step > 1) {
    tap_.fill({-1, -1, outside});
    if (!number.taps) return;
    for (int64_t t = 0; t < p.taps(); ++t) {
      const int64_t row = t / p.w.window * rows.step, column = t % p.w.window * columns.step;
      tap_[t] = {row, column, row * p.w.in + column};
    }
  }

  void dgrad(const Parallel& parallel) const {
    const int64_t pixels = p.in_pixels();
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        T* dx = static_cast<T*>(args.out) + i * pixels;
        A* plane;
        if constexpr (std::is_same_v<T, A>)
          plane = dx;
        else
          plane = static_cast<A*>(args.workspace) + thread * padded_row(pixels);
        std::fill(plane, plane + pixels, A(0));
        const T* dy = static_cast<const T*>(args.y) + i * p.out_pixels();
        const I* index = static_cast<const I*>(args.index) + i * p.out_pixels();
        if (!number.taps)
          add_positions(dy, index, plane);
        else if (may_miss_)
          add_taps<true>(dy, index, plane);
        else
          add_taps<false>(dy, index, plane);
        if constexpr (!std::is_same_v<T, A>)
          for (int64_t q = 0; q < pixels; q += Vec<A>::lanes)
            store(dx + q, Vec<A>::load(plane + q), static_cast<int>(std::min<int64_t>(Vec<A>::lanes, pixels - q)));
      }
    });
  }

 private:
  // Every maximum lies in the plane, unless its window misses the input.
  template <bool may_miss>
  void add_taps(const T* dy, const I* index, A* plane) const {
    const int64_t pixels = p.in_pixels(), outputs = p.w.out, stride = columns.stride;
    for (int64_t oh = 0; oh < p.h.out; ++oh, dy += outputs, index += outputs) {
      const int64_t top = oh * rows.stride - rows.pad;
      int64_t left = -columns.pad, corner = top * p.w.in + left;
      for (int64_t ow = 0; ow < outputs; ++ow, left += stride, corner += stride) {
        const Tap& tap = tap_[static_cast<uint8_t>(index[ow])];
        if constexpr (may_miss) {
          const int64_t row = top + tap.row, column = left + tap.column;
          if (row < 0 || row >= p.h.in || column < 0 || column >= p.w.in) continue;
        }
        const int64_t at = corner + tap.offset;
        if (at >= 0 && at < pixels) plane[at] += widen(dy[ow]);
      }
    }
  }

  void add_positions(const T* dy, const I* index, A* plane) const {
    for (int64_t o = 0; o < p.out_pixels(); ++o) {
      if (may_miss_ && (rows.at(o / p.w.out).count == 0 || columns.at(o % p.w.out).count == 0)) continue;
      const auto at = static_cast<int64_t>(index[o]);
      if (at >= 0 && at < p.in_pixels()) plane[at] += widen(dy[o]);
    }
  }

  struct Tap {
    int64_t row, column, offset;  // from the first pixel of a window
  };
  static constexpr int64_t outside = std::numeric_limits<int64_t>::min() / 2;  // no window starts so far behind

  const Problem& p;
  const Args& args;
  const Windows rows, columns;
  const Numbering number;
  const bool may_miss_;
  std::array<Tap, 256> tap_;  // of every value of a byte
};

}  // namespace fastconv::FASTCONV_ISA
