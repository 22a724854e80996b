// Max pooling, sliding and adaptive, and its gradient.
//
// NHWC: a register of channels per output pixel, `unroll` registers at a time; each tap is one load, one compare, one
// blend. The gradient takes each input pixel, looks at the windows that cover it and adds dy where the index names it.
// NCHW: a register of output columns. A row of x goes once into scratch in phase order (rows.h); the maxima of its
// S taps, for all output columns, are kept in a ring of rows, so vertically overlapping windows share them; an output
// row is the maximum of R ring rows. Rows first and left to right: ties and NaNs come out as torch's scan has them,
// to the sign of a zero. Windows two columns wide that lie side by side need none of it where no index is asked for
// (pairs.h); planes that stay in L1 are taken whole (planes.h). Few output columns with an index or ragged adaptive
// windows go element by element. The gradient adds each dy to the pixel its index names, a plane on one thread.
// Bytes moved: x once, y once, the index once (one byte inside autograd, eight when int64 positions are asked for).
// Against torch 2.13 (Zen 4 shared with other work, one thread, f32, 2026-11-22, x times faster at batch 1 and 8):
//   forward NCHW 3x3/2 64@112 12.7 and 17.5, 2x2/2 64@224 16.3 and 20.4, 3x3/1 480@14 7.7 and 10.6
//   forward NHWC 3x3/2 64@112  3.5 and  1.7, 2x2/2 64@224  1.6 and  7.0, 3x3/1 480@14 2.9 and  2.2
//   forward + backward NHWC 1.1 and 1.5, 1.3 and 1.5, 1.3 and 1.4
// The gradient in NCHW, two threads: 3x3/2 64@112 1.2 and 1.7, 2x2/2 64@224 1.8, 3x3/2 256@13 batch 8 1.1; adding by
// registers, tap by tap, was 1.0 to 6 times slower than adding element by element.
// NCHW at batch 8 with two threads, since rows of stride 2 are read in registers to their end: 3x3/2 64@112 1.46
// to 1.04 ms (24x torch). 2x2/2 without an index, since it needs no scratch, at batch 1 and 8: 512@14 92 to 19 us and
// 489 to 107 us (12x and 22x torch NCHW), 512@28 152 to 32 us (37x). Whole planes without an index (Zen 5, two threads,
// batch 8, 2026-11-23): 3x3/1 512@14 0.52 to 0.17 ms, 832@7 0.38 to 0.18, 192@28 0.42 to 0.19, 3x3/2 480@28 0.79 to
// 0.38, 192@56 0.71 to 0.54, 256@13 0.19 to 0.08; counting instructions had predicted half of that. Loses for windows
// above about 7x7 in NHWC, where every tap is read anew for each output.
#include <limits>

#include "pairs.h"
#include "plain.h"
#include "planes.h"
#include "rows.h"
#include "scatter.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int unroll = 4;

// ---- NHWC ----

template <class T, class I>
class NhwcMax {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  NhwcMax(const Problem& p, const Args& args) : p(p), args(args), rows(p, p.h), columns(p, p.w), number(p) {}

