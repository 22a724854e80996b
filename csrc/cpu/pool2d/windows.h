// Where the windows of a pool lie along one axis: torch's formulas, sliding and adaptive, and their inverse. And the
// numbering of maxima: a tap r·S + s (one byte) or a position h·W + w (torch's int64 indices).
#pragma once

#include <algorithm>

#include "cpu/epilogue.h"

namespace fastconv::FASTCONV_ISA {

// The part of one window that lies in the input: positions first, first + step, ... (count of them).
struct Span {
  int64_t first;
  int64_t count;   // 0: the window lies in the padding only
  int64_t tap;     // number of the window's tap at `first`
  int64_t extent;  // what this axis contributes to the divisor of an average
};

struct Windows {
  int64_t in, out, window, stride, pad, pad_hi, step;
  bool adaptive, include_pad;

  Windows(const Problem& p, const Axis& a)
      : in(a.in),
        out(a.out),
        window(a.window),
        stride(a.stride),
        pad(a.pad_lo),
        pad_hi(a.pad_hi),
        step(a.dilation),
        adaptive(p.op == Op::adaptivemax2d || p.op == Op::adaptiveavg2d),
        include_pad(p.count_include_pad) {
    if (!adaptive) return;
    stride = step = 1, pad = pad_hi = 0, window = 0;
    if (out == 0 || in % out) return;
    // Equal adaptive windows are sliding ones.
    window = stride = in / out;
    adaptive = false;
  }

  Span at(int64_t o) const {
    if (adaptive) {
      const int64_t first = o * in / out, end = ((o + 1) * in + out - 1) / out;
      return {first, end - first, 0, end - first};
    }
    const int64_t start = o * stride - pad;
    const int64_t tap = start < 0 ? (-start + step - 1) / step : 0;
    const int64_t first = start + tap * step;
    const int64_t room = first >= in ? 0 : (step == 1 ? in - first : (in - 1 - first) / step + 1);
    const int64_t count = std::max(int64_t{0}, std::min(window - tap, room));
    const int64_t extent = include_pad ? std::min(start + window, in + pad_hi) - start : count;
    return {first, count, tap, std::max(extent, int64_t{1})};
  }

  // The output positions [first, second) whose window may hold input position i.
  std::pair<int64_t, int64_t> covering(int64_t i) const {
    if (adaptive) return {i * out / in, ((i + 1) * out + in - 1) / in};
    const int64_t reach = step * (window - 1), shifted = i + pad;
    const int64_t lo = shifted <= reach ? 0 : (shifted - reach + stride - 1) / stride;
    return {lo, std::min(out, shifted / stride + 1)};
  }

  // The tap of output position o that reads input position i, or -1 where dilation leaves i out.
  int64_t tap(int64_t o, int64_t i) const {
    if (adaptive) return i - o * in / out;
    const int64_t distance = i + pad - o * stride;
    return step == 1 ? distance : (distance % step ? -1 : distance / step);
  }
};

// Element offsets of a tensor of `pixels` x `channels`, in either layout, or of its channels from `first` on.
struct PoolView {
  int64_t channels, pixels;
  bool nhwc;
  int64_t first = 0;
  int64_t at(int64_t n, int64_t c, int64_t pixel) const {
    return nhwc ? (n * pixels + pixel) * channels + first + c : (n * channels + first + c) * pixels + pixel;
  }
  int64_t pixel_stride() const { return nhwc ? channels : 1; }
};
inline PoolView input_view(const Problem& p) { return {p.c, p.in_pixels(), p.layout == Layout::nhwc}; }
inline PoolView output_view(const Problem& p) {
  return {p.buffer_channels(), p.out_pixels(), p.layout == Layout::nhwc, p.epilogue.out_offset};
}

// The number a maximum at input (row, column), tap (r, s), is stored under.
struct Numbering {
  bool taps;
  int64_t row_length;
  explicit Numbering(const Problem& p) : taps(p.index == Index::u8), row_length(taps ? p.w.window : p.w.in) {}
  int64_t of(int64_t row, int64_t column, int64_t r, int64_t s) const {
    return taps ? r * row_length + s : row * row_length + column;
  }
};

inline int64_t max_u8_taps() { return 255; }

// Calls f with a null pointer of the index's element type, or of void when there is none.
template <class F>
void with_index(Index index, F&& f) {
  switch (index) {
    case Index::none:
      return f(static_cast<void*>(nullptr));
    case Index::u8:
      return f(static_cast<uint8_t*>(nullptr));
    case Index::i64:
      return f(static_cast<int64_t*>(nullptr));
  }
}

inline std::string refuses_pool(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  const bool max = p.op == Op::maxpool2d || p.op == Op::adaptivemax2d;
  if (p.index == Index::u8 && p.op == Op::adaptivemax2d) return "Adaptive windows have no common tap numbers for u8.";
  if (p.index == Index::u8 && p.taps() > max_u8_taps())
    return "R·S=" + std::to_string(p.taps()) + " taps do not fit a one-byte index.";
  if (max && p.pass == Pass::dgrad && p.index == Index::none) return "The gradient of a max pool needs an index.";
  if (p.epilogue.bias || p.epilogue.residual || p.epilogue.activation != Activation::none)
    return "A pool has no epilogue.";
  if (p.epilogue.out_channels && (p.pass != Pass::fprop || p.index != Index::none))
    return "It writes a channel slice of a larger buffer forwards only, and without an index beside it.";
  return {};
}

// The same, of kernels whose NCHW part writes whole tensors.
inline std::string refuses_pool_slices(const Problem& p) {
  if (p.epilogue.out_channels && p.layout == Layout::nchw)
    return "It writes channel slices of channels_last buffers only.";
  return refuses_pool(p);
}

}  // namespace fastconv::FASTCONV_ISA
