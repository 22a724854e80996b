// Grouped wgrad, both layouts: a register of consecutive filters spans several groups (grouped.h).
//
// Rows of x and dy are copied, widened, into L2 as in gather.cpp, about 56 columns at a time. A pass keeps the sums of
// one tap row and up to 4 channels of a group in registers (3 taps: 12; AVX2 9) while it walks those rows: each x
// column is loaded and permuted once a channel and meets the last 3 columns of dy, which move on through registers.
// First and last columns meet only the gradients that exist. A task is a piece of the units over a chunk of output
// rows; pieces and chunks depend on the problem alone, and partial sums are added in order, so that neither threads nor
// the machine show. Bytes: x and dy once from memory, once more through L2, and C/g/4·R times from L1.
//
// Zen 4, 2 cores, 2026-11-22, float, batch 8, 3x3, both threads, ms AVX-512 / igemm AVX-512 / torch channels_last, on a
// shared machine that varied by a third. 4 channels a group 128@56: 3.2 / 20 / 10.6 · 8 channels 256@56 stride 2: 3.9 /
// 11.2 / 9.5 · 256@28: 1.7 / 3.9 / 3.6 · 16 channels 512@14: 1.84 / 2.62 / 1.54 · 512@28 stride 2: 2.6 / 4.5 / 2.3 · 32
// channels 1024@7: 1.49 / 1.67 / 1.60. AVX2 / igemm AVX2 / torch (AVX-512): 128@56 4.0 / 22.5 / 9.5 · 256@28 2.7 / 5.1
// / 4.9 · 512@14 2.1 / 2.7 / 1.3 · 1024@7 2.1 / 2.5 / 1.5. It loses to torch from 16 channels a group, where copying
// rows is a third of the time, and to igemm above 32, which it refuses.
#include <type_traits>

#include "grouped.h"
#include "simd/fma_into.h"
#include "simd/permute.h"