  void fprop(const Parallel& parallel) const {
    parallel(p.n * p.h.out, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) output_row(i / p.h.out, i % p.h.out);
    });
  }

  void dgrad(const Parallel& parallel) const {
    parallel(p.n * p.h.in, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) input_row(i / p.h.in, i % p.h.in);
    });
  }

 private:
  void output_row(int64_t n, int64_t oh) const {
    const Span v = rows.at(oh);
    const T* image = static_cast<const T*>(args.x) + n * p.in_pixels() * p.c;
    const int64_t y0 = (n * p.h.out + oh) * p.w.out * p.buffer_channels() + p.epilogue.out_offset;
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Span h = columns.at(ow);
      const T* x = image + (v.first * p.w.in + h.first) * p.c;
      int64_t c = 0;
      for (; c + unroll * V::lanes <= p.c; c += unroll * V::lanes)
        outputs<unroll>(v, h, x + c, y0 + ow * p.buffer_channels() + c, V::lanes);
      for (; c < p.c; c += V::lanes)
        outputs<1>(v, h, x + c, y0 + ow * p.buffer_channels() + c,
                   static_cast<int>(std::min<int64_t>(V::lanes, p.c - c)));
    }
  }

  template <int width>
  void outputs(const Span& v, const Span& h, const T* x, int64_t to, int count) const {
    V best[width], at[width];
    const int64_t row0 = std::min(v.first, rows.in - 1), column0 = std::min(h.first, columns.in - 1);
    for (int u = 0; u < width; ++u) {
      best[u] = V::broadcast(-std::numeric_limits<A>::infinity());
      at[u] = V::broadcast(static_cast<A>(number.of(row0, column0, v.tap, h.tap)));
    }
    for (int64_t r = 0; r < v.count; ++r)
      for (int64_t s = 0; s < h.count; ++s) {
        const T* tap = x + (r * rows.step * p.w.in + s * columns.step) * p.c;
        if constexpr (std::is_void_v<I>) {
          for (int u = 0; u < width; ++u) best[u] = max(load(tap + u * V::lanes, count), best[u]);
        } else {
          const V t = V::broadcast(
              static_cast<A>(number.of(v.first + r * rows.step, h.first + s * columns.step, v.tap + r, h.tap + s)));
          for (int u = 0; u < width; ++u) take_greater(best[u], at[u], load(tap + u * V::lanes, count), t);
        }
      }
    for (int u = 0; u < width; ++u) {
      store(static_cast<T*>(args.out) + to + u * V::lanes, best[u], count);
      if constexpr (!std::is_void_v<I>) store_tags(static_cast<I*>(args.index) + to + u * V::lanes, at[u], count);
    }
  }

  void input_row(int64_t n, int64_t row) const {
    const auto [top, bottom] = rows.covering(row);
    const int64_t image = n * p.out_pixels() * p.c;
    T* dx = static_cast<T*>(args.out) + (n * p.h.in + row) * p.w.in * p.c;
    for (int64_t column = 0; column < p.w.in; ++column) {
      const auto [left, right] = columns.covering(column);
      const Cover cover{row, column, top, bottom, left, right};
      int64_t c = 0;
      for (; c + unroll * V::lanes <= p.c; c += unroll * V::lanes)
        inputs<unroll>(cover, image + c, dx + column * p.c + c, V::lanes);
      for (; c < p.c; c += V::lanes)
        inputs<1>(cover, image + c, dx + column * p.c + c, static_cast<int>(std::min<int64_t>(V::lanes, p.c - c)));
    }
  }

  struct Cover {
    int64_t row, column, top, bottom, left, right;
  };

  template <int width>
  void inputs(const Cover& at, int64_t from, T* dx, int count) const {
    V sum[width];
    for (int u = 0; u < width; ++u) sum[u] = V::zero();
    if constexpr (!std::is_void_v<I>) {
      const T* dy = static_cast<const T*>(args.y) + from;
      const I* index = static_cast<const I*>(args.index) + from;
      const bool plain_positions = !number.taps && rows.step == 1 && columns.step == 1;
      for (int64_t oh = at.top; oh < at.bottom; ++oh)
        for (int64_t ow = at.left; ow < at.right; ++ow) {
          // Undilated windows hold all they cover, and positions need no taps.
          const int64_t r = plain_positions ? 0 : rows.tap(oh, at.row),
                        s = plain_positions ? 0 : columns.tap(ow, at.column);
          if (r < 0 || s < 0) continue;
          const V t = V::broadcast(static_cast<A>(number.of(at.row, at.column, r, s)));
          const int64_t pixel = (oh * p.w.out + ow) * p.c;
          for (int u = 0; u < width; ++u)
            sum[u] = add_where_equal(sum[u], load_tags(V(), index + pixel + u * V::lanes, count), t,
                                     load(dy + pixel + u * V::lanes, count));
        }
    }
    for (int u = 0; u < width; ++u) store(dx + u * V::lanes, sum[u], count);
  }

  const Problem& p;
  const Args& args;
  const Windows rows, columns;
  const Numbering number;
};

// ---- NCHW ----

// Whether the row machinery has registers to fill: sliding windows and enough output columns.
bool by_rows(const Windows& rows, const Windows& columns) {
  constexpr int64_t fewest_columns = 4;
  return !rows.adaptive && !columns.adaptive && columns.out >= fewest_columns && columns.stride <= max_phases;
}

