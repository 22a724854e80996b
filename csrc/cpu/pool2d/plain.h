// The definition of every pool, one element at a time in any layout: the reference rows, and what the window kernels
// fall back on where a vector finds nothing to hold (few output columns, ragged adaptive windows).
// A is the type sums are kept in. `i` numbers the planes n·C + c.
#pragma once

#include <limits>

#include "windows.h"

namespace fastconv::FASTCONV_ISA::plain {

// The windows of every output column, kept where they are few: ragged ones cost divisions.
class ColumnSpans {
 public:
  explicit ColumnSpans(const Windows& columns) : columns_(columns), kept_(std::min<int64_t>(columns.out, most)) {
    for (int64_t o = 0; o < kept_; ++o) spans_[o] = columns.at(o);
  }
  Span at(int64_t o) const { return o < kept_ ? spans_[o] : columns_.at(o); }

 private:
  static constexpr int64_t most = 32;
  const Windows& columns_;
  int64_t kept_;
  Span spans_[most];
};

template <class T, class I, class A>
void max_fprop(const Problem& p, const Args& args, int64_t i) {
  const Windows rows(p, p.h), columns(p, p.w);
  const PoolView in = input_view(p), out = output_view(p);
  const Numbering number(p);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.out);
  I* index = static_cast<I*>(args.index);
  const int64_t n = i / p.c, c = i % p.c;
  const ColumnSpans spans(columns);
  for (int64_t oh = 0; oh < p.h.out; ++oh) {
    const Span v = rows.at(oh);
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Span h = spans.at(ow);
      A best = -std::numeric_limits<A>::infinity();
      int64_t at = number.of(std::min(v.first, rows.in - 1), std::min(h.first, columns.in - 1), v.tap, h.tap);
      for (int64_t r = 0; r < v.count; ++r) {
        const int64_t row = v.first + r * rows.step;
        const T* from = x + in.at(n, c, row * p.w.in + h.first);
        const int64_t step = columns.step * in.pixel_stride();
        for (int64_t s = 0; s < h.count; ++s) {
          const A value = widen(from[s * step]);
          if (value > best || value != value)
            best = value, at = number.of(row, h.first + s * columns.step, v.tap + r, h.tap + s);
        }
      }
      const int64_t to = out.at(n, c, oh * p.w.out + ow);
      y[to] = narrow<T>(static_cast<arithmetic<T>>(best));
      if constexpr (!std::is_void_v<I>) index[to] = static_cast<I>(at);
    }
  }
}

template <class T, class I, class A>
void max_dgrad(const Problem& p, const Args& args, int64_t i) {
  const Windows rows(p, p.h), columns(p, p.w);
  const PoolView in = input_view(p), out = output_view(p);
  const Numbering number(p);
  const T* dy = static_cast<const T*>(args.y);
  const I* index = static_cast<const I*>(args.index);
  T* dx = static_cast<T*>(args.out);
  const int64_t n = i / p.c, c = i % p.c;
  for (int64_t row = 0; row < p.h.in; ++row)
    for (int64_t column = 0; column < p.w.in; ++column) {
      const auto [top, bottom] = rows.covering(row);
      const auto [left, right] = columns.covering(column);
      A sum = 0;
      for (int64_t oh = top; oh < bottom; ++oh)
        for (int64_t ow = left; ow < right; ++ow) {
          const int64_t r = rows.tap(oh, row), s = columns.tap(ow, column);
          if (r < 0 || s < 0) continue;
          const int64_t from = out.at(n, c, oh * p.w.out + ow);
          if (static_cast<int64_t>(index[from]) == number.of(row, column, r, s)) sum += widen(dy[from]);
        }
      dx[in.at(n, c, row * p.w.in + column)] = narrow<T>(static_cast<arithmetic<T>>(sum));
    }
}

inline double divisor(const Problem& p, const Span& v, const Span& h) {
  return static_cast<double>(p.divisor_override ? p.divisor_override : v.extent * h.extent);
}

template <class T, class A>
void average_fprop(const Problem& p, const Args& args, int64_t i) {
  const Windows rows(p, p.h), columns(p, p.w);
  const PoolView in = input_view(p), out = output_view(p);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.out);
  const int64_t n = i / p.c, c = i % p.c;
  const ColumnSpans spans(columns);
  for (int64_t oh = 0; oh < p.h.out; ++oh) {
    const Span v = rows.at(oh);
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Span h = spans.at(ow);
      A sum = 0;
      for (int64_t r = 0; r < v.count; ++r) {
        const T* row = x + in.at(n, c, (v.first + r) * p.w.in + h.first);
        for (int64_t s = 0; s < h.count; ++s) sum += widen(row[s * in.pixel_stride()]);
      }
      y[out.at(n, c, oh * p.w.out + ow)] =
          narrow<T>(static_cast<arithmetic<T>>(sum / static_cast<A>(divisor(p, v, h))));
    }
  }
}

template <class T, class A>
void average_dgrad(const Problem& p, const Args& args, int64_t i) {
  const Windows rows(p, p.h), columns(p, p.w);
  const PoolView in = input_view(p), out = output_view(p);
  const T* dy = static_cast<const T*>(args.y);
  T* dx = static_cast<T*>(args.out);
  const int64_t n = i / p.c, c = i % p.c;
  for (int64_t row = 0; row < p.h.in; ++row)
    for (int64_t column = 0; column < p.w.in; ++column) {
      const auto [top, bottom] = rows.covering(row);
      const auto [left, right] = columns.covering(column);
      A sum = 0;
      for (int64_t oh = top; oh < bottom; ++oh)
        for (int64_t ow = left; ow < right; ++ow)
          sum += static_cast<A>(widen(dy[out.at(n, c, oh * p.w.out + ow)])) /
                 static_cast<A>(divisor(p, rows.at(oh), columns.at(ow)));
      dx[in.at(n, c, row * p.w.in + column)] = narrow<T>(static_cast<arithmetic<T>>(sum));
    }
}

}  // namespace fastconv::FASTCONV_ISA::plain
