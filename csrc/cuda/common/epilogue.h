// The fused tail of every convolution kernel: + bias, + residual, activation, one rounding, store.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "vectors.h"

namespace fastconv::FASTCONV_GPU {

FASTCONV_DEVICE float activate(Activation activation, float alpha, float x) {
  constexpr float six = 6, three = 3, sqrt_half = 0.70710678118654752f;
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 || x != x ? x : 0.0f;
    case Activation::relu6:
      return x != x ? x : (x > 0 ? (x < six ? x : six) : 0.0f);
    case Activation::leaky_relu:
      return x > 0 ? x : x * alpha;
    case Activation::silu:
      return x / (1.0f + expf(-x));
    case Activation::hardswish: {
      const float gate = x + three > 0 ? (x + three < six ? x + three : six) : 0.0f;
      return x * gate / six;
    }
    case Activation::hardsigmoid:
      return (x + three > 0 || x != x ? (x + three < six || x != x ? x + three : six) : 0.0f) / six;
    case Activation::sigmoid:
      return 1.0f / (1.0f + expf(-x));
    case Activation::gelu:
      return x * 0.5f * erfcf(-x * sqrt_half);
    case Activation::gelutanh: {
      constexpr float root = 0.79788456080286536f, cubic = 0.044715f;  // root: of 2/pi
      return x / (1.0f + expf(-2.0f * root * (x + cubic * x * x * x)));
    }
  }
  return x;
}

// An activation that does no more than bound its argument: a few instructions where `activate` is hundreds.
struct Bounds {
  float low, high;

  FASTCONV_DEVICE float operator()(float x) const { return x < low ? low : (x > high ? high : x); }
  static std::optional<Bounds> of(Activation activation) {
    constexpr float most = std::numeric_limits<float>::infinity(), six = 6;
    if (activation == Activation::none) return Bounds{-most, most};
    if (activation == Activation::relu) return Bounds{0, most};
    if (activation == Activation::relu6) return Bounds{0, six};
    return {};
  }
};

// Of one call, by value in a kernel's parameters. Pixels and channels are those of the written tensor.
template <class T>
struct Tail {
  T* out;  // base of the whole buffer where a channel slice is written
  const T* bias;
  const T* residual;
  int64_t out_pixel, out_channel, out_first;  // strides of the buffer in elements, and the slice's first element
  int64_t residual_pixel, residual_channel;   // of the dense residual
  int64_t pixels;                             // of one image
  int64_t out_image, residual_image;          // elements
  Activation activation;
  float alpha;

  static Tail of(const Problem& p, const Args& args) {
    const bool nhwc = p.layout == Layout::nhwc;
    const int64_t pixels = p.pass == Pass::dgrad ? p.in_pixels() : p.out_pixels();
    const int64_t buffer = p.buffer_channels(), channels = p.written_channels();
    return {static_cast<T*>(args.out),
            p.epilogue.bias ? static_cast<const T*>(args.bias) : nullptr,
            p.epilogue.residual ? static_cast<const T*>(args.residual) : nullptr,
            nhwc ? buffer : 1,
            nhwc ? 1 : pixels,
            p.epilogue.out_offset * (nhwc ? 1 : pixels),
            nhwc ? channels : 1,
            nhwc ? 1 : pixels,
            pixels,
            buffer * pixels,
            channels * pixels,
            p.epilogue.activation,
            static_cast<float>(p.epilogue.alpha)};
  }

  // The same of the images from `image` on.
  Tail from(int64_t image) const {
    Tail tail = *this;
    tail.out += image * out_image;
    if (residual) tail.residual += image * residual_image;
    return tail;
  }

  // Whether `n` neighbouring channels may be stored at once, at multiples of n.
  bool takes(int n) const {
    auto fits = [n](const T* base, int64_t offset, int64_t pixel, int64_t image) {
      return reinterpret_cast<uintptr_t>(base + offset) % (n * sizeof(T)) == 0 && pixel % n == 0 && image % n == 0;
    };
    return out_channel == 1 && fits(out, out_first, out_pixel, out_image) &&
           (!residual || fits(residual, 0, residual_pixel, residual_image)) && (!bias || fits(bias, 0, n, n));
  }

  // N neighbouring channels of one pixel; N = 1 works in both layouts and at any alignment.
  template <int N>
  FASTCONV_DEVICE void put(int64_t image, int64_t pixel, int64_t channel, const float (&sums)[N]) const {
    float value[N];
    FASTCONV_UNROLL
    for (int i = 0; i < N; ++i) value[i] = sums[i];
    if (bias) {
      const Pack<T, N> b = load<N>(bias + channel);
      FASTCONV_UNROLL
      for (int i = 0; i < N; ++i) value[i] += widen(b.v[i]);
    }
    if (residual) {
      const Pack<T, N> r =
          load<N>(residual + image * residual_image + pixel * residual_pixel + channel * residual_channel);
      FASTCONV_UNROLL
      for (int i = 0; i < N; ++i) value[i] += widen(r.v[i]);
    }
    Pack<T, N> result;
    FASTCONV_UNROLL
    for (int i = 0; i < N; ++i) result.v[i] = narrow<T>(activate(activation, alpha, value[i]));
    store(out + out_first + image * out_image + pixel * out_pixel + channel * out_channel, result);
  }
};

}  // namespace fastconv::FASTCONV_GPU
