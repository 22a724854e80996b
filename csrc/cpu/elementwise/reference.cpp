// The definitions of map2d, reorder2d, bilinear2d and nearest2d, one element at a time in double: the last rows of the
// list. They lose to every other kernel.
#include "cpu/epilogue.h"
#include "refuses.h"
#include "weights.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Places in a buffer of `channels`, of which the problem's first is number `first`.
struct View {
  Layout layout;
  int64_t channels, first, pixels;
  int64_t at(int64_t n, int64_t c, int64_t pixel) const {
    return layout == Layout::nhwc ? (n * pixels + pixel) * channels + first + c
                                  : (n * channels + first + c) * pixels + pixel;
  }
};
View source(const Problem& p) { return {p.layout, p.source_channels(), p.in_offset, p.in_pixels()}; }
View written(const Problem& p) {
  const bool turned = p.op == Op::reorder2d;
  const Layout layout = (p.layout == Layout::nhwc) != turned ? Layout::nhwc : Layout::nchw;
  return {layout, p.buffer_channels(), p.epilogue.out_offset, p.out_pixels()};
}

// out(n, c, pixel) = value(x, n, c, pixel), x read by image, channel and pixel.
template <class F>
void each(const Problem& p, const Args& args, const Parallel& parallel, F&& value) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const View from = source(p), to = written(p);
    const auto read = [&](int64_t n, int64_t c, int64_t pixel) -> double {
      return widen(static_cast<const T*>(args.x)[from.at(n, c, pixel)]);
    };
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t pixel = 0; pixel < to.pixels; ++pixel)
          static_cast<T*>(args.out)[to.at(i / p.c, i % p.c, pixel)] =
              narrow<T>(static_cast<arithmetic<T>>(value(t, read, i / p.c, i % p.c, pixel)));
    });
  });
}

void run_map(const Problem& p, const Args& args, const Parallel& parallel) {
  const View dense{p.layout, p.c, 0, p.in_pixels()};
  each(p, args, parallel, [&](auto* t, const auto& x, int64_t n, int64_t c, int64_t pixel) {
    using T = std::remove_pointer_t<decltype(t)>;
    double y = x(n, c, pixel);
    if (p.scale) y *= widen(static_cast<const T*>(args.scale)[n * p.c + c]);
    if (p.epilogue.residual) y += widen(static_cast<const T*>(args.residual)[dense.at(n, c, pixel)]);
    return activate(p.epilogue.activation, p.epilogue.alpha, y);
  });
}

void run_reorder(const Problem& p, const Args& args, const Parallel& parallel) {
  each(p, args, parallel, [&](auto*, const auto& x, int64_t n, int64_t c, int64_t pixel) { return x(n, c, pixel); });
}

void run_bilinear(const Problem& p, const Args& args, const Parallel& parallel) {
  each(p, args, parallel, [&](auto*, const auto& x, int64_t n, int64_t c, int64_t pixel) {
    const Between v = between(p.h, p.corners, pixel / p.w.out), h = between(p.w, p.corners, pixel % p.w.out);
    const auto row = [&](int64_t i) {
      return x(n, c, i * p.w.in + h.first) * h.near + x(n, c, i * p.w.in + h.second) * h.far;
    };
    return row(v.first) * v.near + row(v.second) * v.far;
  });
}

void run_nearest(const Problem& p, const Args& args, const Parallel& parallel) {
  each(p, args, parallel, [&](auto*, const auto& x, int64_t n, int64_t c, int64_t pixel) {
    return x(n, c, nearest(p.h, pixel / p.w.out) * p.w.in + nearest(p.w, pixel % p.w.out));
  });
}

}  // namespace

extern const KernelBody map2d_fprop_reference{
    .refuses = refuses_unknown, .workspace = no_workspace, .run = run_map, .reads_slices = true};
extern const KernelBody reorder2d_fprop_reference{refuses_slices, no_workspace, run_reorder};
extern const KernelBody bilinear2d_fprop_reference{
    .refuses = refuses_fused, .workspace = no_workspace, .run = run_bilinear, .reads_slices = true};
extern const KernelBody nearest2d_fprop_reference{
    .refuses = refuses_fused, .workspace = no_workspace, .run = run_nearest, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
