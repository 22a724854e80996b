#include "pack.h"

#include <algorithm>

#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Column i of the block is a run of `length` elements at src + i·stride; element j of every column lands in the row
// row(j) of `width` columns, or nowhere when that is null.
template <class T, class Row>
void transpose_runs(const T* src, int64_t stride, int64_t columns, int64_t width, int64_t length, Row row) {
  using V = Vec<arithmetic<T>>;
  constexpr int lanes = V::lanes;
  for (int64_t column = 0; column < width; column += lanes)
    for (int64_t j = 0; j < length; j += lanes) {
      const int count = static_cast<int>(std::min<int64_t>(lanes, length - j));
      V block[lanes];
      if (columns - column >= lanes && count == lanes)
        for (int i = 0; i < lanes; ++i) block[i] = load(src + (column + i) * stride + j);
      else
        for (int i = 0; i < lanes; ++i)
          block[i] = column + i < columns ? load(src + (column + i) * stride + j, count) : V::zero();
      transpose(block);
      for (int i = 0; i < count; ++i)
        if (auto* out = row(j + i)) store(out + column, block[i]);
    }
}

}  // namespace

template <class T>
void pack_panel(const Filter<T>& f, const Phase& phase, int64_t depth, int64_t columns, int64_t width,
                arithmetic<T>* out) {
  using A = arithmetic<T>;
  using V = Vec<A>;
  const AxisPhase &h = phase.h, &w = phase.w;
  const int64_t taps = phase.taps();
  const bool all_taps = taps == f.taps();

  if (f.depth != 1 && f.depth == f.taps() && f.taps_are_dense() && all_taps) {  // KCRS, every tap: runs of depth x taps
    int64_t tap = 0, d = 0;
    const auto next = [&](int64_t j) {  // called with j = 0, 1, ... for each block of columns
      if (j == 0) tap = d = 0;
      A* row = out + (tap * depth + d) * width;
      if (++tap == taps) tap = 0, ++d;
      return row;
    };
    return transpose_runs(f.w, f.column, columns, width, depth * taps, next);
  }
  if (f.depth != 1 && f.column == f.taps() && f.taps() > 1 && f.taps_are_dense()) {  // KCRS in dgrad: runs of taps
    for (int64_t d = 0; d < depth; ++d)
      transpose_runs(f.w + d * f.depth, f.column, columns, width, f.taps(), [&](int64_t j) -> A* {
        const int64_t r = j / f.window_w - h.window_first, s = j % f.window_w - w.window_first;
        if (r < 0 || s < 0 || r % h.window_step || s % w.window_step) return nullptr;
        return out + ((r / h.window_step * w.taps + s / w.window_step) * depth + d) * width;
      });
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t r = h.window_first + tap / w.taps * h.window_step, s = w.window_first + tap % w.taps * w.window_step;
    const T* src = f.w + r * f.tap_h + s * f.tap_w;
    A* rows = out + tap * depth * width;
    if (f.depth == 1)
      transpose_runs(src, f.column, columns, width, depth, [&](int64_t j) { return rows + j * width; });
    else if (f.column == 1)
      for (int64_t d = 0; d < depth; ++d)
        for (int64_t i = 0; i < width; i += V::lanes) {
          const int64_t left = std::clamp<int64_t>(columns - i, 0, V::lanes);
          store(rows + d * width + i, left ? load(src + d * f.depth + i, static_cast<int>(left)) : V::zero());
        }
    else
      for (int64_t d = 0; d < depth; ++d)
        for (int64_t i = 0; i < width; ++i)
          rows[d * width + i] = i < columns ? widen(src[d * f.depth + i * f.column]) : A(0);
  }
}

#define FASTCONV_PACK(T) \
  template void pack_panel<T>(const Filter<T>&, const Phase&, int64_t, int64_t, int64_t, arithmetic<T>*);
FASTCONV_PACK(double)
FASTCONV_PACK(float)
FASTCONV_PACK(f16)
FASTCONV_PACK(bf16)

}  // namespace fastconv::FASTCONV_ISA
