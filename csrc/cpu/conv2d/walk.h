// How the outputs of one axis read the source, in a form that fprop and dgrad share: output i, which lies at
// start + step·i, reads through tap t the source position i·stride + offset + offset_step·t.
//
// fprop is one walk per axis. dgrad is one per phase: the input positions of equal remainder modulo the stride read
// every stride-th tap (exactly those that hit an output position), so no zero is ever multiplied and no sum is shared.
#pragma once

#include <algorithm>
#include <numeric>

#include "core/problem.h"

namespace fastconv::FASTCONV_ISA {

struct Walk {
  int64_t count;                // outputs
  int64_t start, step;          // where they lie
  int64_t stride;               // from one output to the next, in the source
  int64_t taps;                 // of this walk
  int64_t tap_first, tap_step;  // their positions in the filter
  int64_t offset, offset_step;
  int64_t size;  // of the source

  int64_t tap(int64_t t) const { return tap_first + tap_step * t; }
  int64_t source(int64_t i, int64_t t) const { return i * stride + offset + offset_step * t; }
  // Outputs [first, last) of [begin, end) read inside the source through tap t.
  void inside(int64_t t, int64_t begin, int64_t end, int64_t& first, int64_t& last) const {
    const int64_t shift = offset + offset_step * t;
    if (stride == 1) {  // the common case, without a division
      first = std::max(begin, -shift);
      last = std::max(first, std::min(end, size - shift));
      return;
    }
    first = shift >= 0 ? begin : std::max(begin, (-shift + stride - 1) / stride);
    last = shift >= size ? first : std::min(end, (size - 1 - shift) / stride + 1);
    if (last < first) last = first;
  }
};

inline Walk fprop_walk(const Axis& a) { return {a.out, 0, 1, a.stride, a.window, 0, 1, -a.pad_lo, a.dilation, a.in}; }

inline Walk dgrad_walk(const Axis& a, int64_t phase) {
  Walk walk{};
  walk.count = phase < a.in ? (a.in - phase + a.stride - 1) / a.stride : 0;
  walk.start = phase, walk.step = a.stride;
  walk.stride = 1;
  walk.size = a.out;
  walk.tap_step = a.stride / std::gcd(a.stride, a.dilation);
  while (walk.tap_first < std::min(a.window, walk.tap_step) &&
         (phase + a.pad_lo - walk.tap_first * a.dilation) % a.stride)
    ++walk.tap_first;
  if (walk.tap_first >= std::min(a.window, walk.tap_step)) return walk;
  walk.taps = (a.window - 1 - walk.tap_first) / walk.tap_step + 1;
  walk.offset = (phase + a.pad_lo - walk.tap_first * a.dilation) / a.stride;
  walk.offset_step = -(walk.tap_step * a.dilation / a.stride);
  return walk;
}

}  // namespace fastconv::FASTCONV_ISA
