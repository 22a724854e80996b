// Depthwise fprop and dgrad, NCHW: a register holds consecutive columns of one row. Any geometry; 3x3 and 5x5 windows
// side by side at stride 1, and 2 in fprop, go to in_place_nchw.cpp, which is two to four times as fast.
//
// A thread takes one plane at a time, copies it padded and widened into its workspace (see plane.h), and slides a strip
// of 1, 2 or 4 registers over every output row with the taps broadcast. dgrad with a stride computes the residues of
// the columns apart and interleaves them a row at a time. The copy costs one load and one store an input element; rows
// shorter than a register waste the rest of it (9 of 16 lanes at width 7 with AVX-512).
//
// Zen 4, 2 cores, 2026-11-22, float, batch 1, best of turns on a loaded machine, microseconds AVX-512 / AVX2 / torch's
// NCHW, when it still had these maps: 192@28 82/98/152 · 384@14 62/79/106 · 960@7 79/88/99. At batch 8 it lost to
// torch.
#include "in_place.h"
#include "plane.h"

namespace fastconv::FASTCONV_ISA::depthwise {

namespace {

constexpr int64_t wide_strip = 4, middle_strip = 2;  // registers

template <class A>
struct Taps {
  const A* plane;  // source row of the first valid tap row
  int64_t row;     // elements from tap row to tap row
  const A* w;
  int64_t w_row, w_step;
  const int64_t* at;  // of every tap of a row
  int64_t rows, count;
};

// Registers j, j + lanes ... of one output row; S taps a row, 0: a number known at run time.
template <int S, int Strip, class A>
[[gnu::always_inline]] inline void strip(const Taps<A>& k, int64_t j, Vec<A> (&sum)[Strip]) {
  using V = Vec<A>;
  unroll<Strip>([&](auto i) __attribute__((always_inline)) { sum[i] = V::zero(); });
  const A* x = k.plane + j;
  const A* w = k.w;
  for (int64_t r = 0; r < k.rows; ++r, x += k.row, w += k.w_row) {
    const auto tap = [&](int64_t s) __attribute__((always_inline)) {
      const V weight = V::broadcast(w[s * k.w_step]);
      const A* at = x + k.at[s];
      unroll<Strip>([&](auto i)
                        __attribute__((always_inline)) { sum[i] = fma(V::load(at + i * V::lanes), weight, sum[i]); });
    };
    if constexpr (S > 0)
      unroll<S>([&](auto s) __attribute__((always_inline)) { tap(s); });
    else
      for (int64_t s = 0; s < k.count; ++s) tap(s);
  }
}

// put(j, value, columns) for every register of `count` columns.
template <int S, class A, class Put>
void strips(const Taps<A>& k, int64_t count, const Put& put) {
  constexpr int64_t lanes = Vec<A>::lanes;
  int64_t j = 0;
  const auto some = [&](auto registers) {
    constexpr int size = decltype(registers)::value;
    for (; count - j > (size - 1) * lanes; j += size * lanes) {
      Vec<A> sum[size];
      strip<S, size>(k, j, sum);
      unroll<size>([&](auto i) {
        const int64_t at = j + i * lanes;
        put(at, sum[i], static_cast<int>(std::min(lanes, count - at)));
      });
    }
  };
  some(std::integral_constant<int, wide_strip>{});
  some(std::integral_constant<int, middle_strip>{});
  some(std::integral_constant<int, 1>{});
}

template <class A, class Put>
void run_strips(const Taps<A>& k, int64_t count, const Put& put) {
  if (k.count == 3) return strips<3>(k, count, put);
  if (k.count == 5) return strips<5>(k, count, put);
  strips<0>(k, count, put);
}

// What every plane has in common, worked out once a thread: where an output row starts, and the taps of a residue.
struct RowPlan {
  int64_t x, x_row;  // of the first valid tap row, from tap row to tap row
  int64_t w, w_row;
  int64_t rows;
};
struct ColumnPlan {
  int64_t w, w_step, taps, count;
};

struct Buffers {  // of one thread: offsets in elements of the arithmetic type, of `bytes` bytes
  int64_t bytes, out_rows, out_width, residues, residue_width;
  PlaneShape plane;
  int64_t taps, row, residue_rows, row_plans, column_plans, offsets, elements;
  Buffers(const Problem& p, int64_t lanes, int64_t bytes)
      : bytes(bytes),
        out_rows(p.pass == Pass::dgrad ? p.h.in : p.h.out),
        out_width(p.pass == Pass::dgrad ? p.w.in : p.w.out),
        residues(phases(p.w, p.pass)),
        residue_width(aligned((out_width + residues - 1) / residues, lanes)),
        plane(p, p.pass, lanes) {
    int64_t end = 0;
    const auto take = [&](int64_t count) { return std::exchange(end, aligned(end + count, line)); };
    take(plane.elements());
    taps = take(p.taps()), row = take(aligned(out_width, lanes)), residue_rows = take(residues * residue_width);
    row_plans = take(out_rows * table(sizeof(RowPlan)));
    column_plans = take(residues * table(sizeof(ColumnPlan)));
    offsets = take(residues * p.w.window * table(sizeof(int64_t)));
    elements = end;
  }

