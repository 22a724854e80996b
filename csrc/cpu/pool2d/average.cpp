// Average pooling, sliding and adaptive, and its gradient, with torch's divisors (padding counted, left out, or
// overridden).
//
// NHWC: a register of channels per output pixel, `unroll` registers at a time, one add a tap, one division an output.
// NCHW: a register of output columns. A row of x goes once into scratch in phase order (rows.h); the sums of its S taps
// are kept in a ring of rows that vertically overlapping windows share; an output row is the sum of R ring rows. A
// window that is the whole plane is one long sum. Gradients turn the same around, each input row written once.
// NHWC over a whole map: the pixels in the order of memory, in segments that do not depend on the threads, merged in
// their order.
// Bytes moved: x once, y once. 16-bit types are summed in float and rounded once.
// Against torch 2.13 (Zen 4 shared with other work, one thread, f32, 2026-11-22, x times faster at batch 1 and 8):
//   forward NCHW 3x3/1 192@28 5.3 and 6.2, 2x2/2 128@56 3.3 and 3.3, global 2048@7 1.2 and 1.1
//   forward NHWC 3x3/1 192@28 1.9 and 1.3, 2x2/2 128@56 1.3 and 1.1, global 2048@7 1.3 and 1.7
// NCHW at batch 8 with two threads: 2x2/2 128@56 0.51 ms by rows and 0.18 ms by pairs (pairs.h; 18x torch), 3x3/1
// 192@28 0.56 ms (9x), global 2048@7 0.041 ms, 78 GB/s: the copy bandwidth. Loses in NHWC for windows above about 7x7
// that overlap, where every tap is read anew for each output.
// One map in NHWC, two threads, in the same run as torch 2.13's NHWC, us: whole maps 144@56 15.2 (1.5x), 240@28 7.6
// (1.6x), 32@112 13.2 (1.9x), 512@7 4.3 (2.0x), batch 8 144@56 129 (1.0x), but 32@112 0.65 to 0.85x; 2x2/2 512@14 6.6
// (1.2x).
// Gradients in NHWC copy a pixel to the others of the same windows and a row to the next: of a whole map, batch 8, two
// Zen 5 cores (2026-11-23), 32@112 0.75 ms and now 0.18 (torch's expand 0.21 to 0.36), 144@56 0.35 and 0.22.
#include "core/integers.h"
#include "pairs.h"
#include "plain.h"
#include "rows.h"
#include "simd/each_register.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int unroll = 4;

template <class T>
class Average {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  Average(const Problem& p, const Args& args) : p(p), args(args), rows(p, p.h), columns(p, p.w) {}

  bool by_rows() const {
    constexpr int64_t fewest_columns = 4;
    return !rows.adaptive && !columns.adaptive && columns.out >= fewest_columns && columns.stride <= max_phases;
  }
  // Every output is one input.
  bool identity() const {
    const auto same = [](const Windows& w) {
      return w.in == w.out && (w.adaptive || (w.window == 1 && w.stride == 1));
    };
    return same(rows) && same(columns) && !p.divisor_override && !p.epilogue.out_channels;
  }
  // Every output is the average of its whole plane.
  bool global() const {
    return p.out_pixels() == 1 && rows.at(0).count == rows.in && columns.at(0).count == columns.in;
  }
  // Averages of whole maps of more than a few pixels: read in the order of memory, images in segments where they are
  // few.
  bool by_segments() const { return p.layout == Layout::nhwc && global() && p.in_pixels() >= least_tasks * together; }
  int64_t segments() const { return std::max(int64_t{1}, least_tasks / std::max(int64_t{1}, p.n)); }
  int64_t workspace(int threads) const {
    const int64_t elements = by_segments() ? p.n * segments() * p.c : threads * scratch_elements();
    return elements * static_cast<int64_t>(sizeof(A));
  }
  int64_t scratch_elements() const {
    if (p.layout == Layout::nhwc || !by_rows()) return 0;
    return PhaseRow<A>::elements(columns) + (1 + slots()) * width() + integers<A>(slots()) + integers<A>(rows.window);
  }

