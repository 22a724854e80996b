// Depthwise fprop and stride-1 dgrad, NCHW, 3x3 and 5x5: planes read where they lie, without a padded copy.
//
// A tile is 7 output registers below each other (4 where 9 taps and the sums share 16 registers): a source row is
// loaded once a tap column, shifted, and added to every output row that reads it. Loads at the border leave out the
// lanes that would lie outside (lanes.h), so the padding costs nothing and no byte beyond the tensor is touched. Rows
// of at most half a register go in pairs. The last register of a wider row reaches back over its neighbour, and a
// narrow row is stored with its lanes beyond the end, which the next row overwrites: only the last store of a plane is
// a partial one. Stride 2 loads two registers and separates the even columns from the odd ones. An epilogue beyond the
// bias is a second pass over the finished plane in L1; 16-bit types are widened a plane at a time. Other windows,
// dilations, unequal strides and strided dgrad stay with gather_nchw.cpp.
//
// Zen 4, 2 threads, batch 8, float, result preallocated, 2026-11-22, ms, padded copy before / now with AVX-512 / AVX2 /
// torch NCHW / torch channels_last: 192@28 0.64 0.17 0.28 – 0.18 · 384@14 0.46 0.10 0.16 0.23 0.13 · 576@14 0.70 0.16
// 0.25 0.32 0.17 · 576@14 stride 2 0.53 0.17 0.15 0.19 0.09 · 960@7 0.60 0.18 0.17 0.20 0.10 · 144@56 1.70 0.57 0.96 –
// 0.59 · 144@56 stride 2 0.78 0.29 0.43 0.65 0.25 · 5x5 240@28 1.14 0.50 0.82 0.73 0.47 · 32@112 1.25 0.52 0.98 1.47
// 0.55. A dash: the allocator spoilt the figure (4 ms and more). Against torch held to AVX2, AVX2 wins all but 32@112
// (2.24 against 1.81, on a loaded machine). 7x7 maps and stride 2 leave most to gain: loads, not FMAs, are their limit.
#include "in_place.h"

#include "core/machine.h"
#include "simd/fma_into.h"
#include "simd/lanes.h"
#include "simd/tags.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

constexpr int64_t pair = 2;  // rows in a register where two fit

// Output registers of a tile, one below the other: 4 and the 9 taps of a 3x3 filter fill 16 registers.
template <int S, bool Paired>
constexpr int tile_rows = vector_registers < 16                         ? 2
                          : !Paired && (vector_registers > 16 || S > 3) ? 7
                                                                        : 4;

// One plane on its way through the tiles; all but the first three members are the same for every plane.
template <class A>
struct Plane {
  const A* x;
  A* out;
  A start;     // of the sums: the bias
  const A* w;  // the taps in the order the source is read
  int64_t source_rows, source_width;
  int64_t rows, width;
  int64_t top, left;  // where output (0, 0) finds its first tap, in the source

  void put(int64_t at, Vec<A> value, int64_t count) const {
    constexpr int64_t lanes = Vec<A>::lanes;
    store(out + at, value, static_cast<int>(at + lanes <= rows * width ? lanes : count));
  }
};