 private:
  int64_t table(size_t entry) const { return static_cast<int64_t>(entry) / bytes; }
};

template <class A>
struct Thread {  // the buffers of one thread, and its tables filled
  A *plane, *taps, *row, *residue_rows;
  RowPlan* rows;
  ColumnPlan* columns;
  int64_t* offsets;

  Thread(const Problem& p, const Buffers& size, A* base)
      : plane(base),
        taps(base + size.taps),
        row(base + size.row),
        residue_rows(base + size.residue_rows),
        rows(reinterpret_cast<RowPlan*>(base + size.row_plans)),
        columns(reinterpret_cast<ColumnPlan*>(base + size.column_plans)),
        offsets(reinterpret_cast<int64_t*>(base + size.offsets)) {
    std::fill_n(plane, size.plane.elements(), A(0));
    for (int64_t i = 0; i < size.out_rows; ++i) {
      const Phase h = phase_of(p.h, p.pass, i % phases(p.h, p.pass));
      const auto [begin, end] = h.clip(i / h.step);
      const int64_t first = begin < end ? h.source(i / h.step) + begin * h.dilation : 0;
      rows[i] = {first * size.plane.pitch, h.dilation * size.plane.pitch, (h.tap + begin * h.tap_step) * p.w.window,
                 h.tap_step * p.w.window, end - begin};
    }
    for (int64_t residue = 0; residue < size.residues; ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      columns[residue] = {w.tap, w.tap_step, w.taps, w.count};
      for (int64_t tap = 0; tap < w.taps; ++tap) offsets[residue * p.w.window + tap] = size.plane.at(w, tap);
    }
  }
};

template <class T>
void run_plane(const Problem& p, const Tail<T>& tail, bool plain, const Buffers& size,
               const Thread<arithmetic<T>>& thread, int64_t n, int64_t c) {
  using A = arithmetic<T>;
  constexpr int64_t lanes = Vec<A>::lanes;
  T* out = tail.out + tail.out_at(n, c, 0);
  for (int64_t i = 0; i < size.out_rows; ++i, out += size.out_width) {
    const auto put = [&](int64_t at, Vec<A> value, int count) __attribute__((always_inline)) {
      if (plain)
        store(out + at, value, count);
      else
        tail.put_pixels(n, c, i * size.out_width + at, value, count);
    };
    const RowPlan& row = thread.rows[i];
    for (int64_t residue = 0; residue < size.residues; ++residue) {
      const ColumnPlan& column = thread.columns[residue];
      const Taps<A> taps{thread.plane + row.x,
                         row.x_row,
                         thread.taps + row.w + column.w,
                         row.w_row,
                         column.w_step,
                         thread.offsets + residue * p.w.window,
                         row.rows,
                         column.taps};
      if (size.residues == 1)
        run_strips(taps, column.count, put);
      else
        run_strips(taps, column.count, [&](int64_t at, Vec<A> value, int) {
          store(thread.residue_rows + residue * size.residue_width + at, value);
        });
    }
    if (size.residues == 1) continue;
    if (size.residues == 2) {  // apart, so that the compiler interleaves with vectors
      const A *even = thread.residue_rows, *odd = even + size.residue_width;
      for (int64_t j = 0; j < size.out_width / 2; ++j) thread.row[2 * j] = even[j], thread.row[2 * j + 1] = odd[j];
      if (size.out_width % 2) thread.row[size.out_width - 1] = even[size.out_width / 2];
    } else {
      for (int64_t j = 0; j < size.out_width; ++j)
        thread.row[j] = thread.residue_rows[j % size.residues * size.residue_width + j / size.residues];
    }
    for (int64_t j = 0; j < size.out_width; j += lanes) {
      const int count = static_cast<int>(std::min(lanes, size.out_width - j));
      put(j, load(thread.row + j, count), count);
    }
  }
}

template <class T>
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Buffers size(p, Vec<A>::lanes, sizeof(A));
  const Tail<T> tail(p, args);
  const bool plain = !tail.bias && !tail.residual && tail.activation == Activation::none;
  const T* source = static_cast<const T*>(p.pass == Pass::dgrad ? args.y : args.x);
  const FilterTaps<T> filter{p, args};
  const int64_t source_plane = size.plane.rows * size.plane.width;
  parallel(p.n * p.c, [&](int64_t begin, int64_t end, int number) {
    const Thread<A> thread(p, size, static_cast<A*>(args.workspace) + number * size.elements);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % p.c;
      size.plane.fill(source + i * source_plane, thread.plane);
      for (int64_t r = 0; r < p.h.window; ++r)
        for (int64_t s = 0; s < p.w.window; ++s) thread.taps[r * p.w.window + s] = filter.at(c, r, s);
      run_plane(p, tail, plain, size, thread, i / p.c, c);
    }
  });
}

}  // namespace

int64_t gather_nchw_workspace(const Problem& p, int threads) {
  if (in_place(p)) return gather_in_place_workspace(p, threads);
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    bytes = threads * Buffers(p, Vec<A>::lanes, sizeof(A)).elements * static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

void gather_nchw(const Problem& p, const Args& args, const Parallel& parallel) {
  if (in_place(p)) return gather_in_place(p, args, parallel);
  with_dtype(p.dtype, [&](auto* t) { gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