  void fprop(const Parallel& parallel) const {
    if (identity()) return copy(args.x, parallel);
    if (by_segments()) return nhwc_segments(parallel);
    if (p.layout == Layout::nhwc) {
      const int64_t blocks = channel_blocks();
      parallel(p.n * p.out_pixels() * blocks, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) nhwc_pixel(i / blocks, i % blocks);
      });
      return;
    }
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
      const bool whole = global(), pairs = in_pairs(rows, columns);
      const A by = whole || pairs ? divisor(rows.at(0), columns.at(0)) : A(1);
      if (whole)
        for (int64_t i = begin; i < end; ++i) whole_plane(i, by);
      else if (pairs)
        pool_pairs<T>(
            p, args, rows, begin, end, [](V sum, V next) { return sum + next; },
            [&](V sum) { return sum / V::broadcast(by); });
      else if (by_rows())
        planes(begin, end, thread);
      else
        for (int64_t i = begin; i < end; ++i) plain::average_fprop<T, A>(p, args, i);
    });
  }

  void dgrad(const Parallel& parallel) const {
    if (identity()) return copy(args.y, parallel);
    if (p.layout == Layout::nhwc) {
      parallel(p.n * p.h.in, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i % p.h.in;
          if (i > begin && row > 0 && rows.covering(row) == rows.covering(row - 1))
            repeat(gradient_row(i - 1), p.w.in * p.c, 2);
          else
            nhwc_gradient_row(i / p.h.in, row);
        }
      });
      return;
    }
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
      const bool whole = global();
      const A by = whole ? divisor(rows.at(0), columns.at(0)) : A(1);
      if (whole)
        for (int64_t i = begin; i < end; ++i) fill_plane(i, by);
      else if (by_rows())
        gradient_planes(begin, end, thread);
      else
        for (int64_t i = begin; i < end; ++i) plain::average_dgrad<T, A>(p, args, i);
    });
  }

 private:
  A divisor(const Span& v, const Span& h) const { return static_cast<A>(plain::divisor(p, v, h)); }

  // ---- NHWC ----

  static constexpr int64_t least_tasks = 16;
  static constexpr int64_t together = 4;  // pixels that share an access to their sums

  // Channels that a task takes where there are few rows.
  int64_t block() const {
    constexpr int64_t wide = 16 * V::lanes, narrow = unroll * V::lanes;
    return p.n * divide_up(p.c, wide) < least_tasks ? narrow : wide;
  }
  int64_t channel_blocks() const { return p.h.out > 1 ? 1 : divide_up(p.c, block()); }

  // Sums of an image's pixels in segments, then of the segments in their order.
  void nhwc_segments(const Parallel& parallel) const {
    A* partial = static_cast<A*>(args.workspace);
    const int64_t pixels = p.in_pixels(), segments = this->segments();
    parallel(p.n * segments, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = pixels * (i % segments) / segments, last = pixels * (i % segments + 1) / segments;
        sum_pixels(static_cast<const T*>(args.x) + (i / segments * pixels + first) * p.c, last - first,
                   partial + i * p.c);
      }
    });
    const V by = V::broadcast(divisor(rows.at(0), columns.at(0)));
    for (int64_t n = 0; n < p.n; ++n)
      each_register<V>(p.c, [&](int64_t c, auto count) {
        V sum = V::zero();
        for (int64_t s = 0; s < segments; ++s) sum = sum + load(partial + (n * segments + s) * p.c + c, count);
        store(static_cast<T*>(args.out) + n * p.buffer_channels() + p.epilogue.out_offset + c, sum / by, count);
      });
  }

  // Of few channels, each access to a sum waits for the one before: many pixels share it.
  void sum_pixels(const T* x, int64_t pixels, A* sum) const {
    std::fill(sum, sum + p.c, A(0));
    if (p.c <= unroll * V::lanes) add_fours<together>(x, pixels, sum);
    add_fours<1>(x, pixels, sum);
    for (; pixels > 0; --pixels, x += p.c)
      each_register<V>(
          p.c, [&](int64_t c, auto count) { store(sum + c, load(sum + c, count) + load(x + c, count), count); });
  }

  // Adds as many pixels as `fours` times four go into; moves on behind them.
  template <int fours>
  void add_fours(const T*& x, int64_t& pixels, A* sum) const {
    for (; pixels >= fours * together; pixels -= fours * together, x += fours * together * p.c)
      each_register<V>(p.c, [&](int64_t c, auto count) {
        V part[fours];
        unrolled<fours>([&](auto i) {
          const T* at = x + i * together * p.c + c;
          const V upper = load(at, count) + load(at + p.c, count);
          part[i] = upper + (load(at + 2 * p.c, count) + load(at + 3 * p.c, count));
        });
        for (int i = 1; i < fours; ++i) part[0] = part[0] + part[i];
        store(sum + c, load(sum + c, count) + part[0], count);
      });
  }

  // What a sum is divided by, or, of a power of two, multiplied by its inverse.
  struct Divisor {
    A value;
    bool power_of_two;
    explicit Divisor(A by) : value(by) {
      int exponent;
      power_of_two = std::frexp(by, &exponent) == A(0.5);
      if (power_of_two) value = 1 / by;
    }
  };

  // `pixel` numbers those of all images.
  void nhwc_pixel(int64_t pixel, int64_t part) const {
    const int64_t image = pixel / p.out_pixels(), place = pixel % p.out_pixels();
    const Span v = rows.at(place / p.w.out), h = columns.at(place % p.w.out);
    const int64_t first = channel_blocks() > 1 ? part * block() : 0;
    const int64_t last = channel_blocks() > 1 ? std::min(p.c, first + block()) : p.c;
    const T* x = static_cast<const T*>(args.x) + (image * p.in_pixels() + v.first * p.w.in + h.first) * p.c;
    T* y = static_cast<T*>(args.out) + pixel * p.buffer_channels() + p.epilogue.out_offset;
    const Divisor by(divisor(v, h));
    int64_t c = first;
    for (; c + unroll * V::lanes <= last; c += unroll * V::lanes)
      sums<unroll>(v, h, by, x + c, y + c, std::integral_constant<int, V::lanes>());
    each_register<V>(last - c, [&](int64_t i, auto count) { sums<1>(v, h, by, x + c + i, y + c + i, count); });
  }

  template <int regs, class Count>
  void sums(const Span& v, const Span& h, const Divisor& by, const T* x, T* y, Count count) const {
    V sum[regs];
    for (V& s : sum) s = V::zero();
    for (int64_t r = 0; r < v.count; ++r)
      for (int64_t s = 0; s < h.count; ++s) {
        const T* tap = x + (r * p.w.in + s) * p.c;
        unrolled<regs>([&](auto u) { sum[u] = sum[u] + load(tap + u * V::lanes, count); });
      }
    const V over = V::broadcast(by.value);
    if (by.power_of_two)  // the product is the quotient, to the bit
      unrolled<regs>([&](auto u) { store(y + u * V::lanes, sum[u] * over, count); });
    else
      unrolled<regs>([&](auto u) { store(y + u * V::lanes, sum[u] / over, count); });
  }

  T* gradient_row(int64_t i) const { return static_cast<T*>(args.out) + i * p.w.in * p.c; }

  // The first of `count` runs of `length` elements, copied to the others.
  static void repeat(T* first, int64_t length, int64_t count) {
    for (int64_t made = 1; made < count; made *= 2)
      std::copy_n(first, std::min(made, count - made) * length, first + made * length);
  }

  // Inputs of the same windows have the same gradient.
  void nhwc_gradient_row(int64_t n, int64_t row) const {
    const auto [top, bottom] = rows.covering(row);
    const T* image = static_cast<const T*>(args.y) + n * p.out_pixels() * p.c;
    T* dx = gradient_row(n * p.h.in + row);
    for (int64_t column = 0, next; column < p.w.in; column = next) {
      const auto covering = columns.covering(column);
      for (next = column + 1; next < p.w.in && columns.covering(next) == covering;) ++next;
      const Cover cover{top, bottom, covering.first, covering.second};
      T* pixel = dx + column * p.c;
      int64_t c = 0;
      for (; c + unroll * V::lanes <= p.c; c += unroll * V::lanes)
        gathered<unroll>(cover, image + c, pixel + c, V::lanes);
      for (; c < p.c; c += V::lanes)
        gathered<1>(cover, image + c, pixel + c, static_cast<int>(std::min<int64_t>(V::lanes, p.c - c)));
      repeat(pixel, p.c, next - column);
    }
  }

  struct Cover {
    int64_t top, bottom, left, right;
  };

  template <int regs>
  void gathered(const Cover& at, const T* dy, T* dx, int count) const {
    V sum[regs];
    for (V& s : sum) s = V::zero();
    for (int64_t oh = at.top; oh < at.bottom; ++oh)
      for (int64_t ow = at.left; ow < at.right; ++ow) {
        const V share = V::broadcast(A(1) / divisor(rows.at(oh), columns.at(ow)));
        const T* from = dy + (oh * p.w.out + ow) * p.c;
        for (int u = 0; u < regs; ++u) sum[u] = fma(load(from + u * V::lanes, count), share, sum[u]);
      }
    for (int u = 0; u < regs; ++u) store(dx + u * V::lanes, sum[u], count);
  }

  void copy(const void* from, const Parallel& parallel) const {
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
      const int64_t pixels = p.in_pixels();
      std::copy(static_cast<const T*>(from) + begin * pixels, static_cast<const T*>(from) + end * pixels,
                static_cast<T*>(args.out) + begin * pixels);
    });
  }

  // ---- NCHW ----

  int64_t width() const { return padded_row(columns.out); }
  int64_t slots() const { return std::max(int64_t{1}, std::min(rows.in, rows.window)); }

  struct Scratch {
    A *staged, *extents, *ring;
    int64_t* held;   // the input row a slot of the ring holds
    int64_t* lines;  // where the ring rows of one window lie
  };
  Scratch scratch_of(int thread) const {
    Scratch s;
    s.staged = static_cast<A*>(args.workspace) + thread * scratch_elements();
    s.extents = s.staged + PhaseRow<A>::elements(columns);
    s.ring = s.extents + width();
    s.held = reinterpret_cast<int64_t*>(s.ring + slots() * width());
    s.lines = reinterpret_cast<int64_t*>(s.ring + slots() * width() + integers<A>(slots()));
    // What each column contributes to its divisor; a register may run over the last one.
    for (int64_t q = 0; q < width(); ++q)
      s.extents[q] = p.divisor_override ? A(1) : static_cast<A>(columns.at(std::min(q, columns.out - 1)).extent);
    return s;
  }
  V row_divisor(const Span& v) const {
    return V::broadcast(static_cast<A>(p.divisor_override ? p.divisor_override : v.extent));
  }

  void whole_plane(int64_t plane, A by) const {
    const int64_t pixels = p.in_pixels();
    const T* x = static_cast<const T*>(args.x) + plane * pixels;
    V sum[unroll];
    for (V& s : sum) s = V::zero();
    int64_t i = 0;
    for (; i + unroll * V::lanes <= pixels; i += unroll * V::lanes)
      for (int u = 0; u < unroll; ++u) sum[u] = sum[u] + load(x + i + u * V::lanes);
    for (; i + V::lanes <= pixels; i += V::lanes) sum[0] = sum[0] + load(x + i);
    if (i < pixels) sum[1] = sum[1] + load(x + i, static_cast<int>(pixels - i));
    static_cast<T*>(args.out)[plane] = narrow<T>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / by);
  }

  void fill_plane(int64_t plane, A by) const {
    const A dy = widen(static_cast<const T*>(args.y)[plane]);
    T* dx = static_cast<T*>(args.out) + plane * p.in_pixels();
    std::fill(dx, dx + p.in_pixels(), narrow<T>(dy / by));
  }

  void planes(int64_t begin, int64_t end, int thread) const {
    const Scratch scratch = scratch_of(thread);
    PhaseRow<A> staged(columns, scratch.staged);
    staged.clear(0);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(scratch.held, scratch.held + slots(), int64_t{-1});
      const T* x = static_cast<const T*>(args.x) + i * p.in_pixels();
      for (int64_t oh = 0; oh < p.h.out; ++oh) {
        const Span v = rows.at(oh);
        for (int64_t r = 0; r < v.count; ++r) scratch.lines[r] = ring_row(x, v.first + r, staged, scratch);
        const V by = row_divisor(v);
        T* y = static_cast<T*>(args.out) + (i * p.h.out + oh) * p.w.out;
        for (int64_t q = 0; q < p.w.out; q += V::lanes) {
          V sum = V::zero();
          for (int64_t r = 0; r < v.count; ++r) sum = sum + V::load(scratch.ring + scratch.lines[r] + q);
          store(y + q, sum / (by * V::load(scratch.extents + q)),
                static_cast<int>(std::min<int64_t>(V::lanes, p.w.out - q)));
        }
      }
    }
  }

  // Where the ring holds the sums of input row `row`; computed unless they are still there.
  int64_t ring_row(const T* x, int64_t row, PhaseRow<A>& staged, const Scratch& scratch) const {
    const int64_t slot = row % slots(), at = slot * width();
    if (scratch.held[slot] == row) return at;
    scratch.held[slot] = row;
    staged.fill(x + row * p.w.in);
    for (int64_t q = 0; q < p.w.out; q += V::lanes) {
      V sum = V::zero();
      for (int64_t s = 0; s < columns.window; ++s) sum = sum + V::load(staged.tap(s) + q);
      sum.store(scratch.ring + at + q);
    }
    return at;
  }

  void gradient_planes(int64_t begin, int64_t end, int thread) const {
    const Scratch scratch = scratch_of(thread);
    PhaseRow<A> row(columns, scratch.staged);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t h = 0; h < p.h.in; ++h) {
        row.clear(0);
        const auto [top, bottom] = rows.covering(h);
        for (int64_t q = 0; q < p.w.out; q += V::lanes) {
          const int count = static_cast<int>(std::min<int64_t>(V::lanes, p.w.out - q));
          V sum = V::zero();
          for (int64_t oh = top; oh < bottom; ++oh) {
            const V dy = load(static_cast<const T*>(args.y) + (i * p.h.out + oh) * p.w.out + q, count);
            sum = sum + dy / (row_divisor(rows.at(oh)) * V::load(scratch.extents + q));
          }
          for (int64_t s = 0; s < columns.window; ++s) {
            A* to = row.tap(s) + q;
            (V::load(to) + sum).store(to);
          }
        }
        row.drain(static_cast<T*>(args.out) + (i * p.h.in + h) * p.w.in);
      }
  }

  const Problem& p;
  const Args& args;
  const Windows rows, columns;
};

template <bool gradient>
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    const Average<std::remove_pointer_t<decltype(t)>> kernel(p, args);
    if constexpr (gradient)
      kernel.dgrad(parallel);
    else
      kernel.fprop(parallel);
  });
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype,
             [&](auto* t) { bytes = Average<std::remove_pointer_t<decltype(t)>>(p, Args()).workspace(threads); });
  return bytes;
}

}  // namespace

extern const KernelBody avgpool2d_fprop_window{refuses_pool_slices, workspace, run<false>};
extern const KernelBody avgpool2d_dgrad_window{refuses_pool_slices, workspace, run<true>};
extern const KernelBody adaptiveavg2d_fprop_window{refuses_pool_slices, workspace, run<false>};
extern const KernelBody adaptiveavg2d_dgrad_window{refuses_pool_slices, workspace, run<true>};

}  // namespace fastconv::FASTCONV_ISA
