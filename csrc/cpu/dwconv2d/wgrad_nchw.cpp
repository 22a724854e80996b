// Depthwise wgrad, NCHW: every tap is a dot product of the dy plane with a shifted x plane, a register of columns at a
// time.
//
// A task is one channel: its x planes are copied padded (see plane.h), and the S taps of a filter row are summed
// together, so that each dy register is loaded once for them. The sums of all images stay registers' worth of partial
// sums until the end, so that the order is the same for any number of threads. Few channels leave threads idle.
//
// Zen 4, 2 cores, 2026-11-22, float, batch 1, best of turns on a loaded machine, microseconds AVX-512 / AVX2 / torch's
// NCHW: 32@112 105/119/179 · 192@28 56/58/119 · 384@14 41/51/100 · 576@14 stride 2 65/49/97.
#include "plane.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

// Taps [first, first + S) of one filter row over output rows [begin, end).
template <class T, int S>
void dot(const T* dy, int64_t columns, const arithmetic<T>* x, int64_t x_step, const int64_t* at, int64_t rows,
         arithmetic<T>* sums) {
  using V = Vec<arithmetic<T>>;
  constexpr int64_t lanes = V::lanes;
  V sum[S];
  unroll<S>([&](auto s) __attribute__((always_inline)) { sum[s] = V::load(sums + s * lanes); });
  const auto add = [&](int64_t j, int count) __attribute__((always_inline)) {
    const V g = load(dy + j, count);
    unroll<S>([&](auto s) __attribute__((always_inline)) { sum[s] = fma(g, load(x + at[s] + j, count), sum[s]); });
  };
  for (int64_t row = 0; row < rows; ++row, dy += columns, x += x_step) {
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) add(j, lanes);
    if (j < columns) add(j, static_cast<int>(columns - j));
  }
  unroll<S>([&](auto s) __attribute__((always_inline)) { sum[s].store(sums + s * lanes); });
}

struct Buffers {  // of one thread, in elements of the arithmetic type: the plane, the sums, the offsets
  PlaneShape plane;
  int64_t sums, offsets, elements;
  Buffers(const Problem& p, int64_t lanes) : plane(p, Pass::fprop, lanes) {
    sums = aligned(plane.elements(), line);
    offsets = aligned(sums + p.taps() * lanes, line);
    elements = aligned(offsets + 2 * p.w.window, line);  // offsets are 64-bit: two elements of float each
  }
};

// The output rows [begin, end) whose tap at `shift` rows from their origin lies inside the source.
std::pair<int64_t, int64_t> rows_inside(const Phase& h, int64_t shift) {
  const int64_t at = h.offset + shift;
  const int64_t begin = at >= 0 ? 0 : (-at + h.in_step - 1) / h.in_step;
  const int64_t end = at >= h.in ? 0 : std::min(h.count, (h.in - 1 - at) / h.in_step + 1);
  return {begin, end};
}

template <class T>
void wgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  constexpr int64_t lanes = Vec<A>::lanes;
  const Buffers size(p, lanes);
  const Phase h = phase_of(p.h, Pass::fprop, 0), w = phase_of(p.w, Pass::fprop, 0);
  parallel(p.c, [&](int64_t begin, int64_t end, int thread) {
    A* plane = static_cast<A*>(args.workspace) + thread * size.elements;
    A* sums = plane + size.sums;
    int64_t* at = reinterpret_cast<int64_t*>(plane + size.offsets);
    std::fill_n(plane, size.plane.elements(), A(0));
    for (int64_t s = 0; s < w.taps; ++s) at[s] = size.plane.at(w, s);
    for (int64_t c = begin; c < end; ++c) {
      std::fill_n(sums, p.taps() * lanes, A(0));
      for (int64_t n = 0; n < p.n; ++n) {
        size.plane.fill(static_cast<const T*>(args.x) + (n * p.c + c) * p.in_pixels(), plane);
        const T* dy = static_cast<const T*>(args.y) + (n * p.c + c) * p.out_pixels();
        for (int64_t r = 0; r < h.taps; ++r) {
          const auto [first, last] = rows_inside(h, r * h.dilation);
          if (first >= last) continue;
          const A* x = plane + (h.source(first) + r * h.dilation) * size.plane.pitch;
          const auto run = [&](auto taps, int64_t s) {
            dot<T, decltype(taps)::value>(dy + first * w.count, w.count, x, h.in_step * size.plane.pitch, at + s,
                                          last - first, sums + (r * w.taps + s) * lanes);
          };
          if (w.taps == 5)
            run(std::integral_constant<int, 5>{}, 0);
          else if (w.taps == 3)
            run(std::integral_constant<int, 3>{}, 0);
          else
            for (int64_t s = 0; s < w.taps; ++s) run(std::integral_constant<int, 1>{}, s);
        }
      }
      for (int64_t t = 0; t < p.taps(); ++t) {
        A total = 0;
        for (int64_t i = 0; i < lanes; ++i) total += sums[t * lanes + i];
        static_cast<T*>(
            args.out)[c * args.w_stride[0] + t / w.taps * args.w_stride[2] + t % w.taps * args.w_stride[3]] =
            narrow<T>(total);
      }
    }
  });
}

}  // namespace

int64_t wgrad_nchw_workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    bytes = threads * Buffers(p, Vec<A>::lanes).elements * static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

void wgrad_nchw(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { wgrad<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