namespace fastconv::FASTCONV_ISA::grouped {

namespace {

constexpr int most_channels = vector_registers >= 32 ? 4 : 3;  // of a pass: with 3 taps 12 or 9 sums
constexpr int64_t wanted_tasks = 32;                           // of a problem, whatever the thread count
constexpr int64_t piece_channels = 128;     // of a task, where there are enough: shorter runs of memory are slower
constexpr int64_t pixels_of_a_chunk = 512;  // at least: below, adding partial sums would show
constexpr int64_t cache_line = 64;          // bytes
constexpr int64_t columns_of_a_pass = 56;   // at least, over several rows: the sums are loaded and stored once a pass

// The sums of a few channels of one slice and one tap row, over some rows.
template <class A>
struct Sums {
  const A* const* x;   // [row]: staged column of output 0 through tap 0
  const A* const* dy;  // [row]
  int64_t rows;
  int64_t x_offset, dy_offset;  // of the unit's block and of the slice
  const Phase& columns;
  const int32_t* choice;  // of the first channel
  A* sums;                // [channel][S][lane]
};

// Lane by lane the channel that is `c` after the first of the pass, of one pixel.
template <bool Alone, class A>
[[gnu::always_inline]] inline Vec<A> channel(const A* x, const int32_t* choice, int64_t c) {
  if constexpr (Alone)
    return Vec<A>::broadcast(x[c]);
  else
    return permute(load(x), Permutation<A>::load(choice + c * Vec<A>::lanes));
}

// x column m·Stride + t meets, through tap t + h·Stride, the gradient dy[h] that lies h outputs before m: here of
// h in [First, Last], all t.
template <bool Alone, int S, int Stride, int Channels, int First, int Last, class A>
[[gnu::always_inline]] inline void add_columns(const A* x, const int32_t* choice, const Vec<A>* dy, Vec<A>* sum) {
  unroll<Stride>([&](auto t) __attribute__((always_inline)) {
    if constexpr (t + First * Stride < S)
      unroll<Channels>([&](auto c) __attribute__((always_inline)) {
        Vec<A> v = channel<Alone>(x + t * Vec<A>::lanes, choice, c);
        hold(v);
        unroll<Last - First + 1>([&](auto i) __attribute__((always_inline)) {
          constexpr int h = First + i, s = t + h * Stride;
          if constexpr (s < S) fma_into(sum[c * S + s], v, dy[h]);
        });
      });
  });
}

template <bool Alone, int S, int Stride, int Channels, class A>
[[gnu::noinline]] void sum_pass(const Sums<A>& k) {
  using V = Vec<A>;
  constexpr int64_t lanes = V::lanes;
  if constexpr (S > 0) {  // taps side by side, their number and the stride known
    // The first and last columns meet fewer gradients than the others.
    constexpr int before = (S - 1) / Stride, step = Stride * lanes;
    V sum[Channels * S], dy[before + 1];
    unroll<Channels * S>([&](auto i) __attribute__((always_inline)) { sum[i] = load(k.sums + i * lanes); });
    for (int64_t row = 0; row < k.rows; ++row) {
      const A* x = k.x[row] + k.x_offset;
      const A* gradient = k.dy[row] + k.dy_offset;
      unroll<before>([&](auto m) __attribute__((always_inline)) {
        unroll<m>([&](auto h) __attribute__((always_inline)) { dy[m - h] = dy[m - h - 1]; });
        dy[0] = load(gradient + m * lanes);
        add_columns<Alone, S, Stride, Channels, 0, m>(x + m * step, k.choice, dy, sum);
      });
      x += before * step;
      for (int64_t m = before; m < k.columns.count; ++m, x += step) {
        unroll<before>([&](auto h) __attribute__((always_inline)) { dy[before - h] = dy[before - h - 1]; });
        dy[0] = load(gradient + m * lanes);
        add_columns<Alone, S, Stride, Channels, 0, before>(x, k.choice, dy, sum);
      }
      unroll<before>([&](auto e) __attribute__((always_inline)) {
        unroll<before>([&](auto h) __attribute__((always_inline)) { dy[before - h] = dy[before - h - 1]; });
        add_columns<Alone, S, Stride, Channels, e + 1, before>(x + e * step, k.choice, dy, sum);
      });
    }
    unroll<Channels * S>([&](auto i) __attribute__((always_inline)) { store(k.sums + i * lanes, sum[i]); });
  } else {
    for (int64_t s = 0; s < k.columns.taps; ++s) {
      A* sums = k.sums + s * lanes;
      const int64_t pitch = k.columns.taps * lanes;
      V sum[Channels];
      unroll<Channels>([&](auto c) __attribute__((always_inline)) { sum[c] = load(sums + c * pitch); });
      for (int64_t row = 0; row < k.rows; ++row) {
        const A* x = k.x[row] + k.x_offset + s * k.columns.dilation * lanes;
        const A* gradient = k.dy[row] + k.dy_offset;
        for (int64_t j = 0; j < k.columns.count; ++j, x += k.columns.in_step * lanes, gradient += lanes) {
          const V dy = load(gradient);
          unroll<Channels>(
              [&](auto c) __attribute__((always_inline)) { fma_into(sum[c], channel<Alone>(x, k.choice, c), dy); });
        }
      }
      unroll<Channels>([&](auto c) __attribute__((always_inline)) { store(sums + c * pitch, sum[c]); });
    }
  }
}

template <bool Alone, int S, int Stride, class A>
void sum_channels(Sums<A> k, int64_t channels) {
  constexpr int64_t lanes = Vec<A>::lanes;
  const auto some = [&](auto count) {
    sum_pass<Alone, S, Stride, count>(k);
    k.choice += count * lanes, k.sums += count * k.columns.taps * lanes;
    if constexpr (Alone) k.x_offset += count;
    channels -= count;
  };
  // Of 4 channels two passes of 2 are faster than 3 and 1: a pass of 1 has too few sums.
  while (channels >= most_channels && !(most_channels == 3 && channels == 4))
    some(std::integral_constant<int, most_channels>{});
  while (channels >= 2) some(std::integral_constant<int, 2>{});
  if (channels) some(std::integral_constant<int, 1>{});
}

template <bool Alone, class A>
void sum_rows(const Sums<A>& k, int64_t channels) {
  // Float64 and the portable build have one pass, for any taps: they are to be right, and quick to compile.
  if constexpr (std::is_same_v<A, float> && this_isa != Isa::scalar) {
    const Phase& columns = k.columns;
    if (columns.dilation == 1 && columns.taps == 3 && columns.count >= 2) {
      if (columns.in_step == 1) return sum_channels<Alone, 3, 1>(k, channels);
      if (columns.in_step == 2) return sum_channels<Alone, 3, 2>(k, channels);
    }
    if constexpr (vector_registers >= 32)
      if (columns.dilation == 1 && columns.taps == 5 && columns.in_step == 1 && columns.count >= 4)
        return sum_channels<Alone, 5, 1>(k, channels);
  }
  sum_channels<Alone, 0, 0>(k, channels);
}

template <class A>
struct Shape {
  static constexpr int64_t lanes = Vec<A>::lanes;
  Units units;
  Phase h, w;
  int64_t batch;  // output rows summed at a time
  int64_t ring;   // x rows held
  Staging x, dy;
  int64_t piece, pieces;  // units of a task
  int64_t rows_a_chunk, chunks;
  int64_t unit_sums;

