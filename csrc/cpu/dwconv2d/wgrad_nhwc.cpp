// Depthwise wgrad, channels last: a register holds consecutive channels, and every tap of the filter one such sum.
//
// A tile is 7 output columns of one channel register: their dy stay in registers while each filter row's S sums are
// loaded, take one product a tap and column, and go back to L1. A task is one cache line of channels over a chunk of
// output rows; chunks depend on the problem alone and are summed in order, so that the result does not depend on the
// number of threads. x and dy are read once from memory, x R times from L1.
//
// Zen 4, 2 cores, 2026-11-22, float, batch 1, best of turns on a loaded machine, microseconds AVX-512 / AVX2 / torch's
// better layout: 384@14 13/18/73 · 576@14 20/25/81 · 960@7 13/16/71 · 5x5 240@28 56/67/1056 · 1152@7 30/29/710. It
// loses at batch 8: 32@112 762/641/582 · 144@56 1570/1197/960 · 1024@7 as AVX2, 190 against 140.
#include "depthwise.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

constexpr int tile_columns = 7, small_tile_columns = 3;
constexpr int64_t wanted_tasks = 64;        // enough to share out evenly among any number of cores we expect
constexpr int64_t pixels_of_a_chunk = 512;  // at least: below, summing the chunks would weigh as much as they do

// One output row and one register of channels.
template <class T>
struct Row {
  const Phase& columns;
  const T* x;   // column 0 of the source row of the first valid tap row
  const T* dy;  // column 0 of the output row
  int64_t x_row, pixel;
  arithmetic<T>* sum;  // of the first valid tap row: [R][S][line]
  int64_t tap_rows;
  int count;  // channels
};

template <class T, int S, int Stride, int Columns, bool Border>
[[gnu::always_inline]] inline void tile(const Row<T>& k, int64_t j, int count) {
  using V = Vec<arithmetic<T>>;
  const int64_t first = k.columns.source(j);
  const auto outside = [&](int64_t column) { return Border && (column < 0 || column >= k.columns.in); };
  V dy[Columns];
  unroll<Columns>([&](auto q) __attribute__((always_inline)) { dy[q] = load(k.dy + (j + q) * k.pixel, count); });
  for (int64_t r = 0; r < k.tap_rows; ++r) {
    const T* x = k.x + r * k.x_row;
    auto* sums = k.sum + r * k.columns.taps * line;
    if constexpr (S > 0) {  // taps side by side, their number and the stride known
      V sum[S];
      unroll<S>([&](auto s) __attribute__((always_inline)) { sum[s] = load(sums + s * line); });
      unroll<(Columns - 1) * Stride + S>([&](auto i) __attribute__((always_inline)) {
        if (outside(first + i)) return;
        const V v = load(x + (first + i) * k.pixel, count);
        unroll<S>([&](auto s) __attribute__((always_inline)) {
          constexpr int ahead = decltype(i)::value - decltype(s)::value, q = ahead / Stride;
          if constexpr (ahead >= 0 && ahead % Stride == 0 && q < Columns) sum[s] = fma(v, dy[q], sum[s]);
        });
      });
      unroll<S>([&](auto s) __attribute__((always_inline)) { store(sums + s * line, sum[s]); });
    } else {
      for (int64_t s = 0; s < k.columns.taps; ++s) {
        V sum = load(sums + s * line);
        unroll<Columns>([&](auto q) __attribute__((always_inline)) {
          const int64_t column = first + q * k.columns.in_step + s * k.columns.dilation;
          if (!outside(column)) sum = fma(load(x + column * k.pixel, count), dy[q], sum);
        });
        store(sums + s * line, sum);
      }
    }
  }
}

template <class T, int S, int Stride, int Columns>
void checked_tile(const Row<T>& k, int64_t j) {
  constexpr int lanes = Vec<arithmetic<T>>::lanes;
  const Phase& columns = k.columns;
  const int64_t last = columns.source(j + Columns - 1) + (columns.taps - 1) * columns.dilation;
  if (k.count < lanes) return tile<T, S, Stride, Columns, true>(k, j, k.count);
  if (columns.source(j) < 0 || last >= columns.in) return tile<T, S, Stride, Columns, true>(k, j, lanes);
  tile<T, S, Stride, Columns, false>(k, j, lanes);
}

