// NCHW machinery of the sliding windows: one padded row of a plane, widened to the arithmetic type and laid out by
// phase, so that tap s of all output columns q is one run of consecutive elements whatever the stride:
//
//   padded column j = q·stride + s·dilation  lies at  phase[j % stride][j / stride]
//
// fill() brings a row of x in (borders keep the fill value), drain() brings a gradient row out. Strides 1 and 2 are
// vectorised, wider ones go element by element.
#pragma once

#include "simd/tags.h"
#include "windows.h"

namespace fastconv::FASTCONV_ISA {

constexpr int64_t max_phases = 64;  // wider strides go to the reference: most of the row is never read
constexpr int64_t row_slack = 32;   // elements: a register may run over the end of a scratch row
constexpr int64_t scratch_align = 16;

inline int64_t padded_row(int64_t elements) {
  return (elements + row_slack + scratch_align - 1) / scratch_align * scratch_align;
}

// Elements of A that hold `count` int64.
template <class A>
int64_t integers(int64_t count) {
  return padded_row(count * static_cast<int64_t>(sizeof(int64_t) / sizeof(A)));
}

template <class A>
class PhaseRow {
 public:
  PhaseRow(const Windows& w, A* memory)
      : stride_(w.stride),
        pad_(w.pad),
        in_(w.in),
        length_(length(w)),
        memory_(memory),
        offsets_(reinterpret_cast<int64_t*>(memory + length_ * stride_)) {
    for (int64_t s = 0; s < w.window; ++s) {
      const int64_t j = s * w.step;
      offsets_[s] = j % stride_ * length_ + j / stride_;
    }
  }

  static int64_t length(const Windows& w) { return padded_row(w.out + (w.window - 1) * w.step / w.stride + 1); }
  static int64_t elements(const Windows& w) { return length(w) * w.stride + integers<A>(w.window); }

  void clear(A value) { std::fill(memory_, memory_ + length_ * stride_, value); }

  // The run of tap s.
  A* tap(int64_t s) const { return memory_ + offsets_[s]; }

  template <class T>
  void fill(const T* row) {
    each_run([&](int64_t to, int64_t column, int count) { load(row + column, count).store(memory_ + to, count); },
             [&](int64_t to, int64_t column, int count) {
               Vec<A> even = load(row + column, count), odd = Vec<A>::zero();
               if (count > lanes) odd = load(row + column + lanes, count - lanes);
               unweave(even, odd);
               store(memory_ + to, even, (count + 1) / 2), store(memory_ + to + length_, odd, count / 2);
             },
             [&](int64_t to, int64_t column) { memory_[to] = widen(row[column]); });
  }

  template <class T>
  void drain(T* row) const {
    each_run([&](int64_t from, int64_t column, int count) { store(row + column, Vec<A>::load(memory_ + from), count); },
             [&](int64_t from, int64_t column, int count) {
               Vec<A> low = Vec<A>::load(memory_ + from), high = Vec<A>::load(memory_ + from + length_);
               weave(low, high);
               store(row + column, low, count);
               if (count > lanes) store(row + column + lanes, high, count - lanes);
             },
             [&](int64_t from, int64_t column) { row[column] = narrow<T>(memory_[from]); });
  }

 private:
  static constexpr int lanes = Vec<A>::lanes;

  // Visits the columns of the input that the scratch row holds: runs of stride 1, pairs of runs of stride 2 (two
  // columns an element of each), and single elements.
  template <class Run, class Pair, class One>
  void each_run(Run&& run, Pair&& pair, One&& one) const {
    if (stride_ == 1) {
      const int64_t count = std::min(in_, length_ - pad_);
      for (int64_t i = 0; i < count; i += lanes)
        run(pad_ + i, i, static_cast<int>(std::min<int64_t>(lanes, count - i)));
      return;
    }
    int64_t done = 0;  // columns
    if (stride_ == 2) {
      const int64_t lead = pad_ % 2;  // the first pair starts at an even padded column
      if (lead && in_ > 0) one(length_ + pad_ / 2, 0);
      done = lead;
      const int64_t last = std::min(in_, 2 * length_ - pad_);
      for (; done < last; done += 2 * lanes)
        pair((done + pad_) / 2, done, static_cast<int>(std::min<int64_t>(2 * lanes, last - done)));
      return;
    }
    int64_t phase = (done + pad_) % stride_, at = (done + pad_) / stride_;
    for (int64_t column = done; column < in_ && at < length_; ++column) {
      one(phase * length_ + at, column);
      if (++phase == stride_) phase = 0, ++at;
    }
  }

  int64_t stride_, pad_, in_, length_;
  A* memory_;
  int64_t* offsets_;
};

}  // namespace fastconv::FASTCONV_ISA
