// Which source pixel a tap of a written pixel reads, along one axis, for a convolution and for its input gradient
// alike.
//
// fprop: output o reads input o·stride - pad + r·dilation. dgrad, by phases: the input positions i·stride + phase are
// reached by those taps r alone for which phase + pad - r·dilation is a multiple of the stride; they are every
// (stride / gcd(stride, dilation))-th, and along them and along i the output position moves by constant steps. So each
// phase is a convolution without zeros in between.
#pragma once

#include <numeric>

#include "cuda/common/target.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int most_phases = 8;  // along an axis

struct Walk {
  int count = 0;                    // written positions of this phase
  int out_step = 1, out_first = 0;  // their places in the written tensor
  int stride = 1, first = 0;        // source position of tap 0 of written position i: i * stride + first
  int step = 1;                     // from one tap to the next
  int taps = 0;                     // of the filter's taps first_tap, first_tap + tap_step, ...
  int first_tap = 0, tap_step = 1;

  static Walk forward(const Axis& a) {
    auto i = [](int64_t v) { return static_cast<int>(v); };
    return {i(a.out), 1, 0, i(a.stride), i(-a.pad_lo), i(a.dilation), i(a.window), 0, 1};
  }
  static Walk backward(const Axis& a, int64_t phase) {
    auto i = [](int64_t v) { return static_cast<int>(v); };
    Walk walk{i(divide_up(a.in - phase, a.stride)), i(a.stride), i(phase), 1, 0, 1, 0, 0, 1};
    const int64_t tap_step = a.stride / std::gcd(a.stride, a.dilation);
    for (int64_t r = 0; r < std::min(tap_step, a.window); ++r) {
      const int64_t reached = phase + a.pad_lo - r * a.dilation;
      if (reached % a.stride) continue;
      walk.first = i(reached / a.stride), walk.step = i(-tap_step * a.dilation / a.stride);
      walk.taps = i(divide_up(a.window - r, tap_step)), walk.first_tap = i(r), walk.tap_step = i(tap_step);
      break;
    }
    return walk;
  }
};

// All phases of one axis.
struct Walks {
  Walk phase[most_phases];
  int count = 1;

  static Walks of(const Problem& p, const Axis& a) {
    Walks walks;
    if (p.pass == Pass::fprop) {
      walks.phase[0] = Walk::forward(a);
      return walks;
    }
    walks.count = static_cast<int>(std::min(a.stride, a.in));
    for (int i = 0; i < walks.count; ++i) walks.phase[i] = Walk::backward(a, i);
    return walks;
  }
};

}  // namespace fastconv::FASTCONV_GPU
