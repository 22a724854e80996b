// Winograd convolution, F(2x2,3x3), F(4x4,3x3) and F(2x2,5x5): fprop, and dgrad as fprop of dy with the filter turned
// around and its padding r - 1 - p; channels_last and NCHW. Matrices: transforms.h; how the work is cut and what it
// costs: cut.h.
//
// A tile of m x m outputs reads (m + r - 1)^2 pixels. With their transform V, the filter's U and the product of each
// frequency M = V·U (16 or 36 matrix products of tiles x input channels x output channels, by the register tile of
// igemm) an output of 3x3 taps takes 4 multiplications a channel instead of 9, or 2.25, one of 5x5 taps 9 instead
// of 25.
//
//   by tiles    U of all panels is written once; each thread walks blocks of tiles: V of the block, all products, the
//               outputs. V and M of a block stay in L2 where that leaves 24 tiles or more, else in the last cache (56
//               tiles).
//   by panels   few tiles (small maps): each thread transforms all of them for itself, 128 input channels at a time,
//               and walks its panels of two registers of output channels: neither V of these channels nor U of them and
//               the panel leaves its L2; M of its panels is added to. With V of all channels before the panels,
//               2048->512@28 moved it through memory: 12.8 to 15.8 ms and now 11.0 to 11.6 (F(4x4), packed, cold, Zen
//               5, 2 threads, 2026-11-23). Where threads shared V, its lines moved between the cores, at some 1 GB/s:
//               128@28, batch 1 0.68 and then 0.41 ms, 256@14 0.66 and 0.51 (F(4x4), Zen 4, 2 threads, 2026-11-22).
//   packed      the filter's nine taps come panel by panel; U is made of them in the call, which reads a quarter of
//               what F(4x4)'s U holds. As U itself they came from memory at 20 to 40 GB/s, 36 numbers a filter: on two
//               Zen 5 cores, batch 1, cold, 256@14 0.41 ms and now 0.34, 512@14 1.46 and 1.33, 512@28 3.15 and 2.90,
//               128@28 0.28 and 0.20, 64@56 0.21 and 0.19 (F(4x4)); F(2x2) of 512@7 0.66 and 0.65 (2026-11-23).
//   ahead       the taps of a thread's next panel, and what the next stage of a plan reads, come into L2 line by line
//               with the products (conv2d/ahead.h). Where the transform waited for them, cold, in turns on two Zen 5
//               cores: F(2x2) of 512@7 0.66 to 0.82 ms and now 0.49 to 0.51, F(4x4) of 512@14 1.27 to 1.44 and 0.99,
//               256@14 0.36 to 0.48 and 0.31 (2026-11-23). By tiles, fetching the next block's pixels or the block's
//               results as well changed nothing (64@224, 128@112, 64@56).
//   dilated     by d x d: every d-th row and column, from one of the first d, is a convolution of its own (cut.h).
//               Zen 5, both cores, ms: 256@28 by 2 0.89 (igemm 2.02, torch 3.34), 512@28 by 2 3.43 (7.81, 13.1), by
//               4 3.48 (7.82, 12.8); in NCHW, where rows are staged number by number, 4.1 (im2col 9.0, torch 7.6 to
//               8.2).
//
// Bytes: x and y once, U (4 or 16/9·... the filter) written and read once a block, or V read once a panel. Nothing
// derived from a weight outlives the call: the filter's transform is part of the time, most of it on the smallest maps.
// NCHW is staged, runs of 8 tiles at a time, through transposes in registers on the way in and out.
//
// F(2x2,5x5), predicted 25/9 of igemm's products and transforms of as many pixels a tile as F(4x4,3x3) for a quarter of
// the outputs: about twice igemm. Measured on two Zen 5 cores (2026-11-23, ms, this / igemm / torch's channels_last):
// AlexNet's 64->192@27, batch 1 0.49 / 0.92 / 1.53, batch 8 3.6 / 7.4 / 8.3 (NCHW 3.8, im2col 8.1, torch 10.0), dgrad
// 3.6 / 7.6; 16->32@28 0.036 / 0.049 / 0.076, 48->128@7 0.036 / 0.046 / 0.104.
//
// Every sum runs over the input channels in one order, 128 at a time: neither the cut nor the threads show in the bits.
//
// Predicted for 64@56, batch 1, F(4x4), before it was measured: 58 MFLOP of products at 2 x 105 GFLOP/s and 7 MB
// through the transforms at 2 x 100 GB/s, 0.31 ms or 745 GFLOP/s of the direct count. Outcome 0.37 to 0.43 ms: products
// run at 90, transforms at 77 (cut.h). Measured (Zen 4, both cores, f32, KCRS weights, 2026-11-22, GFLOP/s of the
// direct count, medians, channels_last, batch 1 / 8; torch is the better of its two layouts, all in turns):
//                 winograd4 avx512   avx2        winograd2 avx512   igemm avx512   torch
//   64@56         533 / 524          472 / 493   336 / 330          208 / 202      205 / 218
//   128@28        585 / 627          539 / 562   382 / 399          210 / 210      206 / 222
//   256@14        409 / 515          361 / 496   339 / 411          187 / 215      203 / 236
//   512@7         270 / 491          248 / 446   221 / 296          154 / 208      172 / 236
//   64@224        521 / 530          507 / 504   341 / 351          205 / 205      221 / 173
//   128@112       631 / 634          590 / 601   398 / 407          210 / 207      222 / 195
//   256@56        603 / 582          566 / 555   413 / 418          212 / 208      223 / 217
//   512@28        597 / 638          537 / 585   329 / 367          208 / 207      209 / 232
//   512@14        451 / 479          410 / 415   352 / 351          195 / 211      201 / 228
// dgrad is within 6 % of it, 512@7 within 15 %. NCHW is 3 to 12 % slower, 25 % at 64@224. F(2x2) beats F(4x4) where 4x4
// tiles waste half of themselves: 256@5x6 202 against 165, 512@2x2 42 against 27. Both lose to igemm with 3 input
// channels (64@224: 130 against 171) and on maps of a tile or less; not yet with 8 channels (8@112: 118 against 72).
#include <type_traits>

