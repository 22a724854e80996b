#include "pack.h"

#include <algorithm>

#include "core/machine.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t prefetch_bytes = 512;  // ahead in every column: more streams than the hardware follows
constexpr int64_t depth_ahead = 4;

// Column i of the block is a run of `length` elements at src + i·stride; element j of every column lands in the row
// row(j) of `width` columns.
template <class T, class Row>
void transpose_runs(const T* src, int64_t stride, int64_t columns, int64_t width, int64_t length, Row row) {
  using V = Vec<arithmetic<T>>;
  constexpr int lanes = V::lanes;
  for (int64_t column = 0; column < width; column += lanes)
    for (int64_t j = 0; j < length; j += lanes) {
      const int count = static_cast<int>(std::min<int64_t>(lanes, length - j));
      V block[lanes];
      if (columns - column >= lanes && count == lanes)
        for (int i = 0; i < lanes; ++i) {
          const T* run = src + (column + i) * stride + j;
          __builtin_prefetch(run + prefetch_bytes / sizeof(T));
          block[i] = load(run);
        }
      else
        for (int i = 0; i < lanes; ++i)
          block[i] = column + i < columns ? load(src + (column + i) * stride + j, count) : V::zero();
      transpose(block);
      for (int i = 0; i < count; ++i) store(row(j + i) + column, block[i]);
    }
}

}  // namespace

template <class T>
void pack_panel(const Filter<T>& f, const int64_t* slot, int64_t depth, int64_t begin, int64_t end, int64_t columns,
                int64_t width, arithmetic<T>* out) {
  using A = arithmetic<T>;
  using V = Vec<A>;
  const int64_t taps = f.taps();
  const auto row = [&](int64_t tap, int64_t d) { return out + (slot[tap] * depth + d) * width; };

  if (taps > 1 && f.depth == taps && f.taps_are_dense()) {  // KCRS in fprop: runs of depth x taps
    int64_t tap = 0, d = 0;
    const auto next = [&](int64_t j) {  // called with j = 0, 1, ... for each block of columns
      if (j == 0) tap = 0, d = begin;
      A* at = row(tap, d);
      if (++tap == taps) tap = 0, ++d;
      return at;
    };
    return transpose_runs(f.w + begin * f.depth, f.column, columns, width, (end - begin) * taps, next);
  }
  if (taps > 1 && f.column == taps && f.taps_are_dense()) {  // KCRS in dgrad: runs of taps
    const int64_t bytes = columns * taps * static_cast<int64_t>(sizeof(T));
    for (int64_t d = begin; d < end; ++d) {
      const T* src = f.w + d * f.depth;
      if (d + depth_ahead < end)
        for (int64_t byte = 0; byte < bytes; byte += cache_line)
          __builtin_prefetch(reinterpret_cast<const char*>(src + depth_ahead * f.depth) + byte);
      transpose_runs(src, f.column, columns, width, taps, [&](int64_t tap) { return row(tap, d); });
    }
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const T* src = f.w + tap / f.window_w * f.tap_h + tap % f.window_w * f.tap_w;
    if (f.depth == 1)
      transpose_runs(src + begin, f.column, columns, width, end - begin,
                     [&](int64_t d) { return row(tap, begin + d); });
    else if (f.column == 1)
      for (int64_t d = begin; d < end; ++d)
        for (int64_t i = 0; i < width; i += V::lanes) {
          const int64_t left = std::clamp<int64_t>(columns - i, 0, V::lanes);
          store(row(tap, d) + i, left ? load(src + d * f.depth + i, static_cast<int>(left)) : V::zero());
        }
    else
      for (int64_t d = begin; d < end; ++d)
        for (int64_t i = 0; i < width; ++i)
          row(tap, d)[i] = i < columns ? widen(src[d * f.depth + i * f.column]) : A(0);
  }
}

#define FASTCONV_PACK(T)                                                                                     \
  template void pack_panel<T>(const Filter<T>&, const int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, \
                              arithmetic<T>*);
FASTCONV_PACK(double)
FASTCONV_PACK(float)
FASTCONV_PACK(f16)
FASTCONV_PACK(bf16)

}  // namespace fastconv::FASTCONV_ISA
