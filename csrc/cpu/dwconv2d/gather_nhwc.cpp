// Depthwise fprop and dgrad, channels last: a register holds consecutive channels of one pixel.
//
// A tile is one channel register of 7 output columns (every ImageNet width is a multiple of 7) in one row, or with 32
// registers in two rows, so that a source row is read twice instead of three times: at 144@56 those rows come from L2,
// and the loads, not the FMAs, are the limit. For each source row the weights of its taps sit in registers and each
// source column is loaded once for all taps that use it. dgrad is the same gather with the filter walked backwards, for
// strides above 1 once per residue of the columns with only the taps that hit. A tile at the border checks each source
// column, any other none; rows outside are clipped before. Channels run inside columns, so that memory is read and
// written in order; where the map is larger than L2 the rows of the next tile row are prefetched.
// Threads share out rows: 384@14 took 80 us while they shared out channels, and takes 13. The likely cause, not proven,
// is that each prefetched lines the other was writing; one thread alone showed no such loss.
//
// Zen 4, 2 cores, 2026-11-22, float, result preallocated, torch channels_last time / own time with 1 and 2 threads,
// both AVX-512 or both AVX2. fprop batch 8: 144@56 1.30 0.86 (AVX2 1.02 0.99) · 32@112 1.06 0.88 (1.26 1.23) · 96@112
// stride 2 1.03 0.95 (0.86 0.85) · 384@14 1.32 1.62 (1.22 1.44); 5x5 672@14 1.22 1.27; batch 1: 144@56 1.07 1.35 (1.34
// 1.62). dgrad batch 8: 144@56 1.40 1.24, 32@112 1.45 1.49, 96@112 stride 2 5.1 6.2.
// Before two rows, channels inside and prefetching, batch 8 144@56 stood at 0.31. It still loses by a tenth at batch 8
// with two threads on maps that fit L3 but not L2, and as AVX2 at stride 2.
#include <type_traits>

#include "core/machine.h"
#include "depthwise.h"
#include "simd/fma_into.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

constexpr int tile_columns = 7, widest_taps = 5;
// The sums and taps of two rows, and one source column.
constexpr bool registers_hold_pair = vector_registers >= 2 * (tile_columns + widest_taps) + 1;
constexpr int for_reading = 0, into_l2 = 2;  // of __builtin_prefetch
constexpr int64_t tasks_a_thread = 4;        // at least, so that 7 rows share out evenly

// One or two output rows, one residue of their columns, one range of channels.
template <class T>
struct Row {
  using A = arithmetic<T>;
  const Tail<T>& tail;
  const Phase& columns;
  const T* x;              // column 0 of the first source row
  int64_t x_row, x_pixel;  // elements from source row to source row, from column to column
  int64_t source_rows;     // that any of the output rows reads
  struct {                 // an output row reads source row i through tap row i - shift, in [begin, end)
    int64_t shift, begin, end;
    bool reads(int64_t i) const { return i - shift >= begin && i - shift < end; }
  } taps[2];
  const A* w;            // tap row 0 of the phase
  int64_t w_row, w_tap;  // elements from tap row to tap row (negative for dgrad), from tap to tap
  int64_t all_taps;
  int64_t c_begin, c_end;
  int64_t n, pixel, pixel_row;  // first column of the first output row; from output row to output row
  bool plain;                   // nothing but a store at the end
  bool far;                     // the source comes from beyond L2: fetch the next rows ahead
};

// Adds what one source row gives to output rows [First, Last) of the tile.
template <class T, int S, int Stride, int Columns, bool Border, int First, int Last, class V>
[[gnu::always_inline]] inline void add_source_row(const Row<T>& k, int64_t i, int64_t j, int64_t c, int count, V* sum) {
  const T* x = k.x + i * k.x_row + c;
  const auto* w = k.w + (c & -line) * k.all_taps + (c & (line - 1));
  const int64_t first = k.columns.source(j);
  const auto outside = [&](int64_t column) { return Border && (column < 0 || column >= k.columns.in); };
  if constexpr (S > 0) {  // taps side by side, their number and the stride known
    V taps[(Last - First) * S];
    unroll<Last - First>([&](auto q) __attribute__((always_inline)) {
      const auto* row = w + (i - k.taps[First + q].shift) * k.w_row;
      unroll<S>([&](auto s) __attribute__((always_inline)) { taps[q * S + s] = load(row + s * k.w_tap, count); });
    });
    unroll<(Columns - 1) * Stride + S>([&](auto at) __attribute__((always_inline)) {
      if (outside(first + at)) return;
      const V v = load(x + (first + at) * k.x_pixel, count);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        constexpr int ahead = decltype(at)::value - decltype(s)::value, column = ahead / Stride;
        if constexpr (ahead >= 0 && ahead % Stride == 0 && column < Columns)
          unroll<Last - First>([&](auto q) __attribute__((always_inline)) {
            V& target = sum[(First + q) * Columns + column];
            target = fma(v, taps[q * S + s], target);
          });
      });
    });
  } else {
    static_assert(First == 0 && Last == 1);
    const auto* row = w + (i - k.taps[0].shift) * k.w_row;
    for (int64_t s = 0; s < k.columns.taps; ++s) {
      const V tap = load(row + s * k.w_tap, count);
      unroll<Columns>([&](auto q) __attribute__((always_inline)) {
        const int64_t column = first + q * k.columns.in_step + s * k.columns.dilation;
        if (!outside(column)) sum[q] = fma(load(x + column * k.x_pixel, count), tap, sum[q]);
      });
    }
  }
}

