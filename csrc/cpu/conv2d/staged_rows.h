// The source rows of a few output rows, padded, widened and cut into the residues of the stride: whatever the tap, a
// register of output columns is then a load at unit stride, and no im2col matrix is packed. A source element is copied
// once for all taps.
#pragma once

#include "columns.h"
#include "simd/tags.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct StagedRows {
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int64_t most_stride = 2;

  Walk h, w;
  int64_t channels;
  int64_t length;  // elements of one residue of a row
  int64_t depth;   // channels · taps, in the order of a KCRS filter

  StagedRows(const Walk& h, const Walk& w, int64_t channels)
      : h(h),
        w(w),
        channels(channels),
        length(round_up(w.count, V::lanes) + round_up((w.taps - 1) * w.offset_step / w.stride + 1, V::lanes)),
        depth(channels * h.taps * w.taps) {}

  // Idle lanes at the end of a row cost less than packing columns would, and the rows of one output row are few enough.
  static bool suits(const Walk& h, const Walk& w, int64_t channels, int64_t filters, int64_t most_bytes) {
    constexpr int64_t packing = 8;  // a register, in FMAs
    if (h.taps * w.taps == 1 || w.stride > most_stride || w.count <= V::lanes) return false;
    if ((round_up(w.count, V::lanes) - w.count) * filters > packing * w.count) return false;
    return StagedRows(h, w, channels).elements(1) * int64_t{sizeof(A)} <= most_bytes;
  }

  int64_t source_rows(int64_t rows) const { return (rows - 1) * h.stride + (h.taps - 1) * h.offset_step + 1; }
  int64_t row_step() const { return w.stride * length; }
  int64_t elements(int64_t rows) const { return channels * source_rows(rows) * row_step(); }

  // at[d]: where tap and channel d of output row 0, column 0 lies. Output row i lies i · out_step() further.
  int64_t out_step() const { return h.stride * row_step(); }
  void locate(int64_t rows, int64_t* at) const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t r = 0; r < h.taps; ++r)
        for (int64_t s = 0; s < w.taps; ++s) {
          const int64_t column = s * w.offset_step;
          *at++ =
              (c * source_rows(rows) + r * h.offset_step) * row_step() + column % w.stride * length + column / w.stride;
        }
  }

  // The source of output rows [first, first + rows) of an image whose channels lie `plane` elements apart.
  void fill(const T* image, int64_t plane, int64_t first, int64_t rows, A* to) const {
    const int64_t top = h.source(first, 0), count = source_rows(rows);
    for (int64_t c = 0; c < channels; ++c, image += plane)
      for (int64_t i = 0; i < count; ++i, to += row_step()) {
        const int64_t y = top + i;
        if (y < 0 || y >= h.size)
          std::fill_n(to, row_step(), A(0));
        else
          fill_row(image + y * w.size, to);
      }
  }

 private:
  // The columns of x from `column` on that are columns of the source.
  V inside(const T* x, int64_t column) const {
    const int64_t first = std::clamp<int64_t>(-column, 0, V::lanes);
    const int64_t last = std::clamp<int64_t>(w.size - column, first, V::lanes);
    if (first == 0 && last == V::lanes) return load(x + column);
    return load_between(x + column, static_cast<int>(first), static_cast<int>(last));
  }

  void fill_row(const T* x, A* to) const {
    for (int64_t k = 0; k < length; k += V::lanes) {
      const int64_t column = k * w.stride + w.offset;
      V even = inside(x, column);
      if (w.stride == most_stride) {
        V odd = inside(x, column + V::lanes);
        unweave(even, odd);
        odd.store(to + length + k);
      }
      even.store(to + k);
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA
