// Convolution with few output pixels: fprop, both layouts. Squeeze-and-excitation at batch 1, classifiers, windows as
// large as their input.
//
// There a filter is used so seldom that packing it, as igemm does, takes longer than the products. Here every filter is
// read once, where it lies: an output is the dot product of a filter and a patch, C·R·S long. Patches are unfolded in
// the order in which the filters lie in memory; those of a pointwise convolution are the pixels themselves. A tile of 4
// filters x up to 4 pixels is summed lane by lane, then across the lanes, in one fixed order.
//
// Threads share the filters. It loses to igemm when the pixels are many (see cost) or the depth is short.
//
// Measured (Zen 4, 2 threads, 2026-11-22, f32, AVX-512; us here / igemm / torch's channels_last), batch 1: 1152->48@1
// 5 / 11 / 11, 2048->1000@1 83 / 266 / 240, 960->160@7 90 / 135 / 162; 48->1152@1 10 / 10 / 14 and at batch 8 32 / 22 /
// 142.
#include <algorithm>
#include <array>
#include <type_traits>

#include "core/machine.h"
#include "cpu/arena.h"
#include "cpu/epilogue.h"
#include "simd/fma_into.h"
#include "simd/transpose.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t most_pixels = 64;
constexpr int tile_filters = 4;
constexpr int tile_pixels = vector_registers >= 32 ? 4 : 2;

// Where the elements of one filter lie, and of a patch with it.
struct Order {
  int64_t c, r, s;  // strides
  bool in_place;    // a filter is one run of memory

  Order(const Problem& p, const int64_t* stride) {
    const int64_t taps = p.taps();
    const auto matches = [&](int64_t want_c, int64_t want_r, int64_t want_s) {
      return (p.c == 1 || stride[1] == want_c) && (p.h.window == 1 || stride[2] == want_r) &&
             (p.w.window == 1 || stride[3] == want_s);
    };
    const bool kcrs = matches(taps, p.w.window, 1);
    in_place = kcrs || matches(1, p.w.window * p.c, p.c);
    c = kcrs ? taps : 1, r = kcrs ? p.w.window : p.w.window * p.c, s = kcrs ? 1 : p.c;
  }
};

template <class T>
struct Work {
  using A = arithmetic<T>;
  A* patches;  // [pixel][depth]
  T* filters;  // [thread][tile_filters][depth], gathered where they have gaps

  Work(Arena& arena, const Problem& p, int threads)
      : patches(arena.take<A>(p.n * p.out_pixels() * p.c * p.taps())),
        filters(arena.take<T>(threads * tile_filters * p.c * p.taps())) {}
};

// The sum of the lanes of each of `count` registers.
template <class A, int count>
[[gnu::always_inline]] inline void across(const Vec<A> (&registers)[count], A* sums) {
  constexpr int lanes = Vec<A>::lanes;
  unrolled<(count + lanes - 1) / lanes>([&](auto group) __attribute__((always_inline)) {
    constexpr int first = group * lanes, left = std::min(lanes, count - first);
    Vec<A> block[lanes];
    unrolled<lanes>([&](auto i) __attribute__((always_inline)) {
      if constexpr (i < left)
        block[i] = registers[first + i];
      else
        block[i] = Vec<A>::zero();
    });
    transpose(block);
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) block[i] = block[i] + block[i + half];
    store(sums + first, block[0], left);
  });
}

// sums[P pixels][F filters].
template <class T, int F, int P>
void multiply(const T* const* filter, const arithmetic<T>* const* pixel, int64_t depth, arithmetic<T>* sums) {
  using A = arithmetic<T>;
  constexpr int lanes = Vec<A>::lanes;
  Vec<A> acc[P * F];
  unrolled<P * F>([&](auto i) __attribute__((always_inline)) { acc[i] = Vec<A>::zero(); });
  const auto step = [&](int64_t d, auto... count) __attribute__((always_inline)) {
    Vec<A> x[P];
    unrolled<P>([&](auto i) __attribute__((always_inline)) { x[i] = load(pixel[i] + d, count...); });
    unrolled<F>([&](auto f) __attribute__((always_inline)) {
      const Vec<A> w = load(filter[f] + d, count...);
      unrolled<P>([&](auto i) __attribute__((always_inline)) { fma_into(acc[i * F + f], x[i], w); });
    });
  };
  int64_t d = 0;
  for (; d + lanes <= depth; d += lanes) step(d);
  if (d < depth) step(d, static_cast<int>(depth - d));
  across(acc, sums);
}

template <class T>
using Multiply = void (*)(const T* const*, const arithmetic<T>* const*, int64_t, arithmetic<T>*);

template <class T>
Multiply<T> multiply_function(int64_t filters, int64_t pixels) {
  static constexpr auto all = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<Multiply<T>, sizeof...(i)>{multiply<T, i / tile_pixels + 1, i % tile_pixels + 1>...};
  }(std::make_integer_sequence<int, tile_filters * tile_pixels>{});
  return all[(filters - 1) * tile_pixels + pixels - 1];
}

template <class T>
class Dot {
  using A = arithmetic<T>;

 public:
  Dot(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        order_(p, args.w_stride),
        tail_(p, args),
        arena_(args.workspace),
        work_(arena_, p, parallel.threads()) {
    tail_.nhwc |= p.out_pixels() == 1;  // one pixel: both layouts are the same
  }

  void run() {
    const bool pixels_are_patches =
        std::is_same_v<T, A> && p_.is_pointwise() && (p_.layout == Layout::nhwc || p_.in_pixels() == 1);
    if (!pixels_are_patches)
      parallel_(pixels_, [&](int64_t begin, int64_t end, int) {
        for (int64_t pixel = begin; pixel < end; ++pixel) unfold(pixel);
      });
    const A* patch[most_pixels];
    for (int64_t pixel = 0; pixel < pixels_; ++pixel) patch[pixel] = work_.patches + pixel * depth_;
    if constexpr (std::is_same_v<T, A>)
      for (int64_t pixel = 0; pixels_are_patches && pixel < pixels_; ++pixel) patch[pixel] = place(pixel);
    parallel_(divide_up(p_.k, tile_filters), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t k = begin * tile_filters; k < std::min(end * tile_filters, p_.k); k += tile_filters)
        run_filters(patch, k, std::min<int64_t>(tile_filters, p_.k - k),
                    work_.filters + thread * tile_filters * depth_);
    });
  }

 private:
  // The first element under the window of an output pixel of a pointwise convolution.
  const T* place(int64_t pixel) const {
    const int64_t n = pixel / p_.out_pixels(), i = pixel % p_.out_pixels() / p_.w.out, j = pixel % p_.w.out;
    const int64_t at = (n * p_.h.in + i * p_.h.stride) * p_.w.in + j * p_.w.stride;
    return static_cast<const T*>(args_.x) + at * p_.c;
  }

  void unfold(int64_t pixel) const {
    const int64_t n = pixel / p_.out_pixels(), i = pixel % p_.out_pixels() / p_.w.out, j = pixel % p_.w.out;
    const bool nhwc = p_.layout == Layout::nhwc;
    const int64_t channel = nhwc ? 1 : p_.in_pixels(), next = nhwc ? p_.c : 1;
    const T* image = static_cast<const T*>(args_.x) + n * p_.c * p_.in_pixels();
    A* patch = work_.patches + pixel * depth_;
    for (int64_t r = 0; r < p_.h.window; ++r)
      for (int64_t s = 0; s < p_.w.window; ++s) {
        const int64_t y = i * p_.h.stride - p_.h.pad_lo + r * p_.h.dilation;
        const int64_t x = j * p_.w.stride - p_.w.pad_lo + s * p_.w.dilation;
        A* out = patch + r * order_.r + s * order_.s;
        if (y < 0 || y >= p_.h.in || x < 0 || x >= p_.w.in) {
          for (int64_t c = 0; c < p_.c; ++c) out[c * order_.c] = 0;
          continue;
        }
        const T* in = image + (y * p_.w.in + x) * next;
        for (int64_t c = 0; c < p_.c; ++c) out[c * order_.c] = widen(in[c * channel]);
      }
  }

  // The outputs of up to tile_filters filters from k on.
  void run_filters(const A* const* patch, int64_t k, int64_t filters, T* gathered) const {
    const T* filter[tile_filters];
    for (int64_t f = 0; f < filters; ++f) {
      filter[f] = static_cast<const T*>(args_.w) + (k + f) * args_.w_stride[0];
      if (order_.in_place) continue;
      gather(filter[f], gathered + f * depth_);
      filter[f] = gathered + f * depth_;
    }
    A sums[tile_pixels * tile_filters];
    for (int64_t pixel = 0; pixel < pixels_; pixel += tile_pixels) {
      const int64_t count = std::min<int64_t>(tile_pixels, pixels_ - pixel);
      multiply_function<T>(filters, count)(filter, patch + pixel, depth_, sums);
      for (int64_t i = 0; i < count; ++i) put(sums + i * filters, k, filters, pixel + i);
    }
  }

  void gather(const T* filter, T* out) const {
    const int64_t* stride = args_.w_stride;
    for (int64_t c = 0; c < p_.c; ++c)
      for (int64_t r = 0; r < p_.h.window; ++r)
        for (int64_t s = 0; s < p_.w.window; ++s)
          out[c * order_.c + r * order_.r + s * order_.s] = filter[c * stride[1] + r * stride[2] + s * stride[3]];
  }

  void put(const A* sums, int64_t k, int64_t filters, int64_t pixel) const {
    const int64_t n = pixel / p_.out_pixels(), at = pixel % p_.out_pixels();
    if (!tail_.nhwc) {
      for (int64_t f = 0; f < filters; ++f) tail_.put(n, k + f, at, sums[f]);
      return;
    }
    constexpr int lanes = Vec<A>::lanes;
    for (int64_t f = 0; f < filters; f += lanes) {
      const int count = static_cast<int>(std::min<int64_t>(lanes, filters - f));
      tail_.put_channels(n, k + f, at, load(sums + f, count), count);
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Order order_;
  Tail<T> tail_;
  Arena arena_;
  const Work<T> work_;
  const int64_t pixels_ = p_.n * p_.out_pixels(), depth_ = p_.c * p_.taps();
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.groups > 1) return "It has " + std::to_string(p.groups) + " groups, not one.";
  if (const int64_t pixels = p.n * p.out_pixels(); pixels > most_pixels)
    return "It has " + std::to_string(pixels) + " output pixels, more than " + std::to_string(most_pixels) +
           ": packing the filter pays.";
  return {};
}

int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  with_dtype(p.dtype, [&](auto* t) { Work<std::remove_pointer_t<decltype(t)>>(arena, p, threads); });
  return arena.used();
}

// A tile loads F + P registers for F·P products; the sums across the lanes of as many registers as there are lanes take
// as long as `across` products of registers.
Cost cost(const Problem& p, int threads) {
  Cost cost;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    constexpr int lanes = Vec<A>::lanes;
    const double pixels = double(p.n * p.out_pixels()), k = double(p.k);
    const double columns = std::min<double>(tile_pixels, pixels);
    const double loads = (tile_filters + columns) / (tile_filters * columns);
    const double depth = double(round_up(p.c * p.taps(), lanes)) * std::max(1.0, loads);
    const double across = 5.0 * lanes, sums = std::max<double>(lanes, tile_filters * columns);
    cost.flops = 2 * pixels * k * (depth + across * sums / (tile_filters * columns));
    if (!p.is_pointwise()) cost.moved = 2 * sizeof(A) * pixels * double(p.c * p.taps());
    cost.memory = p.bytes();
    const int64_t blocks = divide_up(p.k, tile_filters);
    // Each block reads all patches again, and a quarter of what L2 holds of them is not hidden behind the products
    // (Zen 5, pipes of 512 bits, 2026-11-23: 2048->512@7 0.25 ms estimated without, 0.32 measured, 512@7 3x3 0.55 and
    // 1.0).
    const double patches = sizeof(A) * pixels * double(p.c * p.taps());
    cost.moved += patches * double(blocks) * (patches > 0.75 * double(machine().l2) ? 1 : 0.25);
    cost.imbalance = double(divide_up(blocks, threads) * threads) / double(blocks);
  });
  return cost;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Dot<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

extern const KernelBody conv2d_fprop_dot{refuses, workspace, run, cost};

}  // namespace fastconv::FASTCONV_ISA
