// The filter gradient by Winograd's transforms, dw = G^T [sum over tiles of (A dy A^T) * (B^T x B)] G, of the same
// tiles and matrices as fprop: 4x4 outputs (or 2x2) and the 6x6 (4x4) inputs they read, for 5x5 filters 2x2 and 6x6;
// channels_last and NCHW. Dilated, every d-th row and column has tiles of its own.
//
// At each of the 36 (16) frequencies the sum is a matrix product, filters x tiles x channels: 36/16 multiplications an
// output, filter and channel instead of 9. Tiles come in chunks of 32 to 128: x and dy of a chunk are transformed, then
// the product is made piece by piece, a few register tiles of 14 filters by 32 channels (6 by 16 with AVX2) at every
// frequency, whose sums stay in L2 until they are transformed back and added to the gradient.
//
//   by groups   up to 16 groups of chunks, each on one thread from its tiles to its partial gradient; the partial
//               gradients are added at the end. What a thread reads it has written itself: two threads that shared
//               every chunk took as long to transform 64@56 as one.
//   by pieces   few groups: all threads transform a chunk and then share its pieces.
//
// Bytes: x and dy once, their transforms (2.25 times x and dy) written once, and read once a row of pieces or a column
// of 32 channels; the gradient once a chunk. Chunks and groups depend on the problem alone, and every sum has one
// order: neither pieces nor threads show in the bits.
//
// Measured (Zen 4, both cores, f32, 2026-11-22, GFLOP/s of the direct count, medians, channels_last, batch 1 / 8; torch
// is the better of its two layouts, all in turns). Ours write a gradient that exists, torch allocates its own: with 512
// filters it pays for 9 MB of fresh pages and the ratio says little; conv_wgrad.md under benchmarks/results allocates
// on both sides, and has 1.6 to 3.4 times torch on the layers of the first five rows but 128@28 at batch 1 (1.5).
//                 winograd4 avx512   avx2        igemm avx512   torch
//   64@56         698 / 511          583 / 450   190 / 182      200 / 180
//   128@28        600 / 600          513 / 476   181 / 181      189 / 208
//   256@14        431 / 404          403 / 342   163 / 173      150 / 201
//   512@7         197 / 368          174 / 327   117 / 145       21 / 108
//   512@14        284 / 270          243 / 281   159 / 167       59 / 144
//   64@224        529 / 568          452 / 478   176 / 105      185 / 172
//   128@112       506 / 517          425 / 354   183 / 155      182 / 145
//   256@56        510 / 580          382 / 403   159 / 160      188 / 177
//   512@28        388 / 495          322 / 431   161 / 184      178 / 204
// F(2x2,5x5) on two Zen 5 cores (2026-11-23, ms, this / igemm): 64->192@27 batch 1 0.64 / 1.06, batch 8 5.2 / 7.9 (NCHW
// 5.0, im2col 8.0), 16->32@28 batch 8 0.33 / 0.48, 48->128@7 batch 8 0.31 / 0.35.
// It loses to igemm with 3 input channels (64@56: twice its time) and with 8 on both sides, and to torch at 24->64@14
// and 32->64@14, batch 8 (0.5 and 0.7 times).
#include <type_traits>

#include "cpu/conv2d/tile.h"
#include "cpu/epilogue.h"
#include "simd/transpose.h"
#include "squares.h"
#include "wgrad_cut.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace winograd;

template <class P, class T>
struct Shape : GradientCut {
  using A = arithmetic<T>;
  static constexpr int64_t lanes = Vec<A>::lanes;

  int64_t x_row, x_step;    // of transformed x: between tiles, between frequencies
  int64_t dy_row, dy_step;  // of transformed dy
  int64_t sum_step;         // of a piece's sums, between frequencies
  int64_t registers;        // of channels
  int64_t partial;          // elements of a group's gradient, [filter][register][tap][lane]

  Shape(const Problem& p, int threads) : GradientCut(p, threads, P::outputs, Tile<A>::rows, lanes, sizeof(A)) {
    x_row = spread<A>(columns * width), x_step = spread<A>(chunk * x_row);
    dy_row = spread<A>(round_up(p.k, lanes)), dy_step = spread<A>(chunk * dy_row);
    sum_step = piece_rows * height * width;
    registers = divide_up(p.c, lanes);
    partial = p.k * registers * p.taps() * lanes;
  }
};

template <class A>
struct Operands {  // of a chunk, transformed
  A *x, *dy;

  template <class P, class T>
  Operands(Arena& arena, const Shape<P, T>& s, bool here)
      : x(arena.take<A>(here ? P::frequencies * s.x_step : 0)),
        dy(arena.take<A>(here ? P::frequencies * s.dy_step : 0)) {}
};

template <class P, class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  SquareScratch<InputStep<P>, A> x;
  SquareScratch<GradientStep<P>, A> dy;
  Operands<A> operands;
  A* sums;  // of a piece

  Private(Arena& arena, const Problem& p, const Shape<P, T>& s)
      : x(arena, Squares<InputStep<P>, T>::stage_size(p.layout, p.c, P::outputs)),
        dy(arena, Squares<GradientStep<P>, T>::stage_size(p.layout, p.k, P::outputs)),
        operands(arena, s, s.by_groups),
        sums(arena.take<A>(P::frequencies * s.sum_step)) {}
};

