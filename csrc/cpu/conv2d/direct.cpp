// fprop and dgrad of problems so small that starting any other kernel costs more than the sums: one scalar sum a
// result, without packing, workspace or threads, in either layout. Only real taps are visited, a phase at a time
// (walk.h), so no division stands in the inner loops.
//
// About 0.7 products a nanosecond (Zen 4, 2 cores, 2026-11-22), where the matrix products need a microsecond to start:
// it loses to them from some 500 products on. They also win, measured, at 4 and 8 channels a group, by 1.4x to 4x over
// a version of this kernel vectorised along pixels, so grouped problems are theirs.
#include "cpu/epilogue.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr double most_products = 512;

template <class T>
struct Direct {
  using A = arithmetic<T>;
  const Problem& p;
  const bool dgrad, nhwc;
  const T *source, *filter;
  int64_t sources, results;  // channels of a group
  const int64_t* w_step;
  int64_t w_result, w_source;
  Tail<T> tail;

  Direct(const Problem& problem, const Args& args)
      : p(problem),
        dgrad(p.pass == Pass::dgrad),
        nhwc(p.layout == Layout::nhwc),
        source(static_cast<const T*>(dgrad ? args.y : args.x)),
        filter(static_cast<const T*>(args.w)),
        sources(dgrad ? p.filters_per_group() : p.channels_per_group()),
        results(dgrad ? p.channels_per_group() : p.filters_per_group()),
        w_step(args.w_stride),
        w_result(w_step[dgrad ? 1 : 0]),
        w_source(w_step[dgrad ? 0 : 1]),
        tail(problem, args) {}

  A sum(int64_t n, int64_t k, const Walk& h, int64_t i, const Walk& w, int64_t j) const {
    const int64_t all = sources * p.groups, plane = h.size * w.size, g = k / results;
    const int64_t pixel_step = nhwc ? all : 1, channel_step = nhwc ? 1 : plane;
    const T* from = source + n * all * plane + g * sources * channel_step;
    const T* weights = filter + g * p.filters_per_group() * w_step[0] + k % results * w_result;
    A total = 0;
    for (int64_t r = 0; r < h.taps; ++r) {
      const int64_t y = h.source(i, r);
      if (y < 0 || y >= h.size) continue;
      for (int64_t s = 0; s < w.taps; ++s) {
        const int64_t z = w.source(j, s);
        if (z < 0 || z >= w.size) continue;
        const T* x = from + (y * w.size + z) * pixel_step;
        const T* tap = weights + h.tap(r) * w_step[2] + w.tap(s) * w_step[3];
        for (int64_t c = 0; c < sources; ++c) total += widen(x[c * channel_step]) * widen(tap[c * w_source]);
      }
    }
    return total;
  }

  void phase(const Walk& h, const Walk& w) const {
    const int64_t line = dgrad ? p.w.in : p.w.out;
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t k = 0; k < results * p.groups; ++k)
        for (int64_t i = 0; i < h.count; ++i)
          for (int64_t j = 0; j < w.count; ++j)
            tail.put(n, k, (h.start + i * h.step) * line + w.start + j * w.step, sum(n, k, h, i, w, j));
  }

  void run() const {
    if (!dgrad) return phase(fprop_walk(p.h), fprop_walk(p.w));
    for (int64_t a = 0; a < std::min(p.h.stride, p.h.in); ++a)
      for (int64_t b = 0; b < std::min(p.w.stride, p.w.in); ++b) phase(dgrad_walk(p.h, a), dgrad_walk(p.w, b));
  }
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  const double products = p.flops() / 2;
  if (products > most_products)
    return "The problem sums " + std::to_string(static_cast<int64_t>(products)) + " products; beyond " +
           std::to_string(static_cast<int64_t>(most_products)) + " a matrix product is faster.";
  if (p.pass == Pass::dgrad && static_cast<double>(p.x_elements()) > most_products)
    return "The gradient has " + std::to_string(p.x_elements()) + " elements, too many to write one by one.";
  return {};
}

void run(const Problem& p, const Args& args, const Parallel&) {
  with_dtype(p.dtype, [&](auto* t) { Direct<std::remove_pointer_t<decltype(t)>>(p, args).run(); });
}

}  // namespace

extern const KernelBody conv2d_fprop_direct{refuses, no_workspace, run};
extern const KernelBody conv2d_dgrad_direct{refuses, no_workspace, run};

}  // namespace fastconv::FASTCONV_ISA