  explicit Shape(const Problem& p)
      : units(p.groups, p.filters_per_group(), p.channels_per_group(), lanes),
        h(phase_of(p.h, Pass::fprop, 0)),
        w(phase_of(p.w, Pass::fprop, 0)) {
    batch = std::min(p.h.out, divide_up(columns_of_a_pass, p.w.out));
    ring = std::min(p.h.in, p.h.reach() + (batch - 1) * p.h.stride);
    const int64_t left = std::max<int64_t>(0, p.w.pad_lo);
    const int64_t pitch = left + std::max<int64_t>(0, w.source(p.w.out - 1) + p.w.reach());
    x = {lanes, units.side, units.deep,    units.depth, units.blocks, p.groups,
         p.c,   p.w.in,     p.in_pixels(), left,        pitch,        p.layout == Layout::nchw};
    const int64_t deep = units.alone() ? std::min(lanes, units.written) : units.written;
    dy = {lanes,          units.side, deep,    units.written,           units.slices, p.groups, p.k, p.w.out,
          p.out_pixels(), 0,          p.w.out, p.layout == Layout::nchw};
    unit_sums = units.weights(p.taps());

    const int64_t channels = units.side * std::max(units.written, units.depth);
    const int64_t bytes_a_unit = (ring * x.unit() + batch * dy.unit()) * static_cast<int64_t>(sizeof(A));
    const int64_t most = std::clamp<int64_t>(machine_free_l2 / bytes_a_unit, 1, units.count);
    pieces = divide_up(units.count, std::min(most, std::max<int64_t>(1, piece_channels / channels)));
    const int64_t rows = p.n * p.h.out;
    chunks = std::clamp<int64_t>(divide_up(wanted_tasks, pieces), 1,
                                 std::clamp<int64_t>(rows * p.w.out / pixels_of_a_chunk, 1, rows));
    pieces = std::min(units.count, std::max(pieces, divide_up(wanted_tasks, chunks)));
    piece = divide_up(units.count, pieces);
    pieces = divide_up(units.count, piece);
    rows_a_chunk = divide_up(rows, chunks);
    chunks = divide_up(rows, rows_a_chunk);
  }
  static constexpr int64_t machine_free_l2 = 256 << 10;  // fixed, so that the bits do not depend on the machine
};

// The workspace: partial sums [chunk][unit], then each thread's own.
template <class A>
struct Work {
  A* sums;
  int32_t* choice;
  char* threads;
  int64_t thread_bytes;

  struct Own {
    A* x;   // [ring][unit of the piece]
    A* dy;  // [batch][unit of the piece]
    const A** x_rows;
    const A** dy_rows;
    int64_t* held;  // the source row each place of the ring holds
  };

