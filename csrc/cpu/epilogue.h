// The fused tail of every convolution kernel: + bias, + residual, activation, one rounding, store.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/kernel.h"
#include "simd/exp.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

// gelu by tanh is x·(1 + tanh(u)) / 2 = x·sigmoid(2u) with this u.
template <class A>
A tanh_argument(A x) {
  constexpr A root = static_cast<A>(0.79788456080286536), cubic = static_cast<A>(0.044715);  // root: of 2/pi
  return root * (x + cubic * x * x * x);
}

// A lane at a time, as the kernels without registers do.
template <class A>
A activate(Activation activation, A alpha, A x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 || x != x ? x : A(0);
    case Activation::relu6:
      return x != x ? x : (x > 0 ? (x < 6 ? x : A(6)) : A(0));
    case Activation::leaky_relu:
      return x > 0 ? x : x * alpha;
    case Activation::silu:
      return x / (A(1) + std::exp(-x));
    case Activation::hardswish: {
      const A gate = x + 3 > 0 ? (x + 3 < 6 ? x + 3 : A(6)) : A(0);
      return x * gate / 6;
    }
    case Activation::hardsigmoid:
      return (x + 3 > 0 || x != x ? (x + 3 < 6 || x != x ? x + 3 : A(6)) : A(0)) / 6;
    case Activation::sigmoid:
      return A(1) / (A(1) + std::exp(-x));
    case Activation::gelu:
      return x * A(0.5) * std::erfc(x * A(-1 / std::numbers::sqrt2));
    case Activation::gelutanh:
      return x / (A(1) + std::exp(-2 * tanh_argument(x)));
  }
  return x;
}

// Activations on exp, apart from the loops that store: they are long, and few calls have one.
template <class A>
[[gnu::noinline]] Vec<A> activate_by_exp(Activation activation, Vec<A> x) {
  switch (activation) {
    case Activation::silu:
      return silu(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelutanh:
      return gelu_tanh(x);
    default:
      return x;
  }
}

template <class A>
Vec<A> activate(Activation activation, A alpha, Vec<A> x) {
  using V = Vec<A>;
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return at_least(x, V::zero());
    case Activation::relu6:
      return at_most(at_least(x, V::zero()), V::broadcast(6));
    case Activation::leaky_relu:
      return where_positive(x, x, x * V::broadcast(alpha));
    case Activation::hardswish:
      return x * at_most(at_least(x + V::broadcast(3), V::zero()), V::broadcast(6)) / V::broadcast(6);
    case Activation::hardsigmoid:
      return at_most(at_least(x + V::broadcast(3), V::zero()), V::broadcast(6)) / V::broadcast(6);
    default:
      return activate_by_exp(activation, x);
  }
}

// Built once a call from the problem and its operands; every store of a kernel goes through it.
template <class T>
struct Tail {
  using A = arithmetic<T>;
  T* out;
  const T* bias;
  const T* residual;
  Activation activation;
  A alpha;
  int64_t out_channels;  // of the buffer written into
  int64_t out_offset;    // first channel of the slice
  int64_t channels;      // written channels: of the dense residual
  int64_t pixels;        // of one written image
  bool nhwc;

  Tail(const Problem& p, const Args& args)
      : out(static_cast<T*>(args.out)),
        bias(p.epilogue.bias ? static_cast<const T*>(args.bias) : nullptr),
        residual(p.epilogue.residual ? static_cast<const T*>(args.residual) : nullptr),
        activation(p.epilogue.activation),
        alpha(static_cast<A>(p.epilogue.alpha)),
        out_channels(p.buffer_channels()),
        out_offset(p.epilogue.out_offset),
        channels(p.written_channels()),
        pixels(p.pass == Pass::dgrad ? p.in_pixels() : p.out_pixels()),
        nhwc(p.layout == Layout::nhwc) {}

  int64_t out_at(int64_t n, int64_t channel, int64_t pixel) const {
    return nhwc ? (n * pixels + pixel) * out_channels + out_offset + channel
                : (n * out_channels + out_offset + channel) * pixels + pixel;
  }
  int64_t residual_at(int64_t n, int64_t channel, int64_t pixel) const {
    return nhwc ? (n * pixels + pixel) * channels + channel : (n * channels + channel) * pixels + pixel;
  }

