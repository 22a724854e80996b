// The rows of a problem whose pixels are rows of channels, between channel slices of buffers.
#pragma once

#include "core/kernel.h"
#include "cpu/epilogue.h"
#include "simd/each_register.h"
#include "simd/tags.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Rows {
  const T* x;
  T* out;
  int64_t count, length, x_step, out_step;

  Rows(const Problem& p, const Args& args)
      : x(static_cast<const T*>(args.x) + p.in_offset),
        out(static_cast<T*>(args.out) + p.epilogue.out_offset),
        count(p.n * p.in_pixels()),
        length(p.c),
        x_step(p.source_channels()),
        out_step(p.buffer_channels()) {}

  const T* from(int64_t row) const { return x + row * x_step; }
  T* to(int64_t row) const { return out + row * out_step; }
};

// The largest of a register's lanes, or NaN where one is.
template <class A>
A largest_lane(Vec<A> v) {
  A lanes[Vec<A>::lanes];
  v.store(lanes);
  A largest = lanes[0];
  for (const A lane : lanes) largest = lane > largest || lane != lane ? lane : largest;
  return largest;
}

// f(place, registers side by side, count of each): four whole registers at a time hide an operation's latency.
template <class V, class F>
[[gnu::always_inline]] inline void in_fours(int64_t length, F&& f) {
  constexpr int side_by_side = 4;
  int64_t i = 0;
  for (; i + side_by_side * V::lanes <= length; i += side_by_side * V::lanes)
    unrolled<side_by_side>([&](auto r) __attribute__((always_inline)) {
      f(i + r * V::lanes, r, std::integral_constant<int, V::lanes>());
    });
  each_register<V>(length - i, [&](int64_t at, auto count) __attribute__((always_inline)) { f(i + at, 0, count); });
}

}  // namespace fastconv::FASTCONV_ISA