  static Own own(char*& at, const Shape<A>& s) {
    return {take<A>(at, s.ring * s.piece * s.x.unit()), take<A>(at, s.batch * s.piece * s.dy.unit()),
            take<const A*>(at, s.batch), take<const A*>(at, s.batch), take<int64_t>(at, s.ring)};
  }
  Work(char*& at, const Shape<A>& s)
      : sums(take<A>(at, s.chunks * s.units.count * s.unit_sums)), choice(take<int32_t>(at, s.units.deep * s.lanes)) {
    threads = at;
    own(at, s);
    thread_bytes = at - threads;
    at = threads;
  }
};

template <class T>
class Wgrad {
  using A = arithmetic<T>;
  static constexpr int64_t lanes = Vec<A>::lanes;
  using Own = typename Work<A>::Own;

 public:
  Wgrad(const Problem& p, const Args& args)
      : p_(p), args_(args), shape_(p), at_(static_cast<char*>(args.workspace)), work_(at_, shape_) {
    write_choices(shape_.units, work_.choice);
    const int64_t bytes = (p.x_elements() + p.y_elements()) * static_cast<int64_t>(sizeof(T));
    far_ = p.layout == Layout::nhwc && bytes > machine().l2;
  }

  void run(const Parallel& parallel) const {
    parallel(shape_.pieces * shape_.chunks, [&](int64_t begin, int64_t end, int thread) {
      char* at = work_.threads + thread * work_.thread_bytes;
      const Own own = Work<A>::own(at, shape_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t chunk = task / shape_.pieces, first = task % shape_.pieces * shape_.piece;
        const int64_t last = std::min(first + shape_.piece, shape_.units.count);
        std::fill_n(sums(chunk, first), (last - first) * shape_.unit_sums, A(0));
        sum_chunk(own, chunk, first, last);
      }
    });
    parallel(shape_.units.count, [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; ++unit) finish(unit);
    });
  }

 private:
  A* sums(int64_t chunk, int64_t unit) const {
    return work_.sums + (chunk * shape_.units.count + unit) * shape_.unit_sums;
  }

  // A chunk's output rows, units [first, last).
  void sum_chunk(const Own& own, int64_t chunk, int64_t first, int64_t last) const {
    const int64_t begin = chunk * shape_.rows_a_chunk;
    const int64_t end = std::min(begin + shape_.rows_a_chunk, p_.n * p_.h.out);
    for (int64_t row = begin; row < end;) {
      const int64_t n = row / p_.h.out, j = row % p_.h.out;
      const int64_t count = std::min({shape_.batch, end - row, p_.h.out - j});
      if (row == begin || j == 0) std::fill_n(own.held, shape_.ring, int64_t{-1});
      stage(own, n, j, count, first, last);
      for (int64_t unit = first; unit < last; ++unit)
        for (int64_t r = 0; r < p_.h.window; ++r) {
          if (far_) fetch(n, j + count, count, unit, r);
          sum_tap_row(own, chunk, j, count, unit, first, r);
        }
      row += count;
    }
  }

  const A* place(const Own& own, int64_t y) const { return own.x + y % shape_.ring * shape_.piece * shape_.x.unit(); }

  void stage(const Own& own, int64_t n, int64_t j, int64_t count, int64_t first, int64_t last) const {
    for (int64_t i = 0; i < count; ++i) {
      const auto [tap_begin, tap_end] = shape_.h.clip(j + i);
      for (int64_t r = tap_begin; r < tap_end; ++r) {
        const int64_t y = shape_.h.source(j + i) + r * shape_.h.dilation;
        int64_t& held = own.held[y % shape_.ring];
        if (held == y) continue;
        held = y;
        shape_.x.fill(static_cast<const T*>(args_.x), n, y, first, last, const_cast<A*>(place(own, y)));
      }
      shape_.dy.fill(static_cast<const T*>(args_.y), n, j + i, first, last,
                     own.dy + i * shape_.piece * shape_.dy.unit());
    }
  }

