// The definitions of layernorm2d, softmax2d and copy2d, one pixel at a time in double: the last rows of the list. They
// lose to every other kernel.
#include "cpu/epilogue.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Places in a buffer of `channels`, of which the problem's first is number `first`.
int64_t place(const Problem& p, int64_t channels, int64_t first, int64_t n, int64_t c, int64_t pixel) {
  return p.layout == Layout::nhwc ? (n * p.in_pixels() + pixel) * channels + first + c
                                  : (n * channels + first + c) * p.in_pixels() + pixel;
}

// f(x by channel, write(channel, value)) for every pixel.
template <class T, class F>
void each_pixel(const Problem& p, const Args& args, const Parallel& parallel, F&& f) {
  parallel(p.n * p.in_pixels(), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / p.in_pixels(), pixel = i % p.in_pixels();
      f(
          [&](int64_t c) -> double {
            return widen(static_cast<const T*>(args.x)[place(p, p.source_channels(), p.in_offset, n, c, pixel)]);
          },
          [&](int64_t c, double value) {
            static_cast<T*>(args.out)[place(p, p.buffer_channels(), p.epilogue.out_offset, n, c, pixel)] =
                narrow<T>(static_cast<arithmetic<T>>(value));
          });
    }
  });
}

void run_layer_norm(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto *weight = static_cast<const arithmetic<T>*>(args.w),
               *bias = static_cast<const arithmetic<T>*>(args.bias);
    each_pixel<T>(p, args, parallel, [&](auto x, auto write) {
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < p.c; ++c) mean += x(c) / static_cast<double>(p.c);
      for (int64_t c = 0; c < p.c; ++c) variance += (x(c) - mean) * (x(c) - mean) / static_cast<double>(p.c);
      for (int64_t c = 0; c < p.c; ++c)
        write(c, (x(c) - mean) / std::sqrt(variance + args.eps) * (weight ? weight[c] : 1) + (bias ? bias[c] : 0));
    });
  });
}

void run_softmax(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    each_pixel<std::remove_pointer_t<decltype(t)>>(p, args, parallel, [&](auto x, auto write) {
      double most = x(0), sum = 0;
      for (int64_t c = 0; c < p.c; ++c) most = x(c) > most || x(c) != x(c) ? x(c) : most;
      for (int64_t c = 0; c < p.c; ++c) sum += std::exp(x(c) - most);
      for (int64_t c = 0; c < p.c; ++c) write(c, std::exp(x(c) - most) / sum);
    });
  });
}

void run_copy(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const int64_t* stride = args.x_stride;
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t pixel = 0; pixel < p.in_pixels(); ++pixel) {
          const int64_t n = i / p.c, c = i % p.c, h = pixel / p.w.in, w = pixel % p.w.in;
          static_cast<T*>(args.out)[place(p, p.buffer_channels(), p.epilogue.out_offset, n, c, pixel)] =
              static_cast<const T*>(args.x)[n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]];
        }
    });
  });
}

}  // namespace

extern const KernelBody layernorm2d_fprop_reference{
    .refuses = refuses_epilogue, .workspace = no_workspace, .run = run_layer_norm, .reads_slices = true};
extern const KernelBody softmax2d_fprop_reference{
    .refuses = refuses_epilogue, .workspace = no_workspace, .run = run_softmax, .reads_slices = true};
extern const KernelBody copy2d_fprop_reference{.refuses = refuses_epilogue, .workspace = no_workspace, .run = run_copy};

}  // namespace fastconv::FASTCONV_ISA
