// Depthwise fprop and dgrad, channels last: a register holds consecutive channels of one pixel.
//
// A tile is one channel register of 7 output columns (every ImageNet width is a multiple of 7) in one row, or with 32
// registers in two rows, so that a source row is read twice instead of three times. Sums and the taps of one source row
// stay in registers, and each source column is loaded once for all taps that use it: two rows of 3x3 are 126 FMAs on 36
// loads of pixels and 18 of taps. What a tile reads (columns, rows, tap rows) is laid out before its channels run, so
// that between them only pointers move; a tile at the border skips the columns outside, rows outside are clipped
// before. dgrad is the same gather with the filter walked backwards, for strides above 1 once per residue of the
// columns with only the taps that hit. Channels run inside columns, so that memory is read and written in order; where
// the map is larger than L2 the rows of the next tile row are prefetched. Threads share out rows.
//
// Zen 4, 2026-11-23, float, from caches, one thread, AVX-512, us of the kernel alone, before this layout (addresses
// worked out at every load, sums and activation through memory) and with it: 32@112 239 -> 106 (67 GFLOP/s), 144@56 246
// -> 122, 96@112 stride 2 265 -> 120, 384@14 49 -> 17, 960@7 23 -> 8, 5x5 672@14 123 -> 47 (99 GFLOP/s). Whole calls,
// result allocated, torch channels_last time / own time with 1 and 2 threads, AVX-512 and then AVX2: batch 1:
// 144@56 1.29 1.62, 0.93 1.20 · 32@112 1.23 1.52, 0.86 1.11 · 96@112 stride 2 1.18 1.35, 0.87 1.07 ·
// 384@14 2.43 2.75, 1.73 1.98 · 5x5 672@14 1.52 2.16, 1.28 1.56; batch 8: 144@56 1.40 1.31, 1.33 1.26 · 32@112 1.20
// 0.95, 1.05 0.88 · 96@112 stride 2 1.11 1.09, 0.93 0.97 · 384@14 1.17 1.35, 0.88 1.00 · 5x5
// 672@14 1.50 1.56, 1.05 1.06. It loses where two threads share maps that are larger than L2 (32@112 at batch 8: both
// wait for memory), and as AVX2, whose 16 registers hold one row, with one thread.
// Of stride 2 only one of the two rows that a tile row brings was fetched: 96@112 at batch 8, two Zen 5 cores, ms
// before, now and torch's channels_last, in turns (2026-11-23): 1.50 to 1.54, 1.08 to 1.34, 0.98 to 1.22; 144@56 0.56
// to 0.57, 0.40 to 0.51, 0.30 to 0.38.
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

// One or two output rows, one residue of their columns, one range of channels. Source rows come in three runs: those
// that only the first output row reads, those that both read, those that only the second does.
template <class T>
struct Row {
  using A = arithmetic<T>;
  struct Run {
    int64_t rows;
    const T* x;     // column 0 of its first source row
    const A* w[2];  // the tap row through which each output row reads that
  };
  const Tail<T>& tail;
  const Phase& columns;
  Run runs[3];
  int64_t x_row, x_pixel;  // elements from source row to source row, from column to column
  int64_t w_row, w_tap;    // elements from tap row to tap row (negative for dgrad), from tap to tap
  int64_t all_taps;
  int64_t c_begin, c_end;
  int64_t n, pixel, pixel_row;  // first column of the first output row; from output row to output row
  const T* next;                // the source rows after these where they come from beyond L2: to be fetched ahead
};

// The source columns of a tile: how far each lies from the first, in elements, and whether it is one of the map's.
template <int count>
struct Reads {
  int64_t first, step[count];
  uint32_t inside = 0;

  template <class T>
  Reads(const Row<T>& k, int64_t j) : first(k.columns.source(j)) {
    for (int i = 0; i < count; ++i) {
      step[i] = i * k.x_pixel;
      inside |= static_cast<uint32_t>(first + i >= 0 && first + i < k.columns.in) << i;
    }
  }
};

// Taps side by side, their number and the stride known.
template <int S, int Stride, int Columns>
constexpr int reads = (Columns - 1) * Stride + S;

// Adds what one source row gives to output rows [First, Last) of the tile.
template <int S, int Stride, int Columns, bool Border, int First, int Last, class T, class V, class A>
[[gnu::always_inline]] inline void add_source_row(const T* x, const Reads<reads<S, Stride, Columns>>& at,
                                                  const A* const* w, int64_t w_tap, int count, V* sum) {
  V taps[(Last - First) * S];
  unroll<Last - First>([&](auto q) __attribute__((always_inline)) {
    unroll<S>([&](auto s) __attribute__((always_inline)) { taps[q * S + s] = load(w[First + q] + s * w_tap, count); });
  });
  unroll<reads<S, Stride, Columns>>([&](auto i) __attribute__((always_inline)) {
    if (Border && !(at.inside >> i & 1)) return;
    const V v = load(x + at.step[i], count);
    unroll<S>([&](auto s) __attribute__((always_inline)) {
      constexpr int ahead = decltype(i)::value - decltype(s)::value, column = ahead / Stride;
      if constexpr (ahead >= 0 && ahead % Stride == 0 && column < Columns)
        unroll<Last - First>([&](auto q) __attribute__((always_inline)) {
          fma_into(sum[(First + q) * Columns + column], v, taps[q * S + s]);
        });
    });
  });
}

