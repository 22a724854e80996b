// The definition of a local response norm and its gradient, one pixel after the other in double: the last rows of the
// list. They lose to every other kernel.
#include <algorithm>
#include <cmath>

#include "epilogue.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <class T>
struct Pixel {
  const Problem& p;
  const Args& args;
  int64_t n, pixel;

  int64_t at(int64_t c) const {
    return p.layout == Layout::nhwc ? (n * p.in_pixels() + pixel) * p.c + c : (n * p.c + c) * p.in_pixels() + pixel;
  }
  double x(int64_t c) const { return widen(static_cast<const T*>(args.x)[at(c)]); }
  double dy(int64_t c) const { return widen(static_cast<const T*>(args.y)[at(c)]); }
  double share() const { return args.response.alpha / static_cast<double>(p.size); }
  void write(int64_t c, double value) const {
    static_cast<T*>(args.out)[at(c)] = narrow<T>(static_cast<arithmetic<T>>(value));
  }

  // k + alpha / size · the squares of the window of c.
  double base(int64_t c) const {
    double sum = 0;
    for (int64_t i = std::max(c - p.size / 2, int64_t{0}); i < std::min(c + (p.size + 1) / 2, p.c); ++i)
      sum += x(i) * x(i);
    return args.response.k + share() * sum;
  }

  void fprop() const {
    for (int64_t c = 0; c < p.c; ++c) {
      double y = x(c) / std::pow(base(c), args.response.beta);
      if (p.epilogue.residual) y += widen(static_cast<const T*>(args.residual)[at(c)]);
      write(c, activate(p.epilogue.activation, p.epilogue.alpha, y));
    }
  }

  void dgrad() const {
    const double beta = args.response.beta;
    for (int64_t c = 0; c < p.c; ++c) {
      double sum = 0;
      for (int64_t i = std::max(c - (p.size - 1) / 2, int64_t{0}); i < std::min(c + p.size / 2 + 1, p.c); ++i)
        sum += dy(i) * x(i) * std::pow(base(i), -beta - 1);
      write(c, dy(c) * std::pow(base(c), -beta) - 2 * share() * beta * x(c) * sum);
    }
  }
};

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    parallel(p.n * p.in_pixels(), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Pixel<std::remove_pointer_t<decltype(t)>> pixel{p, args, i / p.in_pixels(), i % p.in_pixels()};
        if (p.pass == Pass::dgrad)
          pixel.dgrad();
        else
          pixel.fprop();
      }
    });
  });
}

}  // namespace

extern const KernelBody lrn2d_fprop_reference{norm::refuses, no_workspace, run};
extern const KernelBody lrn2d_dgrad_reference{norm::refuses, no_workspace, run};

}  // namespace fastconv::FASTCONV_ISA
