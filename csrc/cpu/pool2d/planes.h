// NCHW maxima of small planes, all rows of a plane at once: rows of 7 or 14 columns would leave most of a register
// empty, and each would cost a row's bookkeeping. A plane goes into scratch with its borders, parted by the columns'
// phase as in rows.h, all rows one behind the other; so every tap of every row is one run, and the maxima of the S taps
// of a row are taken for the whole plane, registers reaching from one row into the next. An output row is the maximum
// of R of these rows, in the order of torch's scan: rows first, left to right.
#pragma once

#include <limits>

#include "rows.h"

namespace fastconv::FASTCONV_ISA {

template <class A>
class PlaneMax {
  using V = Vec<A>;

 public:
  PlaneMax(const Windows& rows, const Windows& columns, A* memory)
      : rows_(rows),
        columns_(columns),
        pitch_(pitch_of(columns)),
        height_(height_of(rows)),
        phase_(padded_row(pitch_ * height_)),
        staged_(memory),
        maxima_(memory + columns.stride * phase_) {
    std::fill(staged_, maxima_, -std::numeric_limits<A>::infinity());
    for (int64_t s = 0; s < columns.window; ++s)
      tap_[s] = s * columns.step % columns.stride * phase_ + s * columns.step / columns.stride;
  }

  // Sliding windows whose plane stays in L1.
  static bool fits(const Windows& rows, const Windows& columns) {
    constexpr int64_t most_bytes = 24 << 10, widest_stride = 2;
    if (rows.adaptive || columns.adaptive || rows.out < 1 || columns.out < 1) return false;
    if (columns.stride > widest_stride || columns.window > most_taps) return false;
    return elements(rows, columns) * static_cast<int64_t>(sizeof(A)) <= most_bytes;
  }
  static int64_t elements(const Windows& rows, const Windows& columns) {
    return (columns.stride + 1) * padded_row(pitch_of(columns) * height_of(rows));
  }

  template <class T>
  void run(const T* x, T* y) {
    for (int64_t row = 0; row < rows_.in && row + rows_.pad < height_; ++row)
      fill(x + row * columns_.in, (row + rows_.pad) * pitch_);
    constexpr int two = 2, three = 3;
    if (columns_.window == two && rows_.window == two) return finish<two>(y);
    if (columns_.window == three && rows_.window == three) return finish<three>(y);
    finish<0>(y);
  }

 private:
  static constexpr int64_t most_taps = 16;

  // Of the window's sides, Side; 0: any.
  template <int Side, class T>
  void finish(T* y) const {
    const int64_t across = Side ? Side : columns_.window, down = Side ? Side : rows_.window;
    const V least = V::broadcast(-std::numeric_limits<A>::infinity());
    for (int64_t i = 0; i < pitch_ * height_; i += V::lanes) {
      V best = least;
      for (int64_t s = 0; s < across; ++s) best = max(V::load(staged_ + tap_[s] + i), best);
      best.store(maxima_ + i);
    }
    const A* line = maxima_;
    const int64_t step = rows_.step * pitch_;
    for (int64_t o = 0; o < rows_.out; ++o, y += columns_.out, line += rows_.stride * pitch_)
      for (int64_t q = 0; q < columns_.out; q += V::lanes) {
        V best = least;
        for (int64_t r = 0; r < down; ++r) best = max(V::load(line + r * step + q), best);
        store(y + q, best, static_cast<int>(std::min<int64_t>(V::lanes, columns_.out - q)));
      }
  }

  // Columns of a phase, and padded rows, that windows read.
  static int64_t pitch_of(const Windows& w) { return w.out + (w.window - 1) * w.step / w.stride; }
  static int64_t height_of(const Windows& w) { return (w.out - 1) * w.stride + (w.window - 1) * w.step + 1; }

  template <class T>
  void fill(const T* row, int64_t to) {
    if (columns_.stride == 1) {
      const int64_t count = std::min(columns_.in, pitch_ - columns_.pad);
      for (int64_t i = 0; i < count; i += V::lanes) {
        const int part = static_cast<int>(std::min<int64_t>(V::lanes, count - i));
        store(staged_ + to + columns_.pad + i, load(row + i, part), part);
      }
      return;
    }
    // Even padded columns to the first phase, odd ones to the second.
    const int64_t lead = columns_.pad % 2, last = std::min(columns_.in, 2 * pitch_ - columns_.pad);
    if (lead) staged_[phase_ + to + columns_.pad / 2] = widen(row[0]);
    for (int64_t done = lead; done < last; done += 2 * V::lanes) {
      const int part = static_cast<int>(std::min<int64_t>(2 * V::lanes, last - done));
      V even = load(row + done, std::min(part, V::lanes)), odd = V::zero();
      if (part > V::lanes) odd = load(row + done + V::lanes, part - V::lanes);
      unweave(even, odd);
      A* const at = staged_ + to + (columns_.pad + done) / 2;
      store(at, even, (part + 1) / 2), store(at + phase_, odd, part / 2);
    }
  }

  const Windows &rows_, &columns_;
  int64_t pitch_, height_, phase_;
  A *staged_, *maxima_;
  int64_t tap_[most_taps];  // where the run of a tap begins
};

}  // namespace fastconv::FASTCONV_ISA
