// The matrices of F(2x2,3x3), F(4x4,3x3) and F(2x2,5x5), written down once: y = A^T [(G g G^T) * (B^T d B)] A, where *
// multiplies element by element (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).
//
// The filter's gradient is that product transposed, dg = G^T [(A dy A^T) * (B^T d B)] G, of the same three matrices.
//
// The one-dimensional steps below are those products with the common parts taken out; V is a register of channels. The
// two-dimensional ones apply a step to the columns and then to the rows of a square.
#pragma once

#include <numbers>

#include "cut.h"
#include "simd/opaque.h"
#include "simd/unrolled.h"
#include "simd/vec.h"

namespace fastconv::FASTCONV_ISA::winograd {

template <int outputs, int filter>
struct Points;

// Points 0, 1, -1 and infinity.
//         1  0 -1  0          1    0    0         1  1  1  0
//   B^T = 0  1  1  0      G = 1/2  1/2  1/2  A^T= 0  1 -1 -1
//         0 -1  1  0          1/2 -1/2  1/2
//         0  1  0 -1          0    0    1
// B and A only add, so that integers stay exact; a quarter is the finest a filter is divided by.
template <>
struct Points<2, 3> {
  static constexpr int outputs = 2, filter = 3, size = 4, frequencies = size * size;

  template <class V>
  [[gnu::always_inline]] static void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_step(const V (&g)[3], V (&u)[4]) {
    const V half = V::broadcast(0.5), even = (g[0] + g[2]) * half;
    u[0] = g[0];
    u[1] = fma(half, g[1], even);
    u[2] = even - half * g[1];
    u[3] = g[2];
  }
  template <class V>
  [[gnu::always_inline]] static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = (m[0] + m[1]) + m[2];
    y[1] = (m[1] - m[2]) - m[3];
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&d)[2], V (&v)[4]) {
    v[0] = d[0];
    v[1] = d[0] + d[1];
    v[2] = d[0] - d[1];
    v[3] = V::zero() - d[1];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&u)[4], V (&g)[3]) {
    const V half = V::broadcast(0.5);
    g[0] = fma(half, u[1] + u[2], u[0]);
    g[1] = half * (u[1] - u[2]);
    g[2] = fma(half, u[1] + u[2], u[3]);
  }
};

// Points 0, a, -a, b, -b and infinity with a^2 = 1/2, b^2 = 2, so that a^2 b^2 = 1: the symmetric, reciprocal choice of
// Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
// Neural Networks" (2018), has about half the error of 0, 1, -1, 2, -2.
//         1   0 -5/2   0    1  0          1     0     0         1  1    1    1    1    0
//         0 -2a  -2    a    1  0        -2/3 -2/3a  -1/3        0  a   -a    b   -b    0
//   B^T = 0  2a  -2   -a    1  0    G = -2/3  2/3a  -1/3  A^T = 0 1/2  1/2   2    2    0
//         0 -b/2 -1/2  b    1  0         1/6  1/6b   1/3        0 a/2 -a/2   2b  -2b   1
//         0  b/2 -1/2 -b    1  0         1/6 -1/6b   1/3
//         0   1   0  -5/2   0  1          0     0     1
template <>
struct Points<4, 3> {
  static constexpr int outputs = 4, filter = 3, size = 6, frequencies = size * size;
  static constexpr double a = std::numbers::sqrt2 / 2, b = std::numbers::sqrt2;

