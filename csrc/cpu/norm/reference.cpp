// The definition of batch normalisation and its gradients, one channel after the other in double: the last rows of the
// list. They lose to every other kernel.
#include <cmath>

#include "epilogue.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// A sum that carries what its additions rounded away (Kahan).
struct Sum {
  double sum = 0, lost = 0;
  void add(double value) {
    const double part = value - lost, next = sum + part;
    lost = (next - sum) - part;
    sum = next;
  }
};

template <class T>
struct Channel {
  using A = arithmetic<T>;
  const Problem& p;
  const Args& args;
  int64_t c;

  double of(const void* values, double otherwise) const {
    return values ? static_cast<double>(static_cast<const A*>(values)[c]) : otherwise;
  }
  // The place of the channel's pixel i in a buffer of so many channels, the problem's first being number `first`.
  int64_t place(int64_t n, int64_t i, int64_t channels, int64_t first) const {
    const int64_t pixels = p.in_pixels(), at = first + c;
    return p.layout == Layout::nhwc ? (n * pixels + i) * channels + at : (n * channels + at) * pixels + i;
  }
  // f(image, pixel) for each element, in their order.
  template <class F>
  void each_pixel(F&& f) const {
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t i = 0; i < p.in_pixels(); ++i) f(n, i);
  }
  // f(place in a dense tensor).
  template <class F>
  void each(F&& f) const {
    each_pixel([&](int64_t n, int64_t i) { f(place(n, i, p.c, 0)); });
  }
  double x(int64_t at) const { return widen(static_cast<const T*>(args.x)[at]); }
  double dy(int64_t at) const { return widen(static_cast<const T*>(args.y)[at]); }
  double count() const { return static_cast<double>(p.n * p.in_pixels()); }
  void write(const void* pair, double first, double second) const {
    auto* out = static_cast<A*>(const_cast<void*>(pair));
    out[c] = static_cast<A>(first), out[p.c + c] = static_cast<A>(second);
  }

  void fprop() const {
    double mean = of(args.mean, 0), variance = of(args.variance, 1);
    if (p.training) {
      Sum whole, square;
      each([&](int64_t at) { whole.add(x(at)); });
      mean = whole.sum / count();
      each([&](int64_t at) { square.add((x(at) - mean) * (x(at) - mean)); });
      variance = square.sum / count();
      write(args.stats, mean, variance);
    }
    const double scale = of(args.w, 1) / std::sqrt(variance + args.eps), bias = of(args.bias, 0);
    each_pixel([&](int64_t n, int64_t i) {
      double y = (x(place(n, i, p.source_channels(), p.in_offset)) - mean) * scale + bias;
      if (p.epilogue.residual) y += widen(static_cast<const T*>(args.residual)[place(n, i, p.c, 0)]);
      y = activate(p.epilogue.activation, p.epilogue.alpha, y);
      static_cast<T*>(args.out)[place(n, i, p.buffer_channels(), p.epilogue.out_offset)] = narrow<T>(static_cast<A>(y));
    });
  }

  void gradients() const {
    const double mean = of(args.mean, 0), inverse = 1 / std::sqrt(of(args.variance, 1) + args.eps);
    Sum all, products;
    each([&](int64_t at) { all.add(dy(at)), products.add(dy(at) * (x(at) - mean) * inverse); });
    const double plain = all.sum, weighted = products.sum;
    write(p.pass == Pass::dgrad ? args.stats : args.out, weighted, plain);
    if (p.pass == Pass::wgrad) return;
    const double slope = of(args.w, 1) * inverse;
    each([&](int64_t at) {
      double dx = dy(at);
      if (p.training) dx -= (plain + (x(at) - mean) * inverse * weighted) / count();
      static_cast<T*>(args.out)[at] = narrow<T>(static_cast<A>(slope * dx));
    });
  }
};

template <bool gradients>
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    parallel(p.c, [&](int64_t begin, int64_t end, int) {
      for (int64_t c = begin; c < end; ++c) {
        const Channel<std::remove_pointer_t<decltype(t)>> channel{p, args, c};
        if constexpr (gradients)
          channel.gradients();
        else
          channel.fprop();
      }
    });
  });
}

}  // namespace

extern const KernelBody batchnorm2d_fprop_reference{
    .refuses = norm::refuses, .workspace = no_workspace, .run = run<false>, .reads_slices = true};
extern const KernelBody batchnorm2d_dgrad_reference{norm::refuses, no_workspace, run<true>};
extern const KernelBody batchnorm2d_wgrad_reference{norm::refuses, no_workspace, run<true>};

}  // namespace fastconv::FASTCONV_ISA