  // While tap row r of a unit is summed, its share of what the unit reads for output rows [j, j + count) comes to L2.
  void fetch(int64_t n, int64_t j, int64_t count, int64_t unit, int64_t r) const {
    const int64_t y = shape_.h.source(j) + p_.h.reach() - p_.h.stride;
    fetch_pixels<T>(args_.x, shape_.x, (n * p_.h.in + y) * p_.w.in, count * p_.h.stride * p_.w.in, unit, r);
    fetch_pixels<T>(args_.y, shape_.dy, (n * p_.h.out + j) * p_.w.out, count * p_.w.out, unit, r);
  }
  template <class S>
  void fetch_pixels(const void* base, const Staging& s, int64_t first, int64_t count, int64_t unit, int64_t r) const {
    constexpr int for_reading = 0, into_l2 = 2;
    const int64_t line = cache_line / static_cast<int64_t>(sizeof(S)), channels = s.side * s.depth;
    const S* from = static_cast<const S*>(base) + unit * channels;
    for (int64_t i = first + r * count / p_.h.window; i < first + (r + 1) * count / p_.h.window; ++i)
      for (int64_t c = 0; c < channels; c += line) __builtin_prefetch(from + i * s.channels + c, for_reading, into_l2);
  }

  // What output rows [j, j + count) give to the sums of tap row r.
  void sum_tap_row(const Own& own, int64_t chunk, int64_t j, int64_t count, int64_t unit, int64_t first,
                   int64_t r) const {
    const Units& u = shape_.units;
    int64_t rows = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = shape_.h.source(j + i) + r * shape_.h.dilation;
      if (y < 0 || y >= p_.h.in) continue;
      own.x_rows[rows] = place(own, y) + (shape_.x.left + shape_.w.offset) * lanes;
      own.dy_rows[rows++] = own.dy + i * shape_.piece * shape_.dy.unit();
    }
    for (int64_t slice = 0; slice < u.slices; ++slice)
      for (int64_t b = 0; b < u.blocks; ++b) {
        A* to = sums(chunk, unit) + ((slice * p_.h.window + r) * u.depth + b * u.deep) * p_.w.window * lanes;
        const Sums<A> k{own.x_rows,
                        own.dy_rows,
                        rows,
                        (unit - first) * shape_.x.unit() + b * shape_.x.block(),
                        (unit - first) * shape_.dy.unit() + slice * shape_.dy.block(),
                        shape_.w,
                        work_.choice,
                        to};
        const int64_t channels = std::min(u.deep, u.depth - b * u.deep);
        u.alone() ? sum_rows<true>(k, channels) : sum_rows<false>(k, channels);
      }
  }

  // Adds the chunks of a unit in order and writes its filters.
  void finish(int64_t unit) const {
    const Units& u = shape_.units;
    A* total = sums(0, unit);
    for (int64_t chunk = 1; chunk < shape_.chunks; ++chunk) {
      const A* partial = sums(chunk, unit);
      for (int64_t i = 0; i < shape_.unit_sums; i += lanes) store(total + i, load(total + i) + load(partial + i));
    }
    const int64_t* step = args_.w_stride;
    for (int64_t slice = 0; slice < u.slices; ++slice)
      for (int64_t r = 0; r < p_.h.window; ++r)
        for (int64_t d = 0; d < u.depth; ++d)
          for (int64_t s = 0; s < p_.w.window; ++s, total += lanes) {
            T* out =
                static_cast<T*>(args_.out) + u.first(unit, slice) * step[0] + d * step[1] + r * step[2] + s * step[3];
            for (int i = 0; i < u.used(unit, slice); ++i) out[i * step[0]] = narrow<T>(total[i]);
          }
  }

  const Problem& p_;
  const Args& args_;
  const Shape<A> shape_;
  char* at_;
  const Work<A> work_;
  bool far_;  // the operands come from beyond L2: fetch the next rows ahead
};

}  // namespace

int64_t wgrad_workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    const Shape<A> shape(p);
    char* at = nullptr;
    const Work<A> work(at, shape);
    bytes = (at - static_cast<char*>(nullptr)) + threads * work.thread_bytes;
  });
  return bytes;
}

void wgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Wgrad<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::grouped