inline uint64_t bits_between(int64_t first, int64_t last, int64_t most) {
  first = std::clamp<int64_t>(first, 0, most), last = std::clamp<int64_t>(last, first, most);
  return ((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1);
}

// Which lanes read inside the source, for each load of a row: stride 1 loads once a tap, stride 2 twice for two taps.
template <class A, int S, int Stride, bool Paired>
struct Inside {
  static constexpr int loads = Stride == 1 ? S : S + 1;
  static constexpr int64_t lanes = Vec<A>::lanes;
  Lanes<A> both[loads], upper[Paired ? loads : 1], lower[Paired ? loads : 1];  // rows of a pair

  Inside() = default;
  Inside(const Plane<A>& k, int64_t j) {
    const int64_t first = j * Stride + k.left;
    for (int i = 0; i < loads; ++i) {
      const int64_t at = first + (Stride == 1 || i % 2 == 0 ? i : i - 1 + lanes);  // the source column of lane 0
      const uint64_t row = bits_between(-at, k.source_width - at, Paired ? k.width : lanes);
      both[i] = Lanes<A>::of(Paired ? row | row << k.width : row);
      if constexpr (Paired) upper[i] = Lanes<A>::of(row), lower[i] = Lanes<A>::of(row << k.width);
    }
  }
};

// The taps of a 3x3 filter stay in registers for a whole plane; larger filters are read from memory.
template <class A, int S>
struct Weights {
  static constexpr bool held = S == 3;
  Vec<A> taps[held ? S * S : 1];
  const A* from;
  [[gnu::always_inline]] inline explicit Weights(const A* w) : from(w) {
    if constexpr (held)
      unroll<S * S>([&](auto i) __attribute__((always_inline)) { taps[i] = Vec<A>::broadcast(w[i]), hold(taps[i]); });
  }
  template <int i>
  [[gnu::always_inline]] inline void add(Vec<A>& sum, Vec<A> x) const {
    if constexpr (held)
      fma_into(sum, x, taps[i]);
    else
      fma_into(sum, x, from + i);
  }
};

// Rows output registers below each other, at column j: each source row (pair of rows) is loaded once for all of them.
template <class A, int S, int Stride, bool Paired, int Rows>
[[gnu::always_inline]] inline void tile(const Plane<A>& k, int64_t i, int64_t j,
                                        const Inside<A, S, Stride, Paired>& inside, const Weights<A, S>& weights) {
  using V = Vec<A>;
  constexpr int step = Paired ? pair : Stride;  // source rows from one output register to the next
  constexpr int out_rows = Paired ? pair : 1;
  V sum[Rows];
  unroll<Rows>([&](auto q) __attribute__((always_inline)) { sum[q] = V::broadcast(k.start); });
  const int64_t first = i * Stride + k.top;
  const A* x = k.x + first * k.source_width + j * Stride + k.left;
  unroll<(Rows - 1) * step + S>([&](auto a) __attribute__((always_inline)) {
    const int64_t row = first + a;
    if (row >= k.source_rows || row < (Paired ? 1 - pair : 0)) return;
    const Lanes<A>* lanes = inside.both;
    if constexpr (Paired) lanes = row < 0 ? inside.lower : row + 1 == k.source_rows ? inside.upper : inside.both;
    const A* from = x + a * k.source_width;
    const auto add = [&](auto tap_column, V tap) __attribute__((always_inline)) {
      constexpr int s = decltype(tap_column)::value;
      unroll<Rows>([&](auto q) __attribute__((always_inline)) {
        constexpr int r = decltype(a)::value - step * decltype(q)::value;
        if constexpr (r >= 0 && r < S) weights.template add<r * S + s>(sum[q], tap);
      });
    };
    if constexpr (Stride == 1)
      unroll<S>([&](auto s) __attribute__((always_inline)) { add(s, load(from + s, lanes[s])); });
    else
      unroll<(S + 1) / 2>([&](auto half) __attribute__((always_inline)) {
        constexpr int s = 2 * decltype(half)::value;
        V even = load(from + s, lanes[s]), odd = load(from + s + V::lanes, lanes[s + 1]);
        unweave(even, odd);
        add(std::integral_constant<int, s>{}, even);
        if constexpr (s + 1 < S) add(std::integral_constant<int, s + 1>{}, odd);
      });
  });
  const int64_t count = Paired ? pair * k.width : std::min<int64_t>(V::lanes, k.width - j);
  unroll<Rows>([&](auto q) __attribute__((always_inline)) {
    const int64_t at = (i + q * out_rows) * k.width + j;
    k.put(at, sum[q], std::min(count, k.rows * k.width - at));
  });
}

// One output plane. Rows wider than a register end in one that reaches back over its neighbour; narrower ones write on
// into the next row, which is written later.
template <class A, int S, int Stride, bool Paired>
class Sweep {
 public:
  explicit Sweep(const Plane<A>& k) : columns_((k.width + lanes - 1) / lanes) {
    for (int64_t b = 0; b < std::min(columns_, kept); ++b) inside_[b] = Columns(k, column_of(k, b));
    const int64_t row_bytes = Stride * k.source_width * static_cast<int64_t>(sizeof(A));
    band_ = std::max<int64_t>(1, machine().l1 / 2 / row_bytes / most) * most * unit;
  }

  void operator()(const Plane<A>& k) const {
    const Weights<A, S> weights(k.w);
    // Source rows of a band stay in the first cache from one column of registers to the next.
    for (int64_t begin = 0; begin < k.rows; begin += band_) {
      const int64_t end = std::min(k.rows, begin + band_);
      for (int64_t b = 0; b < columns_; ++b) {
        const int64_t j = column_of(k, b);
        if (b < kept)
          column(k, begin, end, j, inside_[b], weights);
        else
          column(k, begin, end, j, Columns(k, j), weights);
      }
    }
  }

 private:
  using Columns = Inside<A, S, Stride, Paired>;
  static constexpr int64_t lanes = Vec<A>::lanes, unit = Paired ? pair : 1, kept = 16;
  static constexpr int most = tile_rows<S, Paired>;

  static int64_t column_of(const Plane<A>& k, int64_t b) {
    return std::max<int64_t>(0, std::min(b * lanes, k.width - lanes));
  }

  static void column(const Plane<A>& k, int64_t begin, int64_t end, int64_t j, const Columns& inside,
                     const Weights<A, S>& weights) {
    int64_t i = begin;
    for (; i + (most - 1) * unit < end; i += most * unit) tile<A, S, Stride, Paired, most>(k, i, j, inside, weights);
    for (; i + unit < end; i += 2 * unit) tile<A, S, Stride, Paired, 2>(k, i, j, inside, weights);
    for (; i < end; i += unit) tile<A, S, Stride, Paired, 1>(k, i, j, inside, weights);
  }

  int64_t columns_, band_;
  Columns inside_[kept];
};

template <class T>
class Gather {
  using A = arithmetic<T>;
  static constexpr bool direct = std::is_same_v<T, A>;

 public:
  Gather(const Problem& p, const Args& args, A* scratch)
      : p_(p),
        args_(args),
        h_(phase_of(p.h, p.pass, 0)),
        w_(phase_of(p.w, p.pass, 0)),
        tail_(p, args),
        taps_(scratch),
        wide_(taps_ + aligned(p.taps(), line)),
        sums_(wide_ + (direct ? 0 : aligned(h_.in * w_.in, line))) {
    bias_ = std::exchange(tail_.bias, nullptr);  // the sums start from it
  }

  void run(int64_t first, int64_t last) const {
    return p_.w.window == 3 ? choose<3>(first, last) : choose<5>(first, last);
  }

 private:
  template <int S>
  void choose(int64_t first, int64_t last) const {
    // Two rows share a register where the source is as wide as the result.
    const bool paired = w_.in_step == 1 && w_.in == w_.count && pair * w_.count <= Vec<A>::lanes;
    if (w_.in_step == 2) return planes<Sweep<A, S, 2, false>>(first, last);
    return paired ? planes<Sweep<A, S, 1, true>>(first, last) : planes<Sweep<A, S, 1, false>>(first, last);
  }

  template <class SweepPlane>
  void planes(int64_t first, int64_t last) const {
    Plane<A> k{nullptr, sums_, 0, taps_, h_.in, w_.in, h_.count, w_.count, h_.offset, w_.offset};
    const SweepPlane sweep(k);
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / p_.c, c = i % p_.c;
      load_taps(c);
      k.start = bias_ ? widen(bias_[c]) : A(0);
      if constexpr (direct) k.out = tail_.out + tail_.out_at(n, c, 0);
      k.x = source(i);
      sweep(k);
      if (!direct || tail_.residual || tail_.activation != Activation::none) finish(n, c, k.out);
    }
  }

  void load_taps(int64_t c) const {
    const FilterTaps<T> filter{p_, args_};
    A* taps = taps_;
    for (int64_t r = 0; r < h_.taps; ++r)
      for (int64_t s = 0; s < w_.taps; ++s) *taps++ = filter.at(c, h_.tap + r * h_.tap_step, w_.tap + s * w_.tap_step);
  }

  const A* source(int64_t i) const {
    const int64_t pixels = h_.in * w_.in;
    const T* x = static_cast<const T*>(p_.pass == Pass::dgrad ? args_.y : args_.x) + i * pixels;
    if constexpr (direct) {
      return x;
    } else {
      each_register(pixels, [&](int64_t at, int count) { store(wide_ + at, load(x + at, count), count); });
      return wide_;
    }
  }

  void finish(int64_t n, int64_t c, const A* sums) const {
    each_register(h_.count * w_.count,
                  [&](int64_t at, int count) { tail_.put_pixels(n, c, at, load(sums + at, count), count); });
  }

  template <class F>
  static void each_register(int64_t pixels, F&& f) {
    constexpr int64_t lanes = Vec<A>::lanes;
    for (int64_t at = 0; at < pixels; at += lanes) f(at, static_cast<int>(std::min(lanes, pixels - at)));
  }

  const Problem& p_;
  const Args& args_;
  Phase h_, w_;
  Tail<T> tail_;
  const T* bias_;
  A *taps_, *wide_, *sums_;
};

template <class T>
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const int64_t scratch = gather_in_place_workspace(p, 1) / static_cast<int64_t>(sizeof(A));
  parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
    Gather<T>(p, args, static_cast<A*>(args.workspace) + thread * scratch).run(begin, end);
  });
}

}  // namespace

bool in_place(const Problem& p) {
  const bool side_by_side = p.h.dilation == 1 && p.w.dilation == 1 && p.h.window == p.w.window;
  const bool size = p.w.window == 3 || p.w.window == 5;
  const bool strides = p.h.stride == p.w.stride && p.w.stride <= (p.pass == Pass::dgrad ? 1 : 2);
  return side_by_side && size && strides;
}

// The taps; of a 16-bit type also the widened source and the sums.
int64_t gather_in_place_workspace(const Problem& p, int threads) {
  const bool wide = p.dtype == Dtype::f16 || p.dtype == Dtype::bf16;
  const int64_t planes = aligned(p.in_pixels(), line) + aligned(p.out_pixels(), line);
  return threads * (aligned(p.taps(), line) + (wide ? planes : 0)) * arithmetic_bytes(p.dtype);
}

void gather_in_place(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