template <class T, int S, int Stride>
void columns_of_row(const Row<T>& k) {
  const int64_t count = k.columns.count;
  int64_t j = 0;
  for (; j + tile_columns <= count; j += tile_columns) checked_tile<T, S, Stride, tile_columns>(k, j);
  for (; j + small_tile_columns <= count; j += small_tile_columns) checked_tile<T, S, Stride, small_tile_columns>(k, j);
  for (; j < count; ++j) checked_tile<T, S, Stride, 1>(k, j);
}

template <class T>
void run_row(const Row<T>& k) {
  const Phase& columns = k.columns;
  if (columns.dilation == 1) {
    if (columns.in_step == 1 && columns.taps == 3) return columns_of_row<T, 3, 1>(k);
    if (columns.in_step == 1 && columns.taps == 5) return columns_of_row<T, 5, 1>(k);
    if (columns.in_step == 2 && columns.taps == 3) return columns_of_row<T, 3, 2>(k);
    if (columns.in_step == 2 && columns.taps == 5) return columns_of_row<T, 5, 2>(k);
  }
  columns_of_row<T, 0, 0>(k);
}

struct Split {
  int64_t groups, chunks, rows_a_chunk, sums;  // sums: elements of one task's partial
  explicit Split(const Problem& p) {
    const int64_t rows = p.n * p.h.out;
    groups = (p.c + line - 1) / line;
    chunks = std::min((wanted_tasks + groups - 1) / groups, rows * p.w.out / pixels_of_a_chunk);
    rows_a_chunk = (rows + std::max<int64_t>(chunks, 1) - 1) / std::max<int64_t>(chunks, 1);
    chunks = (rows + rows_a_chunk - 1) / rows_a_chunk;
    sums = p.taps() * line;
  }
};

// The products of output rows [begin, end) of the whole batch, for the line of channels that starts at c0.
template <class T>
void sum_rows(const Problem& p, const Args& args, int64_t begin, int64_t end, int64_t c0, arithmetic<T>* sums) {
  constexpr int64_t lanes = Vec<arithmetic<T>>::lanes;
  const Phase h = phase_of(p.h, Pass::fprop, 0), w = phase_of(p.w, Pass::fprop, 0);
  const int64_t c_end = std::min(c0 + line, p.c);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.h.out, j = i % p.h.out;
    const auto [tap_begin, tap_end] = h.clip(j);
    if (tap_begin >= tap_end) continue;
    const T* x = static_cast<const T*>(args.x) + (n * p.h.in + h.source(j) + tap_begin * h.dilation) * p.w.in * p.c;
    const T* dy = static_cast<const T*>(args.y) + i * p.w.out * p.c;
    for (int64_t c = c0; c < c_end; c += lanes)
      run_row<T>({w, x + c, dy + c, h.dilation * p.w.in * p.c, p.c, sums + tap_begin * p.w.window * line + (c - c0),
                  tap_end - tap_begin, static_cast<int>(std::min(lanes, c_end - c))});
  }
}

template <class T>
void wgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Split split(p);
  A* partials = static_cast<A*>(args.workspace);
  const auto finish = [&](int64_t group) {
    const int64_t c0 = group * line, count = std::min(line, p.c - c0);
    for (int64_t t = 0; t < p.taps(); ++t) {
      A total[line] = {};
      for (int64_t chunk = 0; chunk < split.chunks; ++chunk) {
        const A* partial = partials + (chunk * split.groups + group) * split.sums + t * line;
        for (int64_t c = 0; c < line; ++c) total[c] += partial[c];
      }
      T* dw = static_cast<T*>(args.out) + t / p.w.window * args.w_stride[2] + t % p.w.window * args.w_stride[3];
      for (int64_t c = 0; c < count; ++c) dw[(c0 + c) * args.w_stride[0]] = narrow<T>(total[c]);
    }
  };
  parallel(split.groups * split.chunks, [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / split.groups, group = task % split.groups;
      A* sums = partials + task * split.sums;
      std::fill_n(sums, split.sums, A(0));
      const int64_t first = chunk * split.rows_a_chunk;
      sum_rows<T>(p, args, first, std::min(first + split.rows_a_chunk, p.n * p.h.out), group * line, sums);
      if (split.chunks == 1) finish(group);
    }
  });
  if (split.chunks > 1)
    parallel(split.groups, [&](int64_t begin, int64_t end, int) {
      for (int64_t group = begin; group < end; ++group) finish(group);
    });
}

}  // namespace

int64_t wgrad_nhwc_workspace(const Problem& p, int) {
  const Split split(p);
  return split.groups * split.chunks * split.sums * arithmetic_bytes(p.dtype);
}

void wgrad_nhwc(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { wgrad<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