  // One element.
  void put(int64_t n, int64_t channel, int64_t pixel, A value) const {
    if (bias) value += widen(bias[channel]);
    if (residual) value += widen(residual[residual_at(n, channel, pixel)]);
    out[out_at(n, channel, pixel)] = narrow<T>(activate(activation, alpha, value));
  }
  // NHWC: `count` consecutive channels of one pixel.
  void put_channels(int64_t n, int64_t channel, int64_t pixel, Vec<A> value, int count) const {
    put_channels(n, channel, pixel, value, count, [this](Vec<A> x) { return activate(activation, alpha, x); });
  }
  template <class Act>
  void put_channels(int64_t n, int64_t channel, int64_t pixel, Vec<A> value, int count, Act act) const {
    if (bias) value = value + load(bias + channel, count);
    if (residual) value = value + load(residual + residual_at(n, channel, pixel), count);
    store(out + out_at(n, channel, pixel), act(value), count);
  }
  // A tile: `columns` channels of pixels pixel(0), pixel(1), ... silu and gelu stand in the loop, not behind a call for
  // each register.
  template <class Pixel>
  void put_tile(int64_t n, int64_t channel, int64_t columns, int64_t rows, A* const* sums, Pixel pixel) const {
    const auto put = [&](auto act) __attribute__((always_inline)) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < columns; c += Vec<A>::lanes)
          put_channels(n, channel + c, pixel(i), load(sums[i] + c),
                       static_cast<int>(std::min<int64_t>(Vec<A>::lanes, columns - c)), act);
    };
    if (activation == Activation::silu) return put([](Vec<A> x) { return silu(x); });
    if (activation == Activation::gelu) return put([](Vec<A> x) { return gelu(x); });
    put([this](Vec<A> x) { return activate(activation, alpha, x); });
  }
  // NHWC: `count` channels of rows x columns pixels, the first one `pixel`, from row to row and from column to column
  // so many pixels. sums are changed.
  template <int rows, int columns>
  [[gnu::always_inline]] void put_block(int64_t n, int64_t channel, int64_t pixel, int64_t row_step,
                                        int64_t column_step, Vec<A>* sums, int count) const {
    using V = Vec<A>;
    constexpr int line = sizeof(V);
    const auto from_first = [&](int i) { return i / columns * row_step + i % columns * column_step; };
    if (activation != Activation::none && activation != Activation::relu && activation != Activation::relu6) {
      alignas(line) A kept[rows * columns * V::lanes];
      A* each[rows * columns];
      unrolled<rows * columns>([&](auto i)
                                   __attribute__((always_inline)) { store(each[i] = kept + i * V::lanes, sums[i]); });
      return put_tile(n, channel, count, rows * columns, each, [&](int64_t i) { return pixel + from_first(i); });
    }
    if (bias) {
      const V b = load(bias + channel, count);
      unrolled<rows * columns>([&](auto i) __attribute__((always_inline)) { sums[i] = sums[i] + b; });
    }
    if (residual) {
      const T* from = residual + residual_at(n, channel, pixel);
      unrolled<rows * columns>([&](auto i) __attribute__((always_inline)) {
        sums[i] = sums[i] + load(from + from_first(i) * channels, count);
      });
    }
    if (activation != Activation::none) {
      const V high = V::broadcast(activation == Activation::relu6 ? A(6) : std::numeric_limits<A>::infinity());
      unrolled<rows * columns>(
          [&](auto i) __attribute__((always_inline)) { sums[i] = at_most(at_least(sums[i], V::zero()), high); });
    }
    T* to = out + out_at(n, channel, pixel);
    unrolled<rows * columns>(
        [&](auto i) __attribute__((always_inline)) { store(to + from_first(i) * out_channels, sums[i], count); });
  }
  // NCHW: `count` consecutive pixels of one channel.
  void put_pixels(int64_t n, int64_t channel, int64_t pixel, Vec<A> value, int count) const {
    if (bias) value = value + Vec<A>::broadcast(widen(bias[channel]));
    if (residual) value = value + load(residual + residual_at(n, channel, pixel), count);
    store(out + out_at(n, channel, pixel), activate(activation, alpha, value), count);
  }
};

// Calls f with a null pointer of the storage type the problem's dtype names.
template <class F>
void with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f64:
      return f(static_cast<double*>(nullptr));
    case Dtype::f32:
    case Dtype::tf32:
      return f(static_cast<float*>(nullptr));
    case Dtype::f16:
      return f(static_cast<f16*>(nullptr));
    case Dtype::bf16:
      return f(static_cast<bf16*>(nullptr));
    case Dtype::other:
      return;
  }
}

}  // namespace fastconv::FASTCONV_ISA