// One thread's scratch, carved from the workspace.
template <class A>
struct MaxScratch {
  int64_t width, slots;
  A *staged, *base, *first, *values, *tags;
  int64_t* held;   // the input row a slot of the ring holds
  int64_t* lines;  // where the ring rows of one window lie

  static int64_t ring_slots(const Windows& rows) {
    return std::max(int64_t{1}, std::min(rows.in, rows.step * (rows.window - 1) + 1));
  }
  static int64_t elements(const Windows& rows, const Windows& columns) {
    return PhaseRow<A>::elements(columns) + (2 + 2 * ring_slots(rows)) * padded_row(columns.out) +
           integers<A>(ring_slots(rows)) + integers<A>(rows.window);
  }
  MaxScratch(const Windows& rows, const Windows& columns, A* memory)
      : width(padded_row(columns.out)), slots(ring_slots(rows)) {
    staged = memory;
    base = staged + PhaseRow<A>::elements(columns);
    first = base + width;
    values = first + width;
    tags = values + slots * width;
    held = reinterpret_cast<int64_t*>(tags + slots * width);
    lines = reinterpret_cast<int64_t*>(tags + slots * width + integers<A>(slots));
  }
};

template <class T, class I>
class NchwMax {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  NchwMax(const Problem& p, const Args& args) : p(p), args(args), rows(p, p.h), columns(p, p.w), number(p) {}

  void fprop(const Parallel& parallel) const {
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
      MaxScratch<A> scratch = scratch_of(thread);
      PhaseRow<A> row(columns, scratch.staged);
      row.clear(-std::numeric_limits<A>::infinity());
      // What a column adds to the number of a maximum, beside s·column_step: before and at its first tap inside.
      for (int64_t q = 0; q < scratch.width; ++q) {
        const Span h = columns.at(std::min(q, columns.out - 1));
        scratch.base[q] = number.taps ? A(0) : static_cast<A>(h.first - h.tap * columns.step);
        scratch.first[q] = static_cast<A>(number.taps ? h.tap : std::min(h.first, columns.in - 1));
      }
      for (int64_t i = begin; i < end; ++i) {
        std::fill(scratch.held, scratch.held + scratch.slots, int64_t{-1});
        const T* x = static_cast<const T*>(args.x) + i * p.in_pixels();
        for (int64_t oh = 0; oh < p.h.out; ++oh) output_row(x, (i * p.h.out + oh) * p.w.out, rows.at(oh), row, scratch);
      }
    });
  }

 private:
  MaxScratch<A> scratch_of(int thread) const {
    return {rows, columns, static_cast<A*>(args.workspace) + thread * MaxScratch<A>::elements(rows, columns)};
  }
  int64_t column_step() const { return number.taps ? 1 : columns.step; }
  int64_t row_number(int64_t row, int64_t r) const { return number.of(row, 0, r, 0); }

  // The ring row that holds the maxima of input row `row`; computed unless it is still there.
  int64_t ring_row(const T* x, int64_t row, PhaseRow<A>& staged, MaxScratch<A>& scratch) const {
    const int64_t slot = row % scratch.slots, at = slot * scratch.width;
    if (scratch.held[slot] == row) return at;
    scratch.held[slot] = row;
    staged.fill(x + row * p.w.in);
    for (int64_t q = 0; q < p.w.out; q += V::lanes) {
      V best = V::broadcast(-std::numeric_limits<A>::infinity());
      V tag = V::load(scratch.first + q);
      const V base = V::load(scratch.base + q);
      for (int64_t s = 0; s < columns.window; ++s) {
        const V value = V::load(staged.tap(s) + q);
        if constexpr (std::is_void_v<I>)
          best = max(value, best);
        else
          take_greater(best, tag, value, base + V::broadcast(static_cast<A>(s * column_step())));
      }
      best.store(scratch.values + at + q);
      if constexpr (!std::is_void_v<I>) tag.store(scratch.tags + at + q);
    }
    return at;
  }

  void output_row(const T* x, int64_t to, const Span& v, PhaseRow<A>& staged, MaxScratch<A>& scratch) const {
    for (int64_t r = 0; r < v.count; ++r) scratch.lines[r] = ring_row(x, v.first + r * rows.step, staged, scratch);
    const V row0 = V::broadcast(static_cast<A>(row_number(std::min(v.first, rows.in - 1), v.tap)));
    for (int64_t q = 0; q < p.w.out; q += V::lanes) {
      V best = V::broadcast(-std::numeric_limits<A>::infinity());
      V tag = V::load(scratch.first + q) + row0;
      for (int64_t r = 0; r < v.count; ++r) {
        const int64_t row = v.first + r * rows.step, at = scratch.lines[r] + q;
        const V value = V::load(scratch.values + at);
        if constexpr (std::is_void_v<I>)
          best = max(value, best);
        else
          take_greater(best, tag, value,
                       V::load(scratch.tags + at) + V::broadcast(static_cast<A>(row_number(row, v.tap + r))));
      }
      const int count = static_cast<int>(std::min<int64_t>(V::lanes, p.w.out - q));
      store(static_cast<T*>(args.out) + to + q, best, count);
      if constexpr (!std::is_void_v<I>) store_tags(static_cast<I*>(args.index) + to + q, tag, count);
    }
  }

  const Problem& p;
  const Args& args;
  const Windows rows, columns;
  const Numbering number;
};

