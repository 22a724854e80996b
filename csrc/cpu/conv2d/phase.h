// The geometry of fprop and dgrad as one thing. A phase is a grid of output pixels and a set of taps such that tap t of
// grid position i reads source position i·step + first + t·tap_step. fprop is one phase over x. dgrad is stride_h x
// stride_w phases over dy: the input pixels of one residue class, and the filter taps that reach them. No zeros are
// inserted and no pixel is written twice.
#pragma once

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

// Input positions `residue`, residue + stride, ... of dgrad.
inline AxisPhase dgrad_axis(const Axis& a, int64_t residue) {
  AxisPhase axis{};
  axis.grid = residue < a.in ? (a.in - residue - 1) / a.stride + 1 : 0;
  axis.step = 1;
  axis.out_first = residue, axis.out_step = a.stride;
  axis.source_size = a.out, axis.out_size = a.in;
  const auto reaches = [&](int64_t r) { return (residue + a.pad_lo - r * a.dilation) % a.stride == 0; };
  int64_t r = 0;
  while (r < a.window && !reaches(r)) ++r;
  if (r == a.window) return axis;
  int64_t next = r + 1;
  while (next < a.window && !reaches(next)) ++next;
  axis.window_first = r, axis.window_step = next - r;
  axis.taps = (a.window - r - 1) / axis.window_step + 1;
  axis.first = (residue + a.pad_lo - r * a.dilation) / a.stride;
  axis.tap_step = -axis.window_step * a.dilation / a.stride;
  return axis;
}

inline int64_t phase_count(const Problem& p) { return p.pass == Pass::dgrad ? p.h.stride * p.w.stride : 1; }

inline Phase phase_of(const Problem& p, int64_t index) {
  if (p.pass != Pass::dgrad) return {fprop_axis(p.h), fprop_axis(p.w)};
  return {dgrad_axis(p.h, index / p.w.stride), dgrad_axis(p.w, index % p.w.stride)};
}

}  // namespace fastconv::FASTCONV_ISA