#include "cpu/conv2d/pack.h"
#include "cpu/epilogue.h"
#include "shape.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace winograd;

template <class P, class T>
class Winograd {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

 public:
  Winograd(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        s_(p, parallel.threads()),
        tail_(p, args),
        planes_(p.layout == Layout::nchw),
        tiling_{s_.h, s_.w},
        arena_(args.workspace),
        work_(arena_, s_, parallel.threads()),
        squares_(static_cast<const T*>(s_.dgrad ? args.y : args.x), p.layout, s_.channels, s_.h, s_.w, P::outputs,
                 work_.zeros) {
    std::fill_n(work_.zeros, s_.channels, A(0));
    std::fill_n(work_.start, s_.width, A(0));
    for (int64_t t = 0; t < s_.taps; ++t) slot_[t] = s_.dgrad ? s_.taps - 1 - t : t;
  }

  // The taps of every panel, as a packed problem reads them: [panel][16 channels][tap][channel][width].
  void pack(A* out) const {
    parallel_(s_.panels, [&](int64_t begin, int64_t end, int) {
      for (int64_t panel = begin; panel < end; ++panel)
        for (int64_t c = 0; c < s_.channels; c += packed_depth)
          taps(panel, c, std::min(packed_depth, s_.channels - c), out + packed_at(panel, c));
    });
  }

  void run() const {
    if (s_.by_panels)
      run_by_panels();
    else
      run_by_tiles();
  }

 private:
  using Own = Private<P, T>;

  Own own(int thread) const {
    Arena arena(work_.threads + thread * work_.thread_bytes);
    return Own(arena, s_);
  }

  // U of all panels.
  void transform_filters(A* out) const {
    const int64_t parts = divide_up(s_.channels, packed_depth);
    parallel_(s_.panels * parts, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i / parts, first = i % parts * packed_depth;
        const int64_t width = s_.vectors(panel) * lanes;
        filter(mine, panel, first, std::min(packed_depth, s_.channels - first),
               out + panel * s_.channels * s_.width + first * width);
      }
    });
  }

  void run_by_tiles() const {
    transform_filters(work_.filter);
    parallel_(s_.blocks, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      point_rows(mine, mine.input, s_.block);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * s_.tiles / s_.blocks, last = (b + 1) * s_.tiles / s_.blocks;
        transform_input(mine, first, last);
        Later<1> later({next_share(b, s_.blocks)}, P::frequencies * s_.panels * strips(last - first) * s_.chunks);
        for (int64_t f = 0; f < P::frequencies; ++f)
          for (int64_t panel = 0; panel < s_.panels; ++panel)
            multiply(mine, f, last - first, panel, panel * s_.width, 0, s_.channels, panel_filter(f, panel), later);
        tiling_.each_run(first, last, [&](const Run& run) {
          for (int64_t panel = 0; panel < s_.panels; ++panel)
            output(mine, run, panel, mine.sums + (run.tile - first) * s_.sum_row + panel * s_.width);
        });
      }
    });
  }

  // V of the tiles [first, last), the thread's own.
  void transform_input(const Own& mine, int64_t first, int64_t last) const {
    tiling_.each_run(first, last, [&](const Run& run) {
      for (int64_t c = 0; c < s_.channels; c += depth_chunk)
        input(mine, run, c, mine.input + (run.tile - first) * s_.input_row + c);
    });
  }

  void run_by_panels() const {
    parallel_(s_.panels, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      int64_t part = begin * s_.chunks;
      point_rows(mine, mine.input, s_.tiles);
      for (int64_t first = begin; first < end; first += s_.group) {
        const int64_t last = std::min(first + s_.group, end);
        for (int64_t c = 0; c < s_.channels; c += depth_chunk) {
          const int64_t depth = std::min(depth_chunk, s_.channels - c);
          tiling_.each_run(0, s_.tiles,
                           [&](const Run& run) { input(mine, run, c, mine.input + run.tile * s_.input_row); });
          for (int64_t panel = first; panel < last; ++panel) {
            filter(mine, panel, c, depth, mine.filter);
            Later<2> later({following(panel, c, first, last, end), next_share(part++, s_.panels * s_.chunks)},
                           P::frequencies * strips(s_.tiles));
            for (int64_t f = 0; f < P::frequencies; ++f)
              multiply(mine, f, s_.tiles, panel, (panel - first) * s_.width, c, depth, mine.filter + f * s_.filter_step,
                       later);
          }
        }
        tiling_.each_run(0, s_.tiles, [&](const Run& run) {
          for (int64_t panel = first; panel < last; ++panel)
            output(mine, run, panel, mine.sums + run.tile * s_.sum_row + (panel - first) * s_.width);
        });
      }
    });
  }

  // One of `shares` shares of what the calls after this one read.
  Pieces next_share(int64_t share, int64_t shares) const {
    const int64_t bytes = divide_up(args_.next_bytes, shares);
    return {static_cast<const char*>(args_.next) + share * bytes, bytes};
  }

  // The packed taps that a thread reads after those of channels from c on of `panel`, in the group [first, last).
  Pieces following(int64_t panel, int64_t c, int64_t first, int64_t last, int64_t end) const {
    if (++panel == last) {
      c += depth_chunk;
      if (c < s_.channels)
        panel = first;
      else
        c = 0;
    }
    if (!p_.packed || panel == end) return {};
    const int64_t elements = s_.taps * std::min(depth_chunk, s_.channels - c) * s_.vectors(panel) * lanes;
    return {reinterpret_cast<const char*>(static_cast<const A*>(args_.packed) + packed_at(panel, c)),
            elements * static_cast<int64_t>(sizeof(A))};
  }

  void point_rows(const Own& mine, const A* input, int64_t tiles) const {
    for (int64_t t = 0; t < tiles; ++t) {
      mine.input_rows[t] = input + t * s_.input_row;
      mine.sum_rows[t] = mine.sums + t * s_.sum_row;
    }
  }

  // U of one frequency of a panel, where all lie together.
  const A* panel_filter(int64_t f, int64_t panel) const {
    return work_.filter + f * s_.filter_step + panel * s_.channels * s_.width;
  }

  // U of `depth` input channels of a panel, the first a multiple of packed_depth.
  void filter(const Own& mine, int64_t panel, int64_t first, int64_t depth, A* out) const {
    const int64_t width = s_.vectors(panel) * lanes;
    for (int64_t d = 0; d < depth; d += packed_depth) {
      const int64_t some = std::min(packed_depth, depth - d);
      if (!p_.packed) taps(panel, first + d, some, mine.packed);
      const A* from = p_.packed ? static_cast<const A*>(args_.packed) + packed_at(panel, first + d) : mine.packed;
      transform_filter<P>(from, some * width, some * width, out + d * width, s_.filter_step);
    }
  }

  // Where the taps of up to packed_depth channels of a panel lie in the packed form.
  int64_t packed_at(int64_t panel, int64_t first) const {
    return s_.taps * (panel * s_.width * s_.channels + first * s_.vectors(panel) * lanes);
  }

  // The taps of up to packed_depth channels of a panel, [tap][channel][width].
  void taps(int64_t panel, int64_t first, int64_t depth, A* out) const {
    const int64_t* stride = args_.w_stride;
    Filter<T> f;
    f.column = s_.dgrad ? stride[1] : stride[0], f.depth = s_.dgrad ? stride[0] : stride[1];
    f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = f.window_w = P::filter;
    f.w = static_cast<const T*>(args_.w) + panel * s_.width * f.column + first * f.depth;
    const int64_t columns = std::min(s_.width, s_.columns - panel * s_.width);
    pack_panel(f, slot_, depth, 0, depth, columns, s_.vectors(panel) * lanes, out);
  }

  // V of up to depth_chunk channels of a run; the first tile's at `out`.
  void input(const Own& mine, const Run& run, int64_t first, A* out) const {
    squares_.transform(run, first, std::min(depth_chunk, s_.channels - first), mine.square, out, s_.input_row,
                       s_.input_step);
  }

  int64_t strips(int64_t tiles) const { return divide_up(tiles, s_.strip); }

  // M of one frequency, one panel and `tiles` tiles, from `depth` input channels.
  template <class Later>
  void multiply(const Own& mine, int64_t f, int64_t tiles, int64_t panel, int64_t column, int64_t first, int64_t depth,
                const A* filter, Later& later) const {
    const int vectors = s_.vectors(panel);
    PixelTile<A> tile;
    tile.taps = 1;
    tile.start = work_.start;
    tile.out_offset = tile.channel = f * s_.sum_step + column;
    tile.residual = nullptr;
    tile.clamped = tile.stream = false;
    tile.last = lanes;
    const int64_t count = strips(tiles);
    for (int64_t s = 0; s < count; ++s) {
      const int64_t begin = s * tiles / count, end = (s + 1) * tiles / count;
      tile.rows = mine.input_rows + begin;
      tile.out = mine.sum_rows + begin;
      const PixelTileFunction<A> function = tile_function<A>(static_cast<int>(end - begin), vectors);
      for (int64_t c = first; c < first + depth; c += depth_chunk) {
        tile.run = std::min(depth_chunk, first + depth - c);
        tile.offset = f * s_.input_step + c - first;
        tile.weights = filter + (c - first) * vectors * lanes;
        tile.ahead = later.share(tile.run, tile.weights);
        tile.sums = c > 0 ? tile.out : nullptr;
        function(tile);
      }
    }
  }

  // Writes the channels of a panel of a run; the first tile's sums lie at m.
  [[gnu::flatten]] void output(const Own& mine, const Run& run, int64_t panel, const A* m) const {
    const int64_t first = panel * s_.width, count = std::min(s_.width, s_.columns - first);
    const int64_t rows = s_.h.rows(run.y, P::outputs), cols = s_.w.rows(run.x, run.count * P::outputs);
    for (int64_t t = 0; t < run.count; ++t, m += s_.sum_row) {
      const int64_t x = t * P::outputs, some_cols = std::min<int64_t>(P::outputs, cols - x);
      for (int64_t k = 0; k < count; k += lanes) {
        Vec<A> y[P::outputs][P::outputs];
        transform_output<P>(m + k, s_.sum_step, y);
        const int some = static_cast<int>(std::min<int64_t>(lanes, count - k));
        if (planes_) {
          for (int64_t i = 0; i < P::outputs; ++i)
            for (int64_t j = 0; j < P::outputs; ++j)
              store(mine.tile + (i * run_tiles * P::outputs + x + j) * s_.width + k, y[i][j]);
          continue;
        }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < some_cols; ++j)
            tail_.put_channels(run.n, first + k, pixel(run, i, x + j), y[i][j], some);
      }
    }
    if (planes_)
      for (int64_t i = 0; i < rows; ++i)
        put_row(mine.tile + i * run_tiles * P::outputs * s_.width, run, i, cols, panel);
  }

  // Where the output (i, j) of a run lies in its map.
  int64_t pixel(const Run& run, int64_t i, int64_t j) const {
    return (run.y + i * s_.h.dilation) * s_.w.written + run.x + j * s_.w.dilation;
  }

  // One row of a run's outputs, [pixel][channel of the panel], into planes.
  void put_row(const A* from, const Run& run, int64_t i, int64_t cols, int64_t panel) const {
    const int64_t first = panel * s_.width, count = std::min(s_.width, s_.columns - first);
    for (int64_t x = 0; x < cols; x += lanes)
      for (int64_t k = 0; k < count; k += lanes) {
        const int some = static_cast<int>(std::min<int64_t>(lanes, cols - x));
        Vec<A> block[lanes];
        for (int c = 0; c < lanes; ++c) block[c] = c < some ? load(from + (x + c) * s_.width + k) : Vec<A>::zero();
        transpose(block);
        for (int64_t c = 0; c < std::min<int64_t>(lanes, count - k); ++c)
          put_pixels(run, i, x, first + k + c, block[c], some);
      }
  }

  // Outputs (i, x), (i, x + 1), ... of a run.
  void put_pixels(const Run& run, int64_t i, int64_t x, int64_t channel, Vec<A> values, int count) const {
    if (s_.w.dilation == 1) return tail_.put_pixels(run.n, channel, pixel(run, i, x), values, count);
    A each[lanes];
    values.store(each);
    for (int j = 0; j < count; ++j)
      tail_.put_pixels(run.n, channel, pixel(run, i, x + j), Vec<A>::broadcast(each[j]), 1);
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<P, T> s_;
  const Tail<T> tail_;
  const bool planes_;
  const Tiling tiling_;
  Arena arena_;
  const Work<P, T> work_;
  const Squares<InputStep<P>, T> squares_;
  int64_t slot_[P::filter * P::filter];
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
    Work<P, T>(arena, Shape<P, T>(p, threads), threads);
  });
  return arena.used();
}

