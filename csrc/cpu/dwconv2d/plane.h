// One padded source plane of an NCHW depthwise kernel, in the arithmetic type, with the columns of each residue of the
// stride side by side: every tap of every output is then a load at unit stride without a check.
#pragma once

#include "depthwise.h"

namespace fastconv::FASTCONV_ISA::depthwise {

struct PlaneShape {
  int64_t rows, width;  // of the source
  int64_t step;         // columns u, u + step, u + 2·step ... stand side by side
  int64_t left;         // padding columns in front
  int64_t lane_width;   // of one residue
  int64_t pitch;        // of one row: step residues

  // gather is the pass whose phases read the plane: fprop (also for wgrad's x) or dgrad.
  PlaneShape(const Problem& p, Pass gather, int64_t lanes) {
    const bool dgrad = gather == Pass::dgrad;
    rows = dgrad ? p.h.out : p.h.in, width = dgrad ? p.w.out : p.w.in, step = dgrad ? 1 : p.w.stride;
    left = 0;
    int64_t end = 1;
    for (int64_t residue = 0; residue < phases(p.w, gather); ++residue) {
      const Phase w = phase_of(p.w, gather, residue);
      if (w.taps == 0 || w.count == 0) continue;
      left = std::max(left, -w.offset);
      end = std::max(end, w.source(aligned(w.count, lanes) - 1) + (w.taps - 1) * w.dilation + 1);
    }
    lane_width = (end + left + step - 1) / step;
    pitch = step * lane_width;
  }
  int64_t elements() const { return rows * pitch; }
  // Where position 0 of a phase finds source column w.offset + tap·w.dilation in a row.
  int64_t at(const Phase& w, int64_t tap) const {
    const int64_t column = left + w.offset + tap * w.dilation;
    return column % step * lane_width + column / step;
  }

  // Only what lies inside the plane is written: the padding is zeroed once, by clear().
  template <class T>
  void fill(const T* source, arithmetic<T>* plane) const {
    constexpr int lanes = Vec<arithmetic<T>>::lanes;
    const int64_t used = std::min(width, pitch - left);
    for (int64_t row = 0; row < rows; ++row, source += width, plane += pitch) {
      if (step == 1) {
        for (int64_t i = 0; i < used; i += lanes) {
          const int count = static_cast<int>(std::min<int64_t>(lanes, used - i));
          store(plane + left + i, load(source + i, count), count);
        }
      } else if (step == 2) {  // written so that the compiler deinterleaves with vectors
        const int64_t pairs = used / 2, odd = left % 2;
        arithmetic<T>* even_to = plane + odd * lane_width + left / 2;
        arithmetic<T>* odd_to = plane + (1 - odd) * lane_width + (left + 1) / 2;
        for (int64_t i = 0; i < pairs; ++i) even_to[i] = widen(source[2 * i]);
        for (int64_t i = 0; i < pairs; ++i) odd_to[i] = widen(source[2 * i + 1]);
        if (used % 2) even_to[pairs] = widen(source[used - 1]);
      } else {
        for (int64_t i = 0; i < used; ++i) plane[(left + i) % step * lane_width + (left + i) / step] = widen(source[i]);
      }
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA::depthwise
