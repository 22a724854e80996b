// The definition of the three passes, one output element at a time: the last row of the list, which refuses nothing.
// Correct for every stride, dilation, group, padding, dtype and layout; it loses to every other kernel.
// Sums are accumulated in double, so that the result differs from the exact one by little more than its rounding.
#include "cpu/epilogue.h"

namespace fastconv::FASTCONV_ISA {

namespace {

struct View {  // element offsets of an activation tensor
  int64_t channels, pixels;
  bool nhwc;
  int64_t at(int64_t n, int64_t c, int64_t pixel) const {
    return nhwc ? (n * pixels + pixel) * channels + c : (n * channels + c) * pixels + pixel;
  }
};

View input_view(const Problem& p) { return {p.c, p.in_pixels(), p.layout == Layout::nhwc}; }
View output_view(const Problem& p) { return {p.k, p.out_pixels(), p.layout == Layout::nhwc}; }

int64_t filter_at(const Args& a, int64_t k, int64_t c, int64_t r, int64_t s) {
  return k * a.w_stride[0] + c * a.w_stride[1] + r * a.w_stride[2] + s * a.w_stride[3];
}

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  return {};
}

// The input row or column that output position `out` reads through tap `tap`.
int64_t source(const Axis& axis, int64_t out, int64_t tap) {
  return out * axis.stride - axis.pad_lo + tap * axis.dilation;
}

// The output position whose tap `tap` reads input position `in`, or -1.
int64_t target(const Axis& axis, int64_t in, int64_t tap) {
  const int64_t shifted = in + axis.pad_lo - tap * axis.dilation;
  if (shifted < 0 || shifted % axis.stride) return -1;
  const int64_t out = shifted / axis.stride;
  return out < axis.out ? out : -1;
}

template <class T>
void fprop(const Problem& p, const Args& args, const Parallel& parallel) {
  const T* x = static_cast<const T*>(args.x);
  const T* w = static_cast<const T*>(args.w);
  const Tail<T> tail(p, args);
  const View in = input_view(p);
  const int64_t cg = p.channels_per_group(), kg = p.filters_per_group();
  parallel(p.n * p.k, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / p.k, k = i % p.k, c0 = k / kg * cg;
      for (int64_t pixel = 0; pixel < p.out_pixels(); ++pixel) {
        double sum = 0;
        for (int64_t r = 0; r < p.h.window; ++r)
          for (int64_t s = 0; s < p.w.window; ++s) {
            const int64_t y = source(p.h, pixel / p.w.out, r), z = source(p.w, pixel % p.w.out, s);
            if (y < 0 || y >= p.h.in || z < 0 || z >= p.w.in) continue;
            for (int64_t c = 0; c < cg; ++c)
              sum += static_cast<double>(widen(x[in.at(n, c0 + c, y * p.w.in + z)])) *
                     static_cast<double>(widen(w[filter_at(args, k, c, r, s)]));
          }
        tail.put(n, k, pixel, static_cast<arithmetic<T>>(sum));
      }
    }
  });
}

template <class T>
void dgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  const T* dy = static_cast<const T*>(args.y);
  const T* w = static_cast<const T*>(args.w);
  const Tail<T> tail(p, args);
  const View out = output_view(p);
  const int64_t cg = p.channels_per_group(), kg = p.filters_per_group();
  parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / p.c, c = i % p.c, k0 = c / cg * kg;
      for (int64_t pixel = 0; pixel < p.in_pixels(); ++pixel) {
        double sum = 0;
        for (int64_t r = 0; r < p.h.window; ++r)
          for (int64_t s = 0; s < p.w.window; ++s) {
            const int64_t y = target(p.h, pixel / p.w.in, r), z = target(p.w, pixel % p.w.in, s);
            if (y < 0 || z < 0) continue;
            for (int64_t k = 0; k < kg; ++k)
              sum += static_cast<double>(widen(dy[out.at(n, k0 + k, y * p.w.out + z)])) *
                     static_cast<double>(widen(w[filter_at(args, k0 + k, c % cg, r, s)]));
          }
        tail.put(n, c, pixel, static_cast<arithmetic<T>>(sum));
      }
    }
  });
}

template <class T>
void wgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.y);
  T* dw = static_cast<T*>(args.out);
  const View in = input_view(p), out = output_view(p);
  const int64_t cg = p.channels_per_group(), kg = p.filters_per_group();
  parallel(p.k * cg, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i / cg, c = i % cg, c0 = k / kg * cg;
      for (int64_t r = 0; r < p.h.window; ++r)
        for (int64_t s = 0; s < p.w.window; ++s) {
          double sum = 0;
          for (int64_t n = 0; n < p.n; ++n)
            for (int64_t pixel = 0; pixel < p.out_pixels(); ++pixel) {
              const int64_t y = source(p.h, pixel / p.w.out, r), z = source(p.w, pixel % p.w.out, s);
              if (y < 0 || y >= p.h.in || z < 0 || z >= p.w.in) continue;
              sum += static_cast<double>(widen(x[in.at(n, c0 + c, y * p.w.in + z)])) *
                     static_cast<double>(widen(dy[out.at(n, k, pixel)]));
            }
          dw[filter_at(args, k, c, r, s)] = narrow<T>(static_cast<arithmetic<T>>(sum));
        }
    }
  });
}

#define FASTCONV_RUN(pass)                                                                              \
  [](const Problem& p, const Args& args, const Parallel& parallel) {                                    \
    with_dtype(p.dtype, [&](auto* t) { pass<std::remove_pointer_t<decltype(t)>>(p, args, parallel); }); \
  }

}  // namespace

extern const KernelBody conv2d_fprop_reference{refuses, no_workspace, FASTCONV_RUN(fprop)};
extern const KernelBody conv2d_dgrad_reference{refuses, no_workspace, FASTCONV_RUN(dgrad)};
extern const KernelBody conv2d_wgrad_reference{refuses, no_workspace, FASTCONV_RUN(wgrad)};

}  // namespace fastconv::FASTCONV_ISA