template <bool gradient, class T, class I>
void run_typed(const Problem& p, const Args& args, const Parallel& parallel) {
  if constexpr (!gradient) {
    if (p.layout == Layout::nhwc) return NhwcMax<T, I>(p, args).fprop(parallel);
    const Windows rows(p, p.h), columns(p, p.w);
    if constexpr (std::is_void_v<I>)
      if (in_pairs(rows, columns))
        return parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
          using V = Vec<arithmetic<T>>;
          pool_pairs<T>(
              p, args, rows, begin, end, [](V best, V value) { return max(value, best); }, [](V all) { return all; });
        });
    using A = arithmetic<T>;
    if constexpr (std::is_void_v<I>)
      if (PlaneMax<A>::fits(rows, columns))
        return parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
          A* memory = static_cast<A*>(args.workspace) + thread * PlaneMax<A>::elements(rows, columns);
          PlaneMax<A> plane(rows, columns, memory);
          for (int64_t i = begin; i < end; ++i)
            plane.run(static_cast<const T*>(args.x) + i * p.in_pixels(),
                      static_cast<T*>(args.out) + i * p.out_pixels());
        });
    if (by_rows(rows, columns)) return NchwMax<T, I>(p, args).fprop(parallel);
    parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) plain::max_fprop<T, I, arithmetic<T>>(p, args, i);
    });
  } else if constexpr (!std::is_void_v<I>) {
    if (p.layout == Layout::nhwc) return NhwcMax<T, I>(p, args).dgrad(parallel);
    Scatter<T, I>(p, args).dgrad(parallel);
  }
}

template <bool gradient>
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    with_index(p.index, [&](auto* index) {
      run_typed<gradient, std::remove_pointer_t<decltype(t)>, std::remove_pointer_t<decltype(index)>>(p, args,
                                                                                                      parallel);
    });
  });
}

int64_t workspace(const Problem& p, int threads) {
  const Windows rows(p, p.h), columns(p, p.w);
  if (p.layout == Layout::nhwc) return 0;
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = arithmetic<T>;
    int64_t elements = 0;
    if (p.pass == Pass::dgrad)
      elements = std::is_same_v<T, A> ? 0 : padded_row(p.in_pixels());
    else if (p.index == Index::none && PlaneMax<A>::fits(rows, columns))
      elements = PlaneMax<A>::elements(rows, columns);
    else if (by_rows(rows, columns))
      elements = MaxScratch<A>::elements(rows, columns);
    bytes = elements * static_cast<int64_t>(sizeof(A));
  });
  return bytes * threads;
}

std::string refuses(const Problem& p) {
  if (p.index == Index::i64 && p.in_pixels() > exact_tags)
    return "H·W=" + std::to_string(p.in_pixels()) + " positions are not all exact in a float lane.";
  return refuses_pool_slices(p);
}

}  // namespace

extern const KernelBody maxpool2d_fprop_window{refuses, workspace, run<false>};
extern const KernelBody maxpool2d_dgrad_window{refuses, workspace, run<true>};
extern const KernelBody adaptivemax2d_fprop_window{refuses, workspace, run<false>};
extern const KernelBody adaptivemax2d_dgrad_window{refuses, workspace, run<true>};

}  // namespace fastconv::FASTCONV_ISA