template <class T, int S, int Stride, int Rows, int Columns, bool Border>
[[gnu::always_inline]] inline void tile(const Row<T>& k, const Reads<reads<S, Stride, Columns>>& at, int64_t j,
                                        int64_t c, int count) {
  using A = arithmetic<T>;
  using V = Vec<A>;
  V sum[Rows * Columns];
  unroll<Rows * Columns>([&](auto q) __attribute__((always_inline)) { sum[q] = V::zero(); });
  const int64_t x_at = at.first * k.x_pixel + c, w_at = (c & -line) * k.all_taps + (c & (line - 1));
  if (k.next) {
    constexpr int fetched = Columns * Stride;
    const T* next = k.next + x_at;
    unroll<Rows * Stride * fetched>([&](auto q) __attribute__((always_inline)) {
      __builtin_prefetch(next + q / fetched * k.x_row + at.step[q % fetched], for_reading, into_l2);
    });
  }
  unroll<2 * Rows - 1>([&](auto which) __attribute__((always_inline)) {
    constexpr int first = which / 2, last = Rows == 1 ? 1 : (which + 3) / 2;
    const typename Row<T>::Run& run = k.runs[which];
    const T* x = run.x + x_at;
    const A* w[2] = {run.w[0] + w_at, run.w[1] + w_at};
    for (int64_t i = run.rows; i > 0; --i) {
      add_source_row<S, Stride, Columns, Border, first, last>(x, at, w, k.w_tap, count, sum);
      x += k.x_row, w[0] += k.w_row, w[1] += k.w_row;
    }
  });
  const int64_t pixel = k.pixel + k.columns.first + j * k.columns.step;
  k.tail.template put_block<Rows, Columns>(k.n, c, pixel, k.pixel_row, k.columns.step, sum, count);
}

template <class T, int S, int Stride, int Rows, int Columns>
void channels_of_tile(const Row<T>& k, int64_t j) {
  constexpr int lanes = Vec<arithmetic<T>>::lanes;
  const Reads<reads<S, Stride, Columns>> at(k, j);
  int64_t c = k.c_begin;
  if (at.inside != (uint32_t{1} << reads<S, Stride, Columns>)-1)
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Rows, Columns, true>(k, at, j, c, lanes);
  else
    for (; c + lanes <= k.c_end; c += lanes) tile<T, S, Stride, Rows, Columns, false>(k, at, j, c, lanes);
  if (c < k.c_end) tile<T, S, Stride, Rows, Columns, true>(k, at, j, c, static_cast<int>(k.c_end - c));
}

// Any number of taps, any distance between them: one row.
template <class T, int Columns>
void channels_of_tile_of_any_taps(const Row<T>& k, int64_t j) {
  using V = Vec<arithmetic<T>>;
  const int64_t first = k.columns.source(j), pixel = k.pixel + k.columns.first + j * k.columns.step;
  for (int64_t c = k.c_begin; c < k.c_end; c += V::lanes) {
    const int count = static_cast<int>(std::min<int64_t>(V::lanes, k.c_end - c));
    V sum[Columns];
    unroll<Columns>([&](auto q) { sum[q] = V::zero(); });
    for (int64_t i = 0; i < k.runs[0].rows; ++i) {
      const T* x = k.runs[0].x + i * k.x_row + c;
      const auto* w = k.runs[0].w[0] + (c & -line) * k.all_taps + (c & (line - 1)) + i * k.w_row;
      for (int64_t s = 0; s < k.columns.taps; ++s) {
        const V tap = load(w + s * k.w_tap, count);
        unroll<Columns>([&](auto q) __attribute__((always_inline)) {
          const int64_t column = first + q * k.columns.in_step + s * k.columns.dilation;
          if (column >= 0 && column < k.columns.in) sum[q] = fma(load(x + column * k.x_pixel, count), tap, sum[q]);
        });
      }
    }
    k.tail.template put_block<1, Columns>(k.n, c, pixel, k.pixel_row, k.columns.step, sum, count);
  }
}

// The last tile of a row moves back to end with it and computes some columns again, to the same bits.
template <class T, int S, int Stride, int Rows>
void columns_of_rows(const Row<T>& k) {
  const int64_t count = k.columns.count;
  const auto tiles = [&](auto width) {
    for (int64_t j = 0; j < count; j += width) {
      const int64_t at = std::min<int64_t>(j, count - width);
      if constexpr (S > 0)
        channels_of_tile<T, S, Stride, Rows, width>(k, at);
      else
        channels_of_tile_of_any_taps<T, width>(k, at);
    }
  };
  if (count < tile_columns)
    tiles(std::integral_constant<int, 1>{});
  else
    tiles(std::integral_constant<int, tile_columns>{});
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
    // Source row i is row h.source(j) + i·dilation; tap row t of the second output row reads source row t + 1.
    const int64_t above_end = rows == 2 ? std::min(tap_end, std::max(tap_begin, next_begin + 1)) : tap_end;
    const int64_t below_begin = std::max(tap_end, next_begin + 1), below_end = rows == 2 ? next_end + 1 : below_begin;
    const int64_t x_row = h.dilation * shape.source_width * shape.channels;
    for (int64_t residue = 0; residue < phases(p.w, p.pass); ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      const T* x = source + h.source(j) * shape.source_width * shape.channels;
      const auto* taps = packed + h.tap * tap_row + w.tap * line;
      const int64_t w_row = h.tap_step * tap_row;
      const auto run = [&](int64_t first, int64_t last) {
        return typename Row<T>::Run{
            w.taps ? last - first : 0, x + first * x_row, {taps + first * w_row, taps + (first - 1) * w_row}};
      };
      const Row<T> k{tail,
                     w,
                     {run(tap_begin, above_end), run(above_end, tap_end), run(below_begin, below_end)},
                     x_row,
                     shape.channels,
                     w_row,
                     w.tap_step * line,
                     p.taps(),
                     c_begin,
                     c_end,
                     n,
                     row * shape.width,
                     shape.width,
                     far ? x + (rows == 2 ? next_end + 1 : tap_end) * x_row : nullptr};
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
