// NCHW windows two columns wide, side by side and wholly inside: the even and the odd columns of a window's rows are
// parted in registers and combined as they are read, in the order of torch's scan. Nothing goes through scratch, so
// that narrow planes cost little.
#pragma once

#include "simd/tags.h"
#include "windows.h"

namespace fastconv::FASTCONV_ISA {

inline bool in_pairs(const Windows& rows, const Windows& columns) {
  const auto inside = [](const Windows& w) {
    return !w.adaptive && w.step == 1 && w.pad == 0 && w.window > 0 && (w.out - 1) * w.stride + w.window <= w.in;
  };
  return inside(rows) && inside(columns) && columns.window == 2 && columns.stride == 2;
}

// Planes [begin, end): combine(so far, next) for each of the window's elements, then finish(all).
template <class T, class Combine, class Finish>
void pool_pairs(const Problem& p, const Args& args, const Windows& rows, int64_t begin, int64_t end, Combine combine,
                Finish finish) {
  using V = Vec<arithmetic<T>>;
  for (int64_t i = begin * p.h.out; i < end * p.h.out; ++i) {
    const int64_t top = i / p.h.out * p.h.in + i % p.h.out * rows.stride;
    for (int64_t q = 0; q < p.w.out; q += V::lanes) {
      const int count = static_cast<int>(std::min<int64_t>(V::lanes, p.w.out - q));
      const int first = std::min(2 * count, V::lanes), second = 2 * count - first;
      const T* x = static_cast<const T*>(args.x) + top * p.w.in + 2 * q;
      V all;
      for (int64_t r = 0; r < rows.window; ++r, x += p.w.in) {
        V even = load(x, first), odd = second ? load(x + V::lanes, second) : V::zero();
        unweave(even, odd);
        all = combine(r ? combine(all, even) : even, odd);
      }
      store(static_cast<T*>(args.out) + i * p.w.out + q, finish(all), count);
    }
  }
}

}  // namespace fastconv::FASTCONV_ISA