template <class T, int S, int Stride, int Rows, int Columns, bool Border>
[[gnu::always_inline]] inline void tile(const Row<T>& k, int64_t j, int64_t c, int count) {
  using V = Vec<arithmetic<T>>;
  V sum[Rows * Columns];
  unroll<Rows * Columns>([&](auto q) __attribute__((always_inline)) { sum[q] = V::zero(); });
  if (k.far) {
    constexpr int fetched = Columns * std::max(Stride, 1);
    const T* next = k.x + k.source_rows * k.x_row + k.columns.source(j) * k.x_pixel + c;
    unroll<Rows * fetched>([&](auto q) __attribute__((always_inline)) {
      __builtin_prefetch(next + q / fetched * k.x_row + q % fetched * k.x_pixel, for_reading, into_l2);
    });
  }
  for (int64_t i = 0; i < k.source_rows; ++i) {
    if constexpr (Rows == 1) {
      add_source_row<T, S, Stride, Columns, Border, 0, 1>(k, i, j, c, count, sum);
    } else {
      const bool above = k.taps[0].reads(i), below = k.taps[1].reads(i);
      if (above && below)
        add_source_row<T, S, Stride, Columns, Border, 0, 2>(k, i, j, c, count, sum);
      else if (above)
        add_source_row<T, S, Stride, Columns, Border, 0, 1>(k, i, j, c, count, sum);
      else if (below)
        add_source_row<T, S, Stride, Columns, Border, 1, 2>(k, i, j, c, count, sum);
    }
  }
  const int64_t pixel = k.pixel + k.columns.first + j * k.columns.step;
  if (k.plain) {
    const int64_t step = k.columns.step * k.tail.out_channels, row = k.pixel_row * k.tail.out_channels;
    T* out = k.tail.out + k.tail.out_at(k.n, c, pixel);
    unroll<Rows * Columns>([&](auto q) __attribute__((always_inline)) {
      store(out + q / Columns * row + q % Columns * step, sum[q], count);
    });
  } else {
    unroll<Rows * Columns>([&](auto q) __attribute__((always_inline)) {
      k.tail.put_channels(k.n, c, pixel + q / Columns * k.pixel_row + q % Columns * k.columns.step, sum[q], count);
    });
  }
}

template <class T, int S, int Stride, int Rows, int Columns>
void channels_of_tile(const Row<T>& k, int64_t j) {
  constexpr int lanes = Vec<arithmetic<T>>::lanes;
  const Phase& columns = k.columns;
  const int64_t first = columns.source(j);
  const int64_t last = columns.source(j + Columns - 1) + (columns.taps - 1) * columns.dilation;
  int64_t c = k.c_begin;
  if (first < 0 || last >= columns.in)
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Rows, Columns, true>(k, j, c, lanes);
  else
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Rows, Columns, false>(k, j, c, lanes);
  if (c < k.c_end) tile<T, S, Stride, Rows, Columns, true>(k, j, c, static_cast<int>(k.c_end - c));
}

// The last tile of a row moves back to end with it and computes some columns again, to the same bits.
template <class T, int S, int Stride, int Rows>
void columns_of_rows(const Row<T>& k) {
  const int64_t count = k.columns.count;
  if (count < tile_columns) {
    for (int64_t j = 0; j < count; ++j) channels_of_tile<T, S, Stride, Rows, 1>(k, j);
    return;
  }
  for (int64_t j = 0; j < count; j += tile_columns)
    channels_of_tile<T, S, Stride, Rows, tile_columns>(k, std::min(j, count - tile_columns));
}

// Float64 and the portable build have one tile, for any taps: they are to be right, and quick to compile.
template <class T>
constexpr bool has_tiles_of_taps = std::is_same_v<arithmetic<T>, float> && this_isa != Isa::scalar;

// Whether two rows share source rows whose taps stand side by side, and registers hold both.
template <class T>
bool pairs(const Phase& rows, const Phase& columns) {
  return has_tiles_of_taps<T> && registers_hold_pair && rows.dilation == 1 && rows.step == 1 && rows.in_step == 1 &&
         columns.dilation == 1 && columns.step == 1 && columns.in_step == 1 && (columns.taps == 3 || columns.taps == 5);
}

