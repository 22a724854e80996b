// The filter gradient by Winograd's transforms, dw = G^T [sum over tiles of (A dy A^T) * (B^T x B)] G, of the same
// tiles and matrices as fprop: 4x4 outputs (or 2x2) and the 6x6 (4x4) inputs they read; channels_last and NCHW.
//
// At each of the 36 (16) frequencies the sum is a matrix product, filters x tiles x channels: 36/16 multiplications an
// output, filter and channel instead of 9. Tiles come in chunks of 64 to 128: all threads transform a chunk of x and of
// dy, then share out pieces of the product, each a few register tiles of 14 filters by 32 channels (6 by 16 with AVX2)
// at every frequency, whose sums stay in L2 where the filter has few channels. After the last chunk a piece's sums are
// transformed into its filters.
//
// Bytes: x and dy once, their transforms (2.25 times x and dy) written and read about once a column of 32 channels or a
// few rows of 14 filters, from the last cache; the sums (4 times the filter) once a chunk.
//
// Chunks depend on the problem alone, so neither pieces nor threads show in the bits.
#include <type_traits>

#include "cpu/conv2d/tile.h"
#include "cpu/epilogue.h"
#include "simd/transpose.h"
#include "squares.h"
#include "wgrad_cut.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace winograd;

constexpr int64_t transform_tiles = run_tiles;  // of a chunk: transformed by one thread

template <class P, class T>
struct Shape : GradientCut {
  using A = arithmetic<T>;
  static constexpr int64_t lanes = Vec<A>::lanes;

  int64_t x_row, x_step;    // of transformed x: between tiles, between frequencies
  int64_t dy_row, dy_step;  // of transformed dy
  int64_t sum_step, sums;   // of a task's sums: between frequencies; all of them

  Shape(const Problem& p, int threads) : GradientCut(p, threads, P::outputs, Tile<A>::rows, lanes, sizeof(A)) {
    x_row = spread<A>(columns * width), x_step = spread<A>(chunk * x_row);
    dy_row = spread<A>(round_up(p.k, lanes)), dy_step = spread<A>(chunk * dy_row);
    sum_step = task_rows * height * width, sums = P::frequencies * sum_step;
  }
};

template <class P, class T>
struct Work {
  using A = arithmetic<T>;

  struct Private {
    SquareScratch<InputStep<P>, A> x;
    SquareScratch<GradientStep<P>, A> dy;
    A* sums;

    Private(Arena& arena, const Problem& p, const Shape<P, T>& s)
        : x(arena, Squares<InputStep<P>, T>::stage_size(p.layout, p.c, P::outputs)),
          dy(arena, Squares<GradientStep<P>, T>::stage_size(p.layout, p.k, P::outputs)),
          sums(arena.take<A>(s.chunks == 1 ? s.sums : 0)) {}
  };

  A *zeros, *x, *dy;
  A* sums;  // of all tasks, where they outlive a chunk
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<P, T>& s, int thread_count)
      : zeros(arena.take<A>(std::max(p.c, p.k))),
        x(arena.take<A>(P::frequencies * s.x_step)),
        dy(arena.take<A>(P::frequencies * s.dy_step)),
        sums(arena.take<A>(s.chunks == 1 ? 0 : s.tasks * s.sums)) {
    Arena one(nullptr);
    Private(one, p, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }

  Private own(const Problem& p, const Shape<P, T>& s, int thread) const {
    Arena arena(threads + thread * thread_bytes);
    return Private(arena, p, s);
  }
};

template <class P, class T>
class WinogradGradient {
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int64_t lanes = V::lanes;

