// Packs the filter where residues are taken together: the columns of a tap are [row residue][column residue][channel],
// so one row of the filter, turned to [s][channel], is the columns of all its taps one after the other.
#pragma once

#include "cpu/epilogue.h"
#include "phases_shape.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA::phases {

template <class T>
struct MergedFilter {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  const Problem& p;
  const Args& args;
  const Shape<T>& shape;
  const Work<T>& work;
  A* out;  // all panels

  // Depths [begin, end) of all taps and panels; turned holds Shape::turned elements.
  void pack(int64_t begin, int64_t end, A* turned) const {
    for (int64_t d = begin; d < end; ++d)
      for (int64_t a = 0; a < shape.phases_h; ++a) {
        const AxisPhase &h = work.h[a], &w = work.w[0];
        for (int64_t tap = 0; tap < h.taps; ++tap) {
          for (int64_t q = 0; q < shape.width_h; ++q) turn(d, h.window_first + q + tap * h.window_step, q, turned);
          for (int64_t t = 0; t < w.taps; ++t)
            put(turned + t * shape.columns, work.first_slot[a] + tap * w.taps + t, d);
        }
      }
  }

 private:
  // Filter row r of depth d, [s][channel], to row residue q of every tap; zeros behind the window.
  void turn(int64_t d, int64_t r, int64_t q, A* turned) const {
    const int64_t *stride = args.w_stride, part = shape.width_w * p.c;
    const T* row = static_cast<const T*>(args.w) + d * stride[0] + r * stride[2];
    for (int64_t t = 0; t < work.w[0].taps; ++t) {
      A* to = turned + t * shape.columns + q * part;
      const int64_t s = t * shape.width_w;
      const int64_t count = r < p.h.window ? std::min(shape.width_w, p.w.window - s) : 0;
      const T* from = row + s * stride[3];
      if (stride[1] == 1)
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < p.c; c += lanes) {
            const int left = static_cast<int>(std::min<int64_t>(lanes, p.c - c));
            store(to + i * p.c + c, load(from + i * stride[3] + c, left), left);
          }
      else if (stride[3] == 1)
        transpose(from, stride[1], p.c, count, to, p.c);
      else
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < p.c; ++c) to[i * p.c + c] = widen(from[i * stride[3] + c * stride[1]]);
      std::fill(to + count * p.c, to + part, A(0));
    }
  }

  void put(const A* row, int64_t slot, int64_t d) const {
    for (int64_t panel = 0; panel < shape.panels; ++panel) {
      const int64_t first = panel * shape.width, columns = std::min(shape.width, shape.columns - first);
      const int64_t width = round_up(columns, lanes);
      A* to = out + panel * shape.panel_size + (slot * shape.depth + d) * width;
      for (int64_t i = 0; i < columns; i += lanes)
        store(to + i, load(row + first + i, static_cast<int>(std::min<int64_t>(lanes, columns - i))));
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA::phases