template <class T>
void run_pair(const Row<T>& k) {
  if constexpr (has_tiles_of_taps<T> && registers_hold_pair) {
    if (k.columns.taps == 3) return columns_of_rows<T, 3, 1, 2>(k);
    columns_of_rows<T, 5, 1, 2>(k);
  }
}

template <class T>
void run_row(const Row<T>& k) {
  const Phase& columns = k.columns;
  if constexpr (has_tiles_of_taps<T>) {
    if (columns.dilation == 1 || columns.taps == 1) {
      // With stride 2, dgrad of 3 or 5 taps leaves 1, 2 or 3 taps side by side.
      if (columns.in_step == 1 && columns.taps == 1) return columns_of_rows<T, 1, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 2) return columns_of_rows<T, 2, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 3) return columns_of_rows<T, 3, 1, 1>(k);
      if (columns.in_step == 1 && columns.taps == 5) return columns_of_rows<T, 5, 1, 1>(k);
      if (columns.in_step == 2 && columns.taps == 3) return columns_of_rows<T, 3, 2, 1>(k);
      if (columns.in_step == 2 && columns.taps == 5) return columns_of_rows<T, 5, 2, 1>(k);
    }
  }
  columns_of_rows<T, 0, 0, 1>(k);
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
  const int64_t image = shape.source_rows * shape.source_width * shape.channels * static_cast<int64_t>(sizeof(T));
  const bool far = p.n * image > machine().l2;
  const int64_t tap_row = p.w.window * line;
  const bool paired = phases(p.h, p.pass) == 1 && phases(p.w, p.pass) == 1 &&
                      pairs<T>(phase_of(p.h, p.pass, 0), phase_of(p.w, p.pass, 0));
  for (int64_t row = begin; row < end;) {
    const Phase h = phase_of(p.h, p.pass, row % phases(p.h, p.pass));
    const int64_t j = row / h.step, rows = paired && row + 1 < end ? 2 : 1;
    const auto [tap_begin, tap_end] = h.clip(j);
    const auto [next_begin, next_end] = rows == 2 ? h.clip(j + 1) : std::pair<int64_t, int64_t>{0, 0};
    const int64_t shift = -tap_begin;  // the first source row is read through the first valid tap row
    const int64_t next_shift = shift + h.in_step;
    const int64_t last = std::max(tap_end + shift, rows == 2 ? next_end + next_shift : 0);
    const T* x = source + (h.source(j) + tap_begin * h.dilation) * shape.source_width * shape.channels;
    for (int64_t residue = 0; residue < phases(p.w, p.pass); ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      const Row<T> k{tail,
                     w,
                     x,
                     h.dilation * shape.source_width * shape.channels,
                     shape.channels,
                     w.taps ? last : 0,
                     {{shift, tap_begin, tap_end}, {next_shift, next_begin, next_end}},
                     packed + h.tap * tap_row + w.tap * line,
                     h.tap_step * tap_row,
                     w.tap_step * line,
                     p.taps(),
                     c_begin,
                     c_end,
                     n,
                     row * shape.width,
                     shape.width,
                     plain,
                     far};
      rows == 2 ? run_pair(k) : run_row(k);
    }
    row += rows;
  }
}

template <class T>
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Shape shape(p);
  const Tail<T> tail(p, args);
  // The source rows of a pair stay in L2 from one pair to the next. Fewer channels, so that they stay in L1, would read
  // memory in short pieces, which the prefetching of rows could not follow.
  const int64_t bytes_a_channel = (p.h.window + 1) * shape.source_width * static_cast<int64_t>(sizeof(T));
  const int64_t chunk = std::max(line, machine().l2 / 2 / bytes_a_channel / line * line);
  // Tasks are rows, or pieces of rows where there are few; neighbours in memory stay neighbours in a thread.
  const int64_t lines = (shape.channels + line - 1) / line, rows = p.n * shape.rows;
  const int64_t wanted = (tasks_a_thread * parallel.threads() + rows - 1) / rows;
  const int64_t piece = (lines + std::min(wanted, lines) - 1) / std::min(wanted, lines),
                pieces = (lines + piece - 1) / piece;
  parallel(rows * pieces, [&](int64_t begin, int64_t end, int thread) {
    const A* packed = static_cast<const A*>(args.packed);
    if (!p.packed) {
      A* own = static_cast<A*>(args.workspace) + thread * shape.packed(p);
      pack_filter<T>(p, args, own);
      packed = own;
    }
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
  return p.packed ? 0 : threads * Shape(p).packed(p) * arithmetic_bytes(p.dtype);
}

void gather_nhwc(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
