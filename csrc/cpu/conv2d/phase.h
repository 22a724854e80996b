// The geometry of fprop and dgrad as one thing. A phase is a grid of output pixels and a set of taps such that tap t of
// grid position i reads source position i·step + first + t·tap_step. fprop is one phase over x. dgrad is stride_h x
// stride_w phases over dy: the input pixels of one residue class, and the filter taps that reach them. No zeros are
// inserted and no pixel is written twice.
//
// Input positions x of dgrad are counted from the padding's edge: x + pad = cell · stride + residue. Without dilation
// every residue of a cell reads the source at the cell and before it, so neighbouring residues may be taken together
// (`width`): they share their rows of the source, and what was written apart lies side by side.
#pragma once

#include <algorithm>
#include <numeric>

#include "core/integers.h"
#include "core/problem.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

struct AxisPhase {
  int64_t grid;  // positions
  int64_t step;  // source = i * step + first + t * tap_step
  int64_t first, tap_step;
  int64_t taps;
  int64_t window_first, window_step;  // filter index of tap t: window_first + t * window_step
  int64_t out_first, out_step;        // written position of i: out_first + i * out_step
  int64_t source_size, out_size;
  int64_t cell = 0;  // of dgrad's position 0, counted from first_cell

  // Position i reads element i and writes element i, and there are no others.
  bool identity() const {
    return taps == 1 && step == 1 && first == 0 && out_first == 0 && out_step == 1 && grid == source_size &&
           grid == out_size;
  }
};

struct Phase {
  AxisPhase h, w;
  int64_t first_slot = 0;  // its taps are packed from here on, row by row
  int64_t taps() const { return h.taps * w.taps; }
  int64_t grid() const { return h.grid * w.grid; }
};

inline AxisPhase fprop_axis(const Axis& a) {
  return {a.out, a.stride, -a.pad_lo, a.dilation, a.window, 0, 1, 0, 1, a.in, a.out};
}

inline int64_t first_cell(const Axis& a) { return a.pad_lo / a.stride; }
inline int64_t cells(const Axis& a) { return (a.pad_lo + a.in - 1) / a.stride - first_cell(a) + 1; }

// dgrad's positions of residues [residue, residue + width) in every cell that has one of them inside. A width above 1
// is for axes without dilation; then residue q of the width has the filter index of tap t further by q, which may lie
// behind the window, and out_first may lie before the edge.
inline AxisPhase dgrad_axis(const Axis& a, int64_t residue, int64_t width = 1) {
  AxisPhase axis{};
  const int64_t lowest = divide_up(std::max<int64_t>(0, a.pad_lo - residue - width + 1), a.stride);
  const int64_t last = a.in - 1 + a.pad_lo - residue;
  axis.grid = last < 0 ? 0 : std::max<int64_t>(0, last / a.stride - lowest + 1);
  axis.cell = lowest - first_cell(a);
  axis.step = 1;
  axis.out_first = lowest * a.stride + residue - a.pad_lo, axis.out_step = a.stride;
  axis.source_size = a.out, axis.out_size = a.in;
  axis.window_step = a.stride / std::gcd(a.stride, a.dilation);
  int64_t r = 0;
  while (r < std::min(a.window, axis.window_step) && (residue - r * a.dilation) % a.stride) ++r;
  if (r >= std::min(a.window, axis.window_step)) return axis;
  axis.window_first = r;
  axis.taps = (a.window - r - 1) / axis.window_step + 1;
  axis.first = lowest + (residue - r * a.dilation) / a.stride;
  axis.tap_step = -axis.window_step * a.dilation / a.stride;
  return axis;
}

}  // namespace fastconv::FASTCONV_ISA
