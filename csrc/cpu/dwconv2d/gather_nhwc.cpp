// Depthwise fprop and dgrad, channels last: a register holds consecutive channels of one pixel.
//
// A tile is 7 output columns (every ImageNet width is a multiple of 7) of one channel register. For each filter row the
// weights of its taps sit in registers and each source column is loaded once for all taps that use it. dgrad is the
// same gather with the filter walked backwards, for strides above 1 once per residue of the columns with only the taps
// that hit. A tile at the border checks each source column, any other none; rows outside are clipped before.
// Threads share out rows: 384@14 took 80 us while they shared out channels, and takes 13. The likely cause, not proven,
// is that each prefetched lines the other was writing; one thread alone showed no such loss.
//
// Zen 4, 2 cores, 2026-11-22, float, best of turns on a loaded machine, microseconds AVX-512 / AVX2 / torch's better
// layout. Batch 1: 192@28 26/29/71 · 384@14 12/15/60 · 576@14 18/22/66 · 576@14 stride 2 9/11/59 · 960@7 11/12/58 · 5x5
// 240@28 52/61/111 · 1152@7 24/26/87; dgrad 576@14 stride 2 12/15/67. Batch 8: 192@28 193/231/228, 5x5 672@14
// 253/354/388.
// It loses at batch 8 where x and y are tens of megabytes: dgrad 144@56 1918/1819/972, 32@112 786/786/751; fprop 144@56
// stride 2 365/294/309, 96@112 stride 2 2580/3446/1929; dgrad 144@56 stride 2 as AVX2, 495 against 405. And as AVX2 at
// a power of two of channels: fprop 1024@7 209 against 152 (cache sets shared by the columns of a tile, probably).
// Figures above a millisecond moved by a factor of 2 between runs.
#include "depthwise.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

constexpr int tile_columns = 7, small_tile_columns = 3;
constexpr int64_t tasks_a_thread = 4;  // at least, so that 7 rows share out evenly

// One output row, one residue of its columns, one range of channels.
template <class T>
struct Row {
  using A = arithmetic<T>;
  const Tail<T>& tail;
  const Phase& columns;
  const T* x;              // column 0 of the source row of the first valid tap row
  int64_t x_row, x_pixel;  // elements from tap row to tap row, from column to column
  const A* w;              // the first valid tap row
  int64_t w_row, w_tap;    // elements from tap row to tap row (negative for dgrad), from tap to tap
  int64_t tap_rows, all_taps;
  int64_t c_begin, c_end;
  int64_t n, pixel;  // of the first column of the output row
  bool plain;        // nothing but a store at the end
};

template <class T, int S, int Stride, int Columns, bool Border>
[[gnu::always_inline]] inline void tile(const Row<T>& k, int64_t j, int64_t c, int count) {
  using V = Vec<arithmetic<T>>;
  V sum[Columns];
  unroll<Columns>([&](auto q) __attribute__((always_inline)) { sum[q] = V::zero(); });
  const int64_t first = k.columns.source(j);
  const auto outside = [&](int64_t column) { return Border && (column < 0 || column >= k.columns.in); };
  for (int64_t r = 0; r < k.tap_rows; ++r) {
    const T* x = k.x + r * k.x_row + c;
    const auto* w = k.w + r * k.w_row + (c & -line) * k.all_taps + (c & (line - 1));
    if constexpr (S > 0) {  // taps side by side, their number and the stride known
      V taps[S];
      unroll<S>([&](auto s) __attribute__((always_inline)) { taps[s] = load(w + s * k.w_tap, count); });
      unroll<(Columns - 1) * Stride + S>([&](auto i) __attribute__((always_inline)) {
        if (outside(first + i)) return;
        const V v = load(x + (first + i) * k.x_pixel, count);
        unroll<S>([&](auto s) __attribute__((always_inline)) {
          constexpr int ahead = decltype(i)::value - decltype(s)::value, q = ahead / Stride;
          if constexpr (ahead >= 0 && ahead % Stride == 0 && q < Columns) sum[q] = fma(v, taps[s], sum[q]);
        });
      });
    } else {
      for (int64_t s = 0; s < k.columns.taps; ++s) {
        const V tap = load(w + s * k.w_tap, count);
        unroll<Columns>([&](auto q) __attribute__((always_inline)) {
          const int64_t column = first + q * k.columns.in_step + s * k.columns.dilation;
          if (!outside(column)) sum[q] = fma(load(x + column * k.x_pixel, count), tap, sum[q]);
        });
      }
    }
  }
  const int64_t pixel = k.pixel + k.columns.first + j * k.columns.step;
  if (k.plain) {
    T* out = k.tail.out + k.tail.out_at(k.n, c, pixel);
    const int64_t step = k.columns.step * k.tail.out_channels;
    unroll<Columns>([&](auto q) __attribute__((always_inline)) { store(out + q * step, sum[q], count); });
  } else {
    unroll<Columns>([&](auto q) __attribute__((always_inline)) {
      k.tail.put_channels(k.n, c, pixel + q * k.columns.step, sum[q], count);
    });
  }
}

template <class T, int S, int Stride, int Columns>
void channels_of_tile(const Row<T>& k, int64_t j) {
  constexpr int lanes = Vec<arithmetic<T>>::lanes;
  const Phase& columns = k.columns;
  const int64_t first = columns.source(j);
  const int64_t last = columns.source(j + Columns - 1) + (columns.taps - 1) * columns.dilation;
  int64_t c = k.c_begin;
  if (first < 0 || last >= columns.in)
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Columns, true>(k, j, c, lanes);
  else
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Columns, false>(k, j, c, lanes);
  if (c < k.c_end) tile<T, S, Stride, Columns, true>(k, j, c, static_cast<int>(k.c_end - c));
}