 public:
  WinogradGradient(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        s_(p, parallel.threads()),
        tiling_{s_.x_h.tiles, s_.x_w.tiles},
        arena_(args.workspace),
        work_(arena_, p, s_, parallel.threads()),
        x_(static_cast<const T*>(args.x), p.layout, p.c, s_.x_h, s_.x_w, P::outputs, work_.zeros),
        dy_(static_cast<const T*>(args.y), p.layout, p.k, s_.dy_h, s_.dy_w, P::outputs, work_.zeros) {
    std::fill_n(work_.zeros, std::max(p.c, p.k), A(0));
  }

  void run() const {
    for (int64_t chunk = 0; chunk < s_.chunks; ++chunk) {
      const int64_t first = chunk * s_.chunk, last = std::min(first + s_.chunk, s_.tiles);
      transform(first, last);
      parallel_(s_.tasks, [&](int64_t begin, int64_t end, int thread) {
        A* own = s_.chunks == 1 ? work_.own(p_, s_, thread).sums : nullptr;
        for (int64_t task = begin; task < end; ++task) {
          A* sums = own ? own : work_.sums + task * s_.sums;
          multiply(task, last - first, sums, chunk > 0);
          if (chunk + 1 == s_.chunks) finish(task, sums);
        }
      });
    }
  }

 private:
  // Both operands of the tiles [first, last).
  void transform(int64_t first, int64_t last) const {
    const int64_t pieces = divide_up(last - first, transform_tiles);
    const int64_t x_parts = divide_up(p_.c, depth_chunk), parts = x_parts + divide_up(p_.k, depth_chunk);
    parallel_(pieces * parts, [&](int64_t begin, int64_t end, int thread) {
      const auto own = work_.own(p_, s_, thread);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = first + i / parts * transform_tiles, part = i % parts;
        tiling_.each_run(from, std::min(from + transform_tiles, last), [&](const Run& run) {
          const int64_t at = run.tile - first;
          if (part < x_parts) {
            const int64_t c = part * depth_chunk;
            x_.transform(run, c, std::min(depth_chunk, p_.c - c), own.x, work_.x + at * s_.x_row + c, s_.x_row,
                         s_.x_step);
          } else {
            const int64_t k = (part - x_parts) * depth_chunk;
            dy_.transform(run, k, std::min(depth_chunk, p_.k - k), own.dy, work_.dy + at * s_.dy_row + k, s_.dy_row,
                          s_.dy_step);
          }
        });
      }
    });
  }

  struct Piece {
    int64_t filter, filters;    // the first, and how many
    int64_t channel, channels;  // and so
  };
  Piece piece(int64_t task) const {
    const int64_t filter = task % s_.row_tasks * s_.task_rows * s_.height, channel = task / s_.row_tasks * s_.width;
    return {filter, std::min(s_.task_rows * s_.height, p_.k - filter), channel, std::min(s_.width, p_.c - channel)};
  }

  void multiply(int64_t task, int64_t tiles, A* sums, bool add) const {
    const Piece piece = this->piece(task);
    const int64_t vectors = divide_up(piece.channels, lanes);
    for (int64_t f = 0; f < P::frequencies; ++f)
      for (int64_t row = 0; row < piece.filters; row += s_.height)
        tile_for<A>(std::min(s_.height, piece.filters - row), vectors)(
            tiles, work_.dy + f * s_.dy_step + piece.filter + row, s_.dy_row, work_.x + f * s_.x_step + piece.channel,
            s_.x_row, sums + f * s_.sum_step + row * s_.width, s_.width, add);
  }

  void finish(int64_t task, const A* sums) const {
    const Piece piece = this->piece(task);
    for (int64_t row = 0; row < piece.filters; ++row)
      for (int64_t c = 0; c < piece.channels; c += lanes) {
        V g[filter_size][filter_size];
        transform_filter_gradient<P>(sums + row * s_.width + c, s_.sum_step, g);
        put(piece.filter + row, piece.channel + c, std::min(lanes, piece.channels - c), g);
      }
  }

  // One filter's gradient for `count` channels.
  void put(int64_t k, int64_t c, int64_t count, const V (&g)[filter_size][filter_size]) const {
    const int64_t* step = args_.w_stride;
    T* out = static_cast<T*>(args_.out) + k * step[0] + c * step[1];
    const auto tap = [&](int64_t t) { return t / filter_size * step[2] + t % filter_size * step[3]; };
    int64_t t = 0;
    if (std::is_same_v<T, A> && step[1] > 1 && step[2] == filter_size && step[3] == 1) {
      // The taps of a channel lie side by side: as many as a register holds go together.
      constexpr int64_t together = std::min(lanes, filter_taps);
      V taps[lanes];
      for (; t < lanes; ++t) taps[t] = t < filter_taps ? g[t / filter_size][t % filter_size] : V::zero();
      transpose(taps);
      for (int64_t i = 0; i < count; ++i) store(out + i * step[1], taps[i], static_cast<int>(together));
    }
    for (; t < filter_taps; ++t) {
      const V values = g[t / filter_size][t % filter_size];
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

extern const KernelBody conv2d_wgrad_winograd2{refuses, workspace<Points<2>>, run<Points<2>>, cost<Points<2>>};
extern const KernelBody conv2d_wgrad_winograd4{refuses, workspace<Points<4>>, run<Points<4>>, cost<Points<4>>};

}  // namespace fastconv::FASTCONV_ISA