template <class P, class T>
struct Work {
  using A = arithmetic<T>;
  A* zeros;  // a pixel of the padding
  Operands<A> operands;
  A* partials;  // of all groups
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<P, T>& s, int thread_count)
      : zeros(arena.take<A>(std::max(p.c, p.k))),
        operands(arena, s, !s.by_groups),
        partials(arena.take<A>(s.chunks > 1 ? s.groups * s.partial : 0)) {
    Arena one(nullptr);
    Private<P, T>(one, p, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

template <class P, class T>
class WinogradGradient {
  using A = arithmetic<T>;
  using V = Vec<A>;
  using Own = Private<P, T>;
  static constexpr int64_t lanes = V::lanes, taps = P::filter * P::filter;

 public:
  WinogradGradient(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        s_(p, parallel.threads()),
        tiling_{s_.x_h, s_.x_w},
        arena_(args.workspace),
        work_(arena_, p, s_, parallel.threads()),
        x_(static_cast<const T*>(args.x), p.layout, p.c, s_.x_h, s_.x_w, P::outputs, work_.zeros),
        dy_(static_cast<const T*>(args.y), p.layout, p.k, s_.dy_h, s_.dy_w, P::outputs, work_.zeros) {
    std::fill_n(work_.zeros, std::max(p.c, p.k), A(0));
  }

  void run() const {
    if (s_.by_groups)
      run_by_groups();
    else
      run_by_pieces();
    if (s_.chunks > 1) add_groups();
  }

 private:
  Own own(int thread) const {
    Arena arena(work_.threads + thread * work_.thread_bytes);
    return Own(arena, p_, s_);
  }

  struct Chunk {
    int64_t index, first, tiles;
  };
  Chunk chunk(int64_t index) const {
    const int64_t first = index * s_.tiles / s_.chunks;
    return {index, first, (index + 1) * s_.tiles / s_.chunks - first};
  }

  void run_by_groups() const {
    parallel_(s_.groups, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      for (int64_t i = begin * s_.group; i < std::min(end * s_.group, s_.chunks); ++i) {
        const Chunk chunk = this->chunk(i);
        for (int64_t c = 0; c < p_.c; c += depth_chunk) transform_x(mine, mine.operands, chunk, 0, chunk.tiles, c);
        for (int64_t k = 0; k < p_.k; k += depth_chunk) transform_dy(mine, mine.operands, chunk, 0, chunk.tiles, k);
        for (int64_t piece = 0; piece < s_.pieces; ++piece) run_piece(mine, mine.operands, chunk, piece);
      }
    });
  }

  void run_by_pieces() const {
    const int64_t x_parts = divide_up(p_.c, depth_chunk), parts = x_parts + divide_up(p_.k, depth_chunk);
    for (int64_t i = 0; i < s_.chunks; ++i) {
      const Chunk chunk = this->chunk(i);
      const int64_t stretches = divide_up(chunk.tiles, run_tiles);
      parallel_(stretches * parts, [&](int64_t begin, int64_t end, int thread) {
        const Own mine = own(thread);
        for (int64_t j = begin; j < end; ++j) {
          const int64_t first = j / parts * run_tiles, last = std::min(first + run_tiles, chunk.tiles);
          const int64_t part = j % parts;
          if (part < x_parts)
            transform_x(mine, work_.operands, chunk, first, last, part * depth_chunk);
          else
            transform_dy(mine, work_.operands, chunk, first, last, (part - x_parts) * depth_chunk);
        }
      });
      parallel_(s_.pieces, [&](int64_t begin, int64_t end, int thread) {
        const Own mine = own(thread);
        for (int64_t piece = begin; piece < end; ++piece) run_piece(mine, work_.operands, chunk, piece);
      });
    }
  }

  // Up to depth_chunk channels from c on, or filters from k on, of the chunk's tiles [first, last).
  void transform_x(const Own& mine, const Operands<A>& to, const Chunk& chunk, int64_t first, int64_t last,
                   int64_t c) const {
    tiling_.each_run(chunk.first + first, chunk.first + last, [&](const Run& run) {
      x_.transform(run, c, std::min(depth_chunk, p_.c - c), mine.x, to.x + (run.tile - chunk.first) * s_.x_row + c,
                   s_.x_row, s_.x_step);
    });
  }
  void transform_dy(const Own& mine, const Operands<A>& to, const Chunk& chunk, int64_t first, int64_t last,
                    int64_t k) const {
    tiling_.each_run(chunk.first + first, chunk.first + last, [&](const Run& run) {
      dy_.transform(run, k, std::min(depth_chunk, p_.k - k), mine.dy, to.dy + (run.tile - chunk.first) * s_.dy_row + k,
                    s_.dy_row, s_.dy_step);
    });
  }

  // A chunk's share of the filters of a piece.
  void run_piece(const Own& mine, const Operands<A>& from, const Chunk& chunk, int64_t piece) const {
    const int64_t k = piece % s_.row_pieces * s_.piece_rows * s_.height, c = piece / s_.row_pieces * s_.width;
    const int64_t filters = std::min(s_.piece_rows * s_.height, p_.k - k), channels = std::min(s_.width, p_.c - c);
    for (int64_t f = 0; f < P::frequencies; ++f)
      for (int64_t row = 0; row < filters; row += s_.height)
        tile_for<A>(std::min(s_.height, filters - row), divide_up(channels, lanes))(
            chunk.tiles, from.dy + f * s_.dy_step + k + row, s_.dy_row, from.x + f * s_.x_step + c, s_.x_row,
            mine.sums + f * s_.sum_step + row * s_.width, s_.width, false, Ahead::none(from.x));

    for (int64_t row = 0; row < filters; ++row)
      for (int64_t i = 0; i < channels; i += lanes) {
        V g[P::filter][P::filter];
        transform_filter_gradient<P>(mine.sums + row * s_.width + i, s_.sum_step, g);
        if (s_.chunks == 1) {
          put(k + row, c + i, g);
          continue;
        }
        A* partial = this->partial(chunk.index / s_.group, k + row, (c + i) / lanes);
        const bool add = chunk.index % s_.group > 0;
        for (int64_t t = 0; t < taps; ++t, partial += lanes) {
          const V tap = g[t / P::filter][t % P::filter];
          (add ? load(partial) + tap : tap).store(partial);
        }
      }
  }

  A* partial(int64_t group, int64_t k, int64_t part) const {
    return work_.partials + group * s_.partial + (k * s_.registers + part) * taps * lanes;
  }

  void add_groups() const {
    parallel_(p_.k, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k)
        for (int64_t part = 0; part < s_.registers; ++part) {
          V g[P::filter][P::filter];
          for (int64_t t = 0; t < taps; ++t) {
            V sum = load(partial(0, k, part) + t * lanes);
            for (int64_t i = 1; i < s_.groups; ++i) sum = sum + load(partial(i, k, part) + t * lanes);
            g[t / P::filter][t % P::filter] = sum;
          }
          put(k, part * lanes, g);
        }
    });
  }

  // One filter's gradient for a register of channels.
  void put(int64_t k, int64_t c, const V (&g)[P::filter][P::filter]) const {
    const int64_t *step = args_.w_stride, count = std::min(lanes, p_.c - c);
    T* out = static_cast<T*>(args_.out) + k * step[0] + c * step[1];
    const auto tap = [&](int64_t t) { return t / P::filter * step[2] + t % P::filter * step[3]; };
    int64_t t = 0;
    if (std::is_same_v<T, A> && step[1] > 1 && step[2] == P::filter && step[3] == 1) {
      // The taps of a channel lie side by side: as many as a register holds go together.
      constexpr int64_t together = std::min(lanes, taps);
      V channels[lanes];
      for (; t < lanes; ++t) channels[t] = t < taps ? g[t / P::filter][t % P::filter] : V::zero();
      transpose(channels);
      for (int64_t i = 0; i < count; ++i) store(out + i * step[1], channels[i], static_cast<int>(together));
    }
    for (; t < taps; ++t) {
      const V values = g[t / P::filter][t % P::filter];
      if (step[1] == 1) {
        store(out + tap(t), values, static_cast<int>(count));
      } else {
        A one[lanes];
        values.store(one);
        for (int64_t i = 0; i < count; ++i) out[tap(t) + i * step[1]] = narrow<T>(one[i]);
      }
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<P, T> s_;
  const Tiling tiling_;
  Arena arena_;
  const Work<P, T> work_;
  const Squares<InputStep<P>, T> x_;
  const Squares<GradientStep<P>, T> dy_;
};

template <class P>
std::string refuses(const Problem& p) {
  return fastconv::winograd::refuses(p, P::filter);
}

template <class P>
int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Work<P, T>(arena, p, Shape<P, T>(p, threads), threads);
  });
  return arena.used();
}

template <class P>
Cost cost(const Problem& p, int threads) {
  return p.dtype == Dtype::f64 ? gradient_cost(p, threads, P::outputs, Tile<double>::rows, Vec<double>::lanes)
                               : gradient_cost(p, threads, P::outputs, Tile<float>::rows, Vec<float>::lanes);
}

template <class P>
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype,
             [&](auto* t) { WinogradGradient<P, std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

using F2x3 = Points<2, 3>;
using F4x3 = Points<4, 3>;
using F2x5 = Points<2, 5>;

extern const KernelBody conv2d_wgrad_winograd2{refuses<F2x3>, workspace<F2x3>, run<F2x3>, cost<F2x3>};
extern const KernelBody conv2d_wgrad_winograd4{refuses<F4x3>, workspace<F4x3>, run<F4x3>, cost<F4x3>};
extern const KernelBody conv2d_wgrad_winograd2r5{refuses<F2x5>, workspace<F2x5>, run<F2x5>, cost<F2x5>};

}  // namespace fastconv::FASTCONV_ISA