  template <class V>
  [[gnu::always_inline]] static void input(const V (&d)[6], V (&v)[6]) {
    const V middle = V::broadcast(-2.5);
    v[0] = fma(middle, d[2], d[0] + d[4]);
    v[5] = fma(middle, d[3], d[1] + d[5]);
    const V even_a = fma(V::broadcast(-2), d[2], d[4]), odd_a = fma(V::broadcast(-2), d[1], d[3]);
    v[1] = fma(V::broadcast(a), odd_a, even_a);
    v[2] = fma(V::broadcast(-a), odd_a, even_a);
    const V even_b = fma(V::broadcast(-0.5), d[2], d[4]), odd_b = fma(V::broadcast(-0.5), d[1], d[3]);
    v[3] = fma(V::broadcast(b), odd_b, even_b);
    v[4] = fma(V::broadcast(-b), odd_b, even_b);
  }
  template <class V>
  [[gnu::always_inline]] static void filter_step(const V (&g)[3], V (&u)[6]) {
    constexpr double third = 1.0 / 3, sixth = 1.0 / 6;
    const V even_a = V::broadcast(-third) * fma(V::broadcast(2), g[0], g[2]);
    const V even_b = V::broadcast(sixth) * fma(V::broadcast(2), g[2], g[0]);
    u[0] = g[0];
    u[1] = fma(V::broadcast(-2 * third * a), g[1], even_a);
    u[2] = fma(V::broadcast(2 * third * a), g[1], even_a);
    u[3] = fma(V::broadcast(sixth * b), g[1], even_b);
    u[4] = fma(V::broadcast(-sixth * b), g[1], even_b);
    u[5] = g[2];
  }
  template <class V>
  [[gnu::always_inline]] static void output(const V (&m)[6], V (&y)[4]) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = (m[0] + even_a) + even_b;
    y[1] = fma(V::broadcast(b), odd_b, V::broadcast(a) * odd_a);
    y[2] = fma(V::broadcast(2), even_b, V::broadcast(0.5) * even_a);
    y[3] = fma(V::broadcast(2 * b), odd_b, fma(V::broadcast(a / 2), odd_a, m[5]));
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&d)[4], V (&v)[6]) {
    const V even_a = fma(V::broadcast(0.5), d[2], d[0]), odd_a = fma(V::broadcast(0.5), d[3], d[1]);
    const V even_b = fma(V::broadcast(2), d[2], d[0]), odd_b = fma(V::broadcast(2), d[3], d[1]);
    v[0] = d[0];
    v[1] = fma(V::broadcast(a), odd_a, even_a);
    v[2] = fma(V::broadcast(-a), odd_a, even_a);
    v[3] = fma(V::broadcast(b), odd_b, even_b);
    v[4] = fma(V::broadcast(-b), odd_b, even_b);
    v[5] = d[3];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&u)[6], V (&g)[3]) {
    constexpr double third = 1.0 / 3, sixth = 1.0 / 6;
    const V even_a = u[1] + u[2], odd_a = u[1] - u[2], even_b = u[3] + u[4], odd_b = u[3] - u[4];
    g[0] = fma(V::broadcast(sixth), even_b, fma(V::broadcast(-2 * third), even_a, u[0]));
    g[1] = fma(V::broadcast(sixth * b), odd_b, V::broadcast(-2 * third * a) * odd_a);
    g[2] = fma(V::broadcast(third), even_b, fma(V::broadcast(-third), even_a, u[5]));
  }
};

// The same points for two outputs of five taps: B^T is F(4x4,3x3)'s, and
//          1     0     0     0    0
//        -2/3 -2/3a  -1/3  -a/3 -1/6
//    G = -2/3  2/3a  -1/3   a/3 -1/6    A^T= 1  1  1  1  1  0
//         1/6  1/6b   1/3   b/3  2/3         0  a -a  b -b  1
//         1/6 -1/6b   1/3  -b/3  2/3
//          0     0     0     0    1
template <>
struct Points<2, 5> {
  static constexpr int outputs = 2, filter = 5, size = 6, frequencies = size * size;
  static constexpr double a = Points<4, 3>::a, b = Points<4, 3>::b;

  template <class V>
  [[gnu::always_inline]] static void input(const V (&d)[6], V (&v)[6]) {
    Points<4, 3>::input(d, v);
  }
  template <class V>
  [[gnu::always_inline]] static void filter_step(const V (&g)[5], V (&u)[6]) {
    constexpr double third = 1.0 / 3, sixth = 1.0 / 6;
    const V even_a = V::broadcast(-third) * fma(V::broadcast(2), g[0], fma(V::broadcast(0.5), g[4], g[2]));
    const V odd_a = V::broadcast(-third * a) * fma(V::broadcast(2), g[1], g[3]);
    const V even_b = V::broadcast(third) * fma(V::broadcast(2), g[4], fma(V::broadcast(0.5), g[0], g[2]));
    const V odd_b = V::broadcast(sixth * b) * fma(V::broadcast(2), g[3], g[1]);
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[4];
  }
  template <class V>
  [[gnu::always_inline]] static void output(const V (&m)[6], V (&y)[2]) {
    y[0] = (m[0] + (m[1] + m[2])) + (m[3] + m[4]);
    y[1] = fma(V::broadcast(b), m[3] - m[4], fma(V::broadcast(a), m[1] - m[2], m[5]));
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&d)[2], V (&v)[6]) {
    v[0] = d[0];
    v[1] = fma(V::broadcast(a), d[1], d[0]);
    v[2] = fma(V::broadcast(-a), d[1], d[0]);
    v[3] = fma(V::broadcast(b), d[1], d[0]);
    v[4] = fma(V::broadcast(-b), d[1], d[0]);
    v[5] = d[1];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&u)[6], V (&g)[5]) {
    constexpr double third = 1.0 / 3, sixth = 1.0 / 6;
    const V even_a = u[1] + u[2], odd_a = u[1] - u[2], even_b = u[3] + u[4], odd_b = u[3] - u[4];
    g[0] = fma(V::broadcast(sixth), even_b, fma(V::broadcast(-2 * third), even_a, u[0]));
    g[1] = fma(V::broadcast(sixth * b), odd_b, V::broadcast(-2 * third * a) * odd_a);
    g[2] = V::broadcast(third) * (even_b - even_a);
    g[3] = fma(V::broadcast(third * b), odd_b, V::broadcast(-third * a) * odd_a);
    g[4] = fma(V::broadcast(2 * third), even_b, fma(V::broadcast(-sixth), even_a, u[5]));
  }
};

// f(i, first + i·step) for each i below count.
template <int count, class T, class F>
[[gnu::always_inline]] inline void walk(T* first, int64_t step, F f) {
  T* at = opaque(first);
  unrolled<count>([&](auto i) __attribute__((always_inline)) {
    f(i, at);
    at += step;
  });
}