template <class P>
PackedForm packed_form(const Problem& problem) {
  Problem p = problem;
  p.packed = true;
  PackedForm form;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    form.bytes = Shape<P, T>(p, 1).packed_elements() * static_cast<int64_t>(sizeof(arithmetic<T>));
  });
  return form;
}

template <class P>
void pack(const Problem& problem, const Args& args, void* out, const Parallel& parallel) {
  Problem p = problem;
  p.packed = true, p.n = 1;  // the form does not hang on the tiles
  const Scratch scratch(workspace<P>(p, parallel.threads()));
  Args own = args;
  own.workspace = scratch.get();
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Winograd<P, T>(p, own, parallel).pack(static_cast<arithmetic<T>*>(out));
  });
}

template <class P>
Cost cost_of(const Problem& p, int threads) {
  const int64_t lanes = p.dtype == Dtype::f64 ? Vec<double>::lanes : Vec<float>::lanes;
  return cost(p, threads, P::outputs, lanes);
}

template <class P>
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Winograd<P, std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

using F2x3 = Points<2, 3>;
using F4x3 = Points<4, 3>;
using F2x5 = Points<2, 5>;

extern const KernelBody conv2d_fprop_winograd2{refuses<F2x3>, workspace<F2x3>,   run<F2x3>,
                                               cost_of<F2x3>, packed_form<F2x3>, pack<F2x3>};
extern const KernelBody conv2d_fprop_winograd4{refuses<F4x3>, workspace<F4x3>,   run<F4x3>,
                                               cost_of<F4x3>, packed_form<F4x3>, pack<F4x3>};
extern const KernelBody conv2d_fprop_winograd2r5{refuses<F2x5>, workspace<F2x5>,   run<F2x5>,
                                                 cost_of<F2x5>, packed_form<F2x5>, pack<F2x5>};
extern const KernelBody conv2d_dgrad_winograd2{refuses<F2x3>, workspace<F2x3>,   run<F2x3>,
                                               cost_of<F2x3>, packed_form<F2x3>, pack<F2x3>};
extern const KernelBody conv2d_dgrad_winograd4{refuses<F4x3>, workspace<F4x3>,   run<F4x3>,
                                               cost_of<F4x3>, packed_form<F4x3>, pack<F4x3>};
extern const KernelBody conv2d_dgrad_winograd2r5{refuses<F2x5>, workspace<F2x5>,   run<F2x5>,
                                                 cost_of<F2x5>, packed_form<F2x5>, pack<F2x5>};

}  // namespace fastconv::FASTCONV_ISA
