// What the depthwise kernels share: the geometry of one axis as a gather, the filter repacked for channel vectors, and
// compile-time unrolling.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/epilogue.h"

namespace fastconv::FASTCONV_ISA::depthwise {

inline constexpr int64_t line = 16;  // channels that are never split between tasks: one cache line of floats

// A set of output positions along one axis that read the source through the same taps. Position first + step·j, j in
// [0, count), reads source j·in_step + offset + i·dilation through tap tap + i·tap_step, i in [0, taps), where that
// lies in [0, in). fprop is one such set; dgrad is one per residue of the stride, each with only the taps that hit.
struct Phase {
  int64_t first, step, count;
  int64_t in_step, offset, dilation, in;
  int64_t tap, tap_step, taps;

  int64_t source(int64_t j) const { return j * in_step + offset; }
  // Taps [begin, end) of position j that read inside the source.
  std::pair<int64_t, int64_t> clip(int64_t j) const {
    const int64_t at = source(j);
    const int64_t begin = at >= 0 ? 0 : (-at + dilation - 1) / dilation;
    const int64_t end = at >= in ? 0 : std::min(taps, (in - 1 - at) / dilation + 1);
    return {std::min(begin, end), end};
  }
};

inline int64_t phases(const Axis& axis, Pass pass) { return pass == Pass::dgrad ? axis.stride : 1; }

inline Phase phase_of(const Axis& axis, Pass pass, int64_t residue) {
  if (pass == Pass::fprop)
    return {0, 1, axis.out, axis.stride, -axis.pad_lo, axis.dilation, axis.in, 0, 1, axis.window};
  // Input position residue + stride·j is read through tap t by output (residue + pad + stride·j - t·dilation) / stride,
  // where that is whole: for every period-th tap. Walking the taps backwards walks the source forwards.
  const int64_t common = std::gcd(axis.stride, axis.dilation), period = axis.stride / common;
  const int64_t count = residue < axis.in ? (axis.in - residue + axis.stride - 1) / axis.stride : 0;
  const int64_t shifted = residue + axis.pad_lo;
  int64_t tap = 0;
  while (tap < period && (shifted - tap * axis.dilation) % axis.stride) ++tap;
  if (tap == period || tap >= axis.window) return {residue, axis.stride, count, 1, 0, 1, axis.out, 0, 1, 0};
  const int64_t taps = (axis.window - 1 - tap) / period + 1, last = tap + (taps - 1) * period;
  const int64_t offset = (shifted - last * axis.dilation) / axis.stride;
  return {residue, axis.stride, count, 1, offset, axis.dilation / common, axis.out, last, -period, taps};
}

inline int64_t aligned(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The filter as [C/line][R·S][line] in the arithmetic type: a line of channels never shares a cache set with itself,
// whatever C, as it would at a pitch of 1024 channels.
template <class T>
void pack_filter(const Problem& p, const Args& args, arithmetic<T>* packed) {
  const int64_t pitch = args.w_stride[0];
  for (int64_t c = 0; c < p.c; c += line)
    for (int64_t r = 0; r < p.h.window; ++r)
      for (int64_t s = 0; s < p.w.window; ++s, packed += line) {
        const T* tap = static_cast<const T*>(args.w) + c * pitch + r * args.w_stride[2] + s * args.w_stride[3];
        for (int64_t i = 0; i < std::min(line, p.c - c); ++i) packed[i] = widen(tap[i * pitch]);
      }
}

// The filter as a call brings it: with strides, or packed.
template <class T>
struct FilterTaps {
  const Problem& p;
  const Args& args;

  arithmetic<T> at(int64_t c, int64_t r, int64_t s) const {
    if (p.packed)
      return static_cast<const arithmetic<T>*>(
          args.packed)[(c / line * p.taps() + r * p.w.window + s) * line + c % line];
    return widen(static_cast<const T*>(args.w)[c * args.w_stride[0] + r * args.w_stride[2] + s * args.w_stride[3]]);
  }
};

template <int N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// Kernels of one layout; all dtypes.
void gather_nhwc(const Problem& p, const Args& args, const Parallel& parallel);
int64_t gather_nhwc_workspace(const Problem& p, int threads);
void wgrad_nhwc(const Problem& p, const Args& args, const Parallel& parallel);
int64_t wgrad_nhwc_workspace(const Problem& p, int threads);
void gather_nchw(const Problem& p, const Args& args, const Parallel& parallel);
int64_t gather_nchw_workspace(const Problem& p, int threads);
void wgrad_nchw(const Problem& p, const Args& args, const Parallel& parallel);
int64_t wgrad_nchw_workspace(const Problem& p, int threads);

// Of the arithmetic type.
inline int64_t arithmetic_bytes(Dtype dtype) { return dtype == Dtype::f64 ? sizeof(double) : sizeof(float); }

}  // namespace fastconv::FASTCONV_ISA::depthwise
