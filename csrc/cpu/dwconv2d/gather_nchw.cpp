// Depthwise fprop and dgrad, NCHW: a register holds consecutive columns of one row.
//
// A thread takes one plane at a time, copies it padded and widened into its workspace (see plane.h), and slides a strip
// of 1, 2 or 4 registers over every output row with the taps broadcast. dgrad with a stride computes the residues of
// the columns apart and interleaves them a row at a time. The copy costs one load and one store an input element; rows
// shorter than a register waste the rest of it (7 of 16 lanes with AVX-512), and there channels last wins.
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

struct Buffers {  // of one thread, in elements of the arithmetic type
  int64_t lanes, out_rows, out_width, residues, residue_width;
  PlaneShape plane;
  Buffers(const Problem& p, int64_t lanes)
      : lanes(lanes),
        out_rows(p.pass == Pass::dgrad ? p.h.in : p.h.out),
        out_width(p.pass == Pass::dgrad ? p.w.in : p.w.out),
        residues(phases(p.w, p.pass)),
        residue_width(aligned((out_width + residues - 1) / residues, lanes)),
        plane(p, p.pass, lanes) {}
  int64_t taps() const { return plane.elements(); }
  int64_t row(const Problem& p) const { return taps() + aligned(p.taps(), line); }
  int64_t residue_rows(const Problem& p) const { return row(p) + aligned(out_width, lanes); }
  int64_t offsets(const Problem& p) const { return aligned(residue_rows(p) + residues * residue_width, line); }
  // Offsets are 64-bit: two elements of float each.
  int64_t elements(const Problem& p) const { return aligned(offsets(p) + 2 * residues * p.w.window, line); }
};

template <class T>
void run_plane(const Problem& p, const Tail<T>& tail, const Buffers& size, arithmetic<T>* buffer,
               const int64_t* offsets, int64_t n, int64_t c) {
  using A = arithmetic<T>;
  constexpr int64_t lanes = Vec<A>::lanes;
  A *row_buffer = buffer + size.row(p), *residue_rows = buffer + size.residue_rows(p);
  for (int64_t row = 0; row < size.out_rows; ++row) {
    const Phase h = phase_of(p.h, p.pass, row % phases(p.h, p.pass));
    const int64_t j = row / h.step;
    const auto [tap_begin, tap_end] = h.clip(j);
    const int64_t first = tap_begin < tap_end ? h.source(j) + tap_begin * h.dilation : 0;
    for (int64_t residue = 0; residue < size.residues; ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      const Taps<A> taps{buffer + first * size.plane.pitch,
                         h.dilation * size.plane.pitch,
                         buffer + size.taps() + (h.tap + tap_begin * h.tap_step) * p.w.window + w.tap,
                         h.tap_step * p.w.window,
                         w.tap_step,
                         offsets + residue * p.w.window,
                         w.taps ? tap_end - tap_begin : 0,
                         w.taps};
      if (size.residues == 1)
        run_strips(taps, w.count, [&](int64_t at, Vec<A> value, int count) {
          tail.put_pixels(n, c, row * size.out_width + at, value, count);
        });
      else
        run_strips(taps, w.count, [&](int64_t at, Vec<A> value, int) {
          store(residue_rows + residue * size.residue_width + at, value);
        });
    }
    if (size.residues == 1) continue;
    if (size.residues == 2) {  // apart, so that the compiler interleaves with vectors
      const A *even = residue_rows, *odd = residue_rows + size.residue_width;
      for (int64_t i = 0; i < size.out_width / 2; ++i) row_buffer[2 * i] = even[i], row_buffer[2 * i + 1] = odd[i];
      if (size.out_width % 2) row_buffer[size.out_width - 1] = even[size.out_width / 2];
    } else {
      for (int64_t i = 0; i < size.out_width; ++i)
        row_buffer[i] = residue_rows[i % size.residues * size.residue_width + i / size.residues];
    }
    for (int64_t i = 0; i < size.out_width; i += lanes) {
      const int count = static_cast<int>(std::min(lanes, size.out_width - i));
      tail.put_pixels(n, c, row * size.out_width + i, load(row_buffer + i, count), count);
    }
  }
}

template <class T>
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Buffers size(p, Vec<A>::lanes);
  const Tail<T> tail(p, args);
  const T* source = static_cast<const T*>(p.pass == Pass::dgrad ? args.y : args.x);
  const T* filter = static_cast<const T*>(args.w);
  const int64_t source_plane = size.plane.rows * size.plane.width;
  parallel(p.n * p.c, [&](int64_t begin, int64_t end, int thread) {
    A* buffer = static_cast<A*>(args.workspace) + thread * size.elements(p);
    std::fill_n(buffer, size.plane.elements(), A(0));
    int64_t* offsets = reinterpret_cast<int64_t*>(buffer + size.offsets(p));
    for (int64_t residue = 0; residue < size.residues; ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      for (int64_t tap = 0; tap < w.taps; ++tap) offsets[residue * p.w.window + tap] = size.plane.at(w, tap);
    }
    for (int64_t i = begin; i < end; ++i) {
      size.plane.fill(source + i * source_plane, buffer);
      const T* from = filter + i % p.c * args.w_stride[0];
      for (int64_t t = 0; t < p.taps(); ++t)
        buffer[size.taps() + t] = widen(from[t / p.w.window * args.w_stride[2] + t % p.w.window * args.w_stride[3]]);
      run_plane(p, tail, size, buffer, offsets, i / p.c, i % p.c);
    }
  });
}

}  // namespace

int64_t gather_nchw_workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    bytes = threads * Buffers(p, Vec<A>::lanes).elements(p) * static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

void gather_nchw(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel); });
}

}  // namespace fastconv::FASTCONV_ISA::depthwise