// step on the In columns that load(j, column) fills, then on the Out rows of the result, which store(i, row) takes.
template <int In, int Out, class V, class Step, class Load, class Store>
[[gnu::always_inline]] inline void transform(Step step, Load load, Store store) {
  V rows[Out][In];
  unrolled<In>([&](auto j) __attribute__((always_inline)) {
    V in[In], out[Out];
    load(j, in);
    step(in, out);
    unrolled<Out>([&](auto i) __attribute__((always_inline)) { rows[i][j] = out[i]; });
  });
  unrolled<Out>([&](auto i) __attribute__((always_inline)) {
    V out[Out];
    step(rows[i], out);
    store(i, out);
  });
}

// The transforms of a square of pixels: of the input, and of the output's gradient.
template <class P>
struct InputStep {
  static constexpr int from = P::size, to = P::size;
  template <class V>
  [[gnu::always_inline]] static void apply(const V (&d)[from], V (&v)[to]) {
    P::input(d, v);
  }
};
template <class P>
struct GradientStep {
  static constexpr int from = P::outputs, to = P::size;
  template <class V>
  [[gnu::always_inline]] static void apply(const V (&d)[from], V (&v)[to]) {
    P::gradient(d, v);
  }
};

// pixel[from·from] point at rows of channels; frequency f goes to out + f·step, zeros filling the last register.
template <class Step, class T>
void transform_square(const T* const* pixel, int64_t channels, arithmetic<T>* out, int64_t step) {
  using V = Vec<arithmetic<T>>;
  constexpr int from = Step::from, to = Step::to;
  const auto square = [&](int64_t c, auto load_pixel) __attribute__((always_inline)) {
    transform<from, to, V>([](const auto& d, auto& v) __attribute__((always_inline)) { Step::apply(d, v); },
                           [&](auto j, auto& column) __attribute__((always_inline)) {
                             unrolled<from>([&](auto i) __attribute__((always_inline)) {
                               column[i] = load_pixel(pixel[i * from + j] + c);
                             });
                           },
                           [&](auto i, const auto& row) __attribute__((always_inline)) {
                             walk<to>(out + i * to * step + c, step,
                                      [&](auto j, auto* at) __attribute__((always_inline)) { store(at, row[j]); });
                           });
  };
  int64_t c = 0;
  for (; c + V::lanes <= channels; c += V::lanes) square(c, [](const T* p) { return load(p); });
  if (c < channels) square(c, [&](const T* p) { return load(p, static_cast<int>(channels - c)); });
}

// `count` filters lying side by side, a multiple of the lanes: tap t at packed + t·packed_step, frequency f to
// out + f·out_step.
template <class P, class A>
void transform_filter(const A* packed, int64_t packed_step, int64_t count, A* out, int64_t out_step) {
  using V = Vec<A>;
  for (int64_t k = 0; k < count; k += V::lanes)
    transform<P::filter, P::size, V>(
        [](const auto& g, auto& u) __attribute__((always_inline)) { P::filter_step(g, u); },
        [&](auto j, auto& column) __attribute__((always_inline)) {
          walk<P::filter>(packed + j * packed_step + k, P::filter * packed_step,
                          [&](auto i, auto* at) __attribute__((always_inline)) { column[i] = load(at); });
        },
        [&](auto i, const auto& row) __attribute__((always_inline)) {
          walk<P::size>(out + i * P::size * out_step + k, out_step,
                        [&](auto j, auto* at) __attribute__((always_inline)) { store(at, row[j]); });
        });
}

// Frequencies at m + f·step, reduced to a square of Out x Out by `reduce`, one of P's steps.
template <class P, int Out, class A, class Reduce>
[[gnu::always_inline]] inline void transform_back(const A* m, int64_t step, Vec<A> (&y)[Out][Out], Reduce reduce) {
  transform<P::size, Out, Vec<A>>(
      reduce,
      [&](auto j, auto& column) __attribute__((always_inline)) {
        walk<P::size>(m + j * step, P::size * step,
                      [&](auto i, auto* at) __attribute__((always_inline)) { column[i] = load(at); });
      },
      [&](auto i, const auto& row) __attribute__((always_inline)) {
        unrolled<Out>([&](auto j) __attribute__((always_inline)) { y[i][j] = row[j]; });
      });
}

// One register of channels of an output tile, from the sums of its frequencies.
template <class P, class A>
void transform_output(const A* m, int64_t step, Vec<A> (&y)[P::outputs][P::outputs]) {
  transform_back<P>(m, step, y, [](const auto& in, auto& out) __attribute__((always_inline)) { P::output(in, out); });
}

// One register of channels of a filter's gradient.
template <class P, class A>
void transform_filter_gradient(const A* m, int64_t step, Vec<A> (&g)[P::filter][P::filter]) {
  transform_back<P>(m, step, g,
                    [](const auto& in, auto& out) __attribute__((always_inline)) { P::filter_gradient(in, out); });
}

}  // namespace fastconv::FASTCONV_ISA::winograd