template <class T, int S, int Stride>
void columns_of_row(const Row<T>& k) {
  const int64_t count = k.columns.count;
  int64_t j = 0;
  for (; j + tile_columns <= count; j += tile_columns) channels_of_tile<T, S, Stride, tile_columns>(k, j);
  for (; j + small_tile_columns <= count; j += small_tile_columns)
    channels_of_tile<T, S, Stride, small_tile_columns>(k, j);
  for (; j < count; ++j) channels_of_tile<T, S, Stride, 1>(k, j);
}

template <class T>
void run_row(const Row<T>& k) {
  const Phase& columns = k.columns;
  if (columns.dilation == 1 || columns.taps == 1) {
    // With stride 2, dgrad of 3 or 5 taps leaves 1, 2 or 3 taps side by side.
    if (columns.in_step == 1 && columns.taps == 1) return columns_of_row<T, 1, 1>(k);
    if (columns.in_step == 1 && columns.taps == 2) return columns_of_row<T, 2, 1>(k);
    if (columns.in_step == 1 && columns.taps == 3) return columns_of_row<T, 3, 1>(k);
    if (columns.in_step == 1 && columns.taps == 5) return columns_of_row<T, 5, 1>(k);
    if (columns.in_step == 2 && columns.taps == 3) return columns_of_row<T, 3, 2>(k);
    if (columns.in_step == 2 && columns.taps == 5) return columns_of_row<T, 5, 2>(k);
  }
  columns_of_row<T, 0, 0>(k);
}

struct Shape {  // of one call, whichever the pass
  int64_t channels, pitch, rows, width, source_rows, source_width;
  Shape(const Problem& p)
      : channels(p.c),
        pitch(aligned(p.c, line)),
        rows(p.pass == Pass::dgrad ? p.h.in : p.h.out),
        width(p.pass == Pass::dgrad ? p.w.in : p.w.out),
        source_rows(p.pass == Pass::dgrad ? p.h.out : p.h.in),
        source_width(p.pass == Pass::dgrad ? p.w.out : p.w.in) {}
  int64_t packed(const Problem& p) const { return p.taps() * pitch; }
};

// Rows [begin, end) of one image, channels [c_begin, c_end).
template <class T>
void run_rows(const Problem& p, const Args& args, const Shape& shape, const Tail<T>& tail, const arithmetic<T>* packed,
              int64_t n, int64_t begin, int64_t end, int64_t c_begin, int64_t c_end) {
  const T* source = static_cast<const T*>(p.pass == Pass::dgrad ? args.y : args.x);
  source += n * shape.source_rows * shape.source_width * shape.channels;
  const bool plain = !tail.bias && !tail.residual && tail.activation == Activation::none;
  const int64_t tap_row = p.w.window * line;
  for (int64_t row = begin; row < end; ++row) {
    const Phase h = phase_of(p.h, p.pass, row % phases(p.h, p.pass));
    const int64_t j = row / h.step;
    const auto [tap_begin, tap_end] = h.clip(j);
    const int64_t first = tap_begin < tap_end ? h.source(j) + tap_begin * h.dilation : 0;
    const T* x = source + first * shape.source_width * shape.channels;
    for (int64_t residue = 0; residue < phases(p.w, p.pass); ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      const arithmetic<T>* taps = packed + (h.tap + tap_begin * h.tap_step) * tap_row + w.tap * line;
      run_row<T>({tail, w, x, h.dilation * shape.source_width * shape.channels, shape.channels, taps,
                  h.tap_step * tap_row, w.tap_step * line, w.taps ? tap_end - tap_begin : 0, p.taps(), c_begin, c_end,
                  n, row * shape.width, plain});
    }
  }
}

template <class T>
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Shape shape(p);
  const Tail<T> tail(p, args);
  const int64_t bytes_a_channel = p.h.window * shape.source_width * static_cast<int64_t>(sizeof(T));
  const int64_t chunk = std::max(line, l1_budget / bytes_a_channel / line * line);
  // Tasks are rows, or pieces of rows where there are few; neighbours in memory stay neighbours in a thread.
  const int64_t lines = (shape.channels + line - 1) / line, rows = p.n * shape.rows;
  const int64_t wanted = (tasks_a_thread * parallel.threads() + rows - 1) / rows;
  const int64_t piece = (lines + std::min(wanted, lines) - 1) / std::min(wanted, lines),
                pieces = (lines + piece - 1) / piece;
  parallel(rows * pieces, [&](int64_t begin, int64_t end, int thread) {
    A* packed = static_cast<A*>(args.workspace) + thread * shape.packed(p);
    pack_filter<T>(p, args, packed);
    for (int64_t i = begin; i < end;) {
      const int64_t n = i / pieces / shape.rows, row = i / pieces % shape.rows, first = i % pieces;
      const bool whole = first == 0 && i + pieces <= end;
      const int64_t count = whole ? std::min((end - i) / pieces, shape.rows - row) : 1;
      const int64_t last = whole ? pieces : std::min(pieces, first + end - i);
      const int64_t c_end = std::min(last * piece * line, shape.channels);
      for (int64_t c = first * piece * line; c < c_end; c += chunk)
        run_rows(p, args, shape, tail, packed, n, row, row + count, c, std::min(c + chunk, c_end));
      i += whole ? count * pieces : last - first;
    }
  });
}

}  // namespace

int64_t gather_nhwc_workspace(const Problem& p, int threads) {
  return threads * Shape(p).packed(p) * arithmetic_bytes(p.dtype);
}

void gather_nhwc(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
