// out = activation(x·scale + shift + residual) with a factor and a term for each channel, between channel slices of
// buffers, in either layout: what map2d and a batch norm over slices have in common. Every element is on its own, so
// the work may be cut anywhere.
//
// Three shapes. channels_last: pixel after pixel, the channels' values in registers beside x. NCHW: planes, whose value
// fills a register. And where no channel has a value of its own and nothing is a slice, one run of all elements.
#pragma once

#include "core/integers.h"
#include "core/machine.h"
#include "cpu/epilogue.h"
#include "simd/each_register.h"
#include "simd/stream.h"

namespace fastconv::FASTCONV_ISA {

// One value a channel: [N][C], or [C] where `image_step` is 0. No scale: x alone; no shift: x·scale.
template <class S>
struct Channelwise {
  const S* scale = nullptr;
  const S* shift = nullptr;
  int64_t image_step = 0;
};

// T: of the tensors; S: of the channels' values.
template <class T, class S>
class Affine {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  Affine(const Problem& p, const Args& args, Channelwise<S> by)
      : x_(static_cast<const T*>(args.x)),
        out_(static_cast<T*>(args.out)),
        residual_(p.epilogue.residual ? static_cast<const T*>(args.residual) : nullptr),
        by_(by),
        activation_(p.epilogue.activation),
        alpha_(static_cast<A>(p.epilogue.alpha)),
        images_(p.n),
        pixels_(p.in_pixels()),
        channels_(p.c),
        source_(p.source_channels()),
        buffer_(p.buffer_channels()) {
    const bool dense = source_ == channels_ && buffer_ == channels_;
    by_pixels_ = p.layout == Layout::nhwc && !(dense && !by.scale);
    if (by_pixels_) {
      x_ += p.in_offset, out_ += p.epilogue.out_offset;
      runs_ = pixels_, length_ = channels_;
    } else {
      x_ += p.in_offset * pixels_, out_ += p.epilogue.out_offset * pixels_;
      if (dense && !by.scale) pixels_ *= images_, images_ = 1;
      runs_ = by.scale ? channels_ : 1;
      length_ = by.scale ? pixels_ : channels_ * pixels_;
    }
    const auto lines = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)) % cache_line == 0; };
    streams_ = std::is_same_v<T, A> && reinterpret_cast<intptr_t>(out_) % cache_line == 0 && lines(length_) &&
               lines(by_pixels_ ? buffer_ : buffer_ * pixels_) && p.x_elements() * int64_t{sizeof(T)} > machine().l3;
  }

  void run(const Parallel& parallel) const {
    if (!by_.scale) return over<0>(parallel);
    by_.shift ? over<2>(parallel) : over<1>(parallel);
  }

 private:
  static constexpr int64_t piece = 8192;  // elements of a run that a task takes

  // operands: x alone, x·scale, x·scale + shift.
  template <int operands>
  void over(const Parallel& parallel) const {
    const int64_t pieces = by_pixels_ ? 1 : divide_up(length_, piece);
    parallel(images_ * runs_ * pieces, [&](int64_t begin, int64_t end, int) {
      with_put([&](auto put) {
        if (by_pixels_)
          pixels<operands>(begin, end, put);
        else
          for (int64_t i = begin; i < end; ++i) plane<operands>(i / pieces, i % pieces * piece, put);
      });
    });
  }

  template <int operands, class Put>
  void pixels(int64_t begin, int64_t end, Put put) const {
    for (int64_t first = begin, last; first < end; first = last) {
      const int64_t image = first / pixels_;
      last = std::min(end, (image + 1) * pixels_);
      const int64_t values = image * by_.image_step;
      const S *scale = operands ? by_.scale + values : nullptr, *shift = operands == 2 ? by_.shift + values : nullptr;
      for (int64_t i = first; i < last; ++i) {
        const T* from = x_ + i * source_;
        each_register<V>(channels_, [&](int64_t c, auto count) {
          V value = load(from + c, count);
          if constexpr (operands == 1) value = value * load(scale + c, count);
          if constexpr (operands == 2) value = fma(value, load(scale + c, count), load(shift + c, count));
          put(i * buffer_ + c, i * channels_ + c, value, count);
        });
      }
    }
  }

  template <int operands, class Put>
  void plane(int64_t run, int64_t start, Put put) const {
    const int64_t image = run / runs_, plane = run % runs_, value_at = image * by_.image_step + plane;
    const V scale = operands ? V::broadcast(widen(by_.scale[value_at])) : V::zero();
    const V shift = operands == 2 ? V::broadcast(widen(by_.shift[value_at])) : V::zero();
    const T* from = x_ + image * source_ * pixels_ + plane * length_ + start;
    const int64_t to = image * buffer_ * pixels_ + plane * length_ + start, beside = run * length_ + start;
    each_register<V>(std::min(piece, length_ - start), [&](int64_t i, auto count) {
      V value = load(from + i, count);
      if constexpr (operands == 1) value = value * scale;
      if constexpr (operands == 2) value = fma(value, scale, shift);
      put(to + i, beside + i, value, count);
    });
  }

  // Calls f with put(place in the buffer, place in the residual, value, count).
  template <class F>
  void with_put(F&& f) const {
    if (!residual_ && activation_ == Activation::none && !streams_)
      return f([out = out_](int64_t to, int64_t, V value, auto count) { store(out + to, value, count); });
    f([this](int64_t to, int64_t beside, V value, auto count) {
      if (residual_) value = value + load(residual_ + beside, count);
      if (activation_ != Activation::none) value = activate(activation_, alpha_, value);
      if constexpr (std::is_same_v<T, A> && !std::is_same_v<decltype(count), int>)
        if (streams_) return stream(out_ + to, value);
      store(out_ + to, value, count);
    });
    if (streams_) finish_streams();
  }

  const T* x_;
  T* out_;
  const T* residual_;
  Channelwise<S> by_;
  Activation activation_;
  A alpha_;
  int64_t images_, pixels_, channels_, source_, buffer_;
  int64_t runs_, length_;  // of an image: how many pieces of memory, and their elements
  bool by_pixels_, streams_;
};

}  // namespace fastconv::FASTCONV_ISA
