#include <type_traits>

#include "cpu/conv2d/pack.h"
#include "cpu/epilogue.h"
#include "shape.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace winograd;

template <class P, class T>
class Winograd {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;
  static constexpr int taps = filter_size * filter_size;

 public:
  Winograd(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        s_(p, parallel.threads()),
        tail_(p, args),
        source_(static_cast<const T*>(s_.dgrad ? args.y : args.x)),
        arena_(args.workspace),
        work_(arena_, s_, parallel.threads()) {
    std::fill_n(work_.zeros, s_.channels, T{});
    std::fill_n(work_.start, s_.width, A(0));
    for (int64_t t = 0; t < taps; ++t) slot_[t] = s_.dgrad ? taps - 1 - t : t;
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

  void run_by_tiles() const {
    const int64_t pieces = ceil_div(s_.channels, depth_chunk);
    parallel_(s_.panels * pieces, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i / pieces, first = i % pieces * depth_chunk;
        const int64_t width = s_.panel_vectors(panel) * lanes;
        filter(mine, panel, first, std::min(depth_chunk, s_.channels - first),
               work_.filter + panel * s_.channels * s_.width + first * width);
      }
    });
    parallel_(s_.blocks, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      point_rows(mine, mine.input, s_.block);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * s_.tiles / s_.blocks, last = (b + 1) * s_.tiles / s_.blocks;
        for (int64_t t = first; t < last; ++t) input(mine, t, 0, s_.channels, mine.input + (t - first) * s_.input_row);
        for (int64_t f = 0; f < P::frequencies; ++f)
          for (int64_t panel = 0; panel < s_.panels; ++panel)
            multiply(mine, f, last - first, panel, panel * s_.width, 0, s_.channels,
                     work_.filter + f * s_.filter_step + panel * s_.channels * s_.width);
        for (int64_t t = first; t < last; ++t) output(mine.sums + (t - first) * s_.sum_row, t, 0, s_.columns);
      }
    });
  }

  void run_by_panels() const {
    parallel_(s_.tiles * s_.chunks, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / s_.chunks, c = i % s_.chunks * depth_chunk;
        input(mine, t, c, std::min(depth_chunk, s_.channels - c), work_.input + t * s_.input_row + c);
      }
    });
    parallel_(s_.panels, [&](int64_t begin, int64_t end, int thread) {
      const Own mine = own(thread);
      point_rows(mine, work_.input, s_.tiles);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t c = 0; c < s_.channels; c += depth_chunk) {
          const int64_t depth = std::min(depth_chunk, s_.channels - c);
          filter(mine, panel, c, depth, mine.filter);
          for (int64_t f = 0; f < P::frequencies; ++f)
            multiply(mine, f, s_.tiles, panel, 0, c, depth, mine.filter + f * s_.filter_step);
        }
        const int64_t first = panel * s_.width, count = std::min(s_.width, s_.columns - first);
        for (int64_t t = 0; t < s_.tiles; ++t) output(mine.sums + t * s_.sum_row, t, first, count);
      }
    });
  }

  void point_rows(const Own& mine, const A* input, int64_t tiles) const {
    for (int64_t t = 0; t < tiles; ++t) {
      mine.input_rows[t] = input + t * s_.input_row;
      mine.sum_rows[t] = mine.sums + t * s_.sum_row;
    }
  }

  // U of `depth` input channels of a panel.
  void filter(const Own& mine, int64_t panel, int64_t first, int64_t depth, A* out) const {
    const int64_t* stride = args_.w_stride;
    Filter<T> f;
    f.column = s_.dgrad ? stride[1] : stride[0], f.depth = s_.dgrad ? stride[0] : stride[1];
    f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = f.window_w = filter_size;
    const int64_t columns = std::min(s_.width, s_.columns - panel * s_.width), width = s_.panel_vectors(panel) * lanes;
    for (int64_t d = 0; d < depth; d += packed_depth) {
      const int64_t some = std::min(packed_depth, depth - d);
      f.w = static_cast<const T*>(args_.w) + panel * s_.width * f.column + (first + d) * f.depth;
      pack_panel(f, slot_, some, columns, width, mine.packed);
      transform_filter<P>(mine.packed, some * width, some * width, out + d * width, s_.filter_step);
    }
  }

  // V of the channels [first, first + count) of one tile.
  void input(const Own& mine, int64_t tile, int64_t first, int64_t count, A* out) const {
    const int64_t n = tile / (s_.h.tiles * s_.w.tiles), ti = tile / s_.w.tiles % s_.h.tiles, tj = tile % s_.w.tiles;
    const int64_t y0 = ti * P::outputs + s_.h.origin, x0 = tj * P::outputs + s_.w.origin;
    for (int64_t i = 0; i < P::size; ++i) {
      const int64_t y = y0 + i;
      const T* line = source_ + ((n * s_.h.source + y) * s_.w.source + x0) * s_.channels + first;
      for (int64_t j = 0; j < P::size; ++j) {
        const int64_t x = x0 + j;
        const bool inside = y >= 0 && y < s_.h.source && x >= 0 && x < s_.w.source;
        mine.pixel[i * P::size + j] = inside ? line + j * s_.channels : work_.zeros;
      }
    }
    transform_input<P>(mine.pixel, count, out, s_.input_step);
  }

  // M of one frequency, one panel and `tiles` tiles, from `depth` input channels.
  void multiply(const Own& mine, int64_t f, int64_t tiles, int64_t panel, int64_t column, int64_t first, int64_t depth,
                const A* filter) const {
    const int vectors = s_.panel_vectors(panel);
    Tile<A> tile;
    tile.taps = 1;
    tile.start = work_.start;
    tile.out_offset = tile.residual_offset = f * s_.sum_step + column;
    tile.ahead = nullptr, tile.ahead_lines = 0;
    tile.clamped = false;
    tile.last = lanes;
    const int64_t strips = ceil_div(tiles, s_.strip);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = s * tiles / strips, end = (s + 1) * tiles / strips;
      tile.rows = mine.input_rows + begin;
      tile.out = mine.sum_rows + begin;
      const TileFunction<A> function = tile_function<A>(static_cast<int>(end - begin), vectors);
      for (int64_t c = first; c < first + depth; c += depth_chunk) {
        tile.run = std::min(depth_chunk, first + depth - c);
        tile.offset = f * s_.input_step + c;
        tile.weights = filter + (c - first) * vectors * lanes;
        tile.residual = c > 0 ? tile.out : nullptr;
        function(tile);
      }
    }
  }

  // Writes `count` channels from `first` on of one tile, whose sums lie at m.
  void output(const A* m, int64_t tile, int64_t first, int64_t count) const {
    const int64_t n = tile / (s_.h.tiles * s_.w.tiles), ti = tile / s_.w.tiles % s_.h.tiles, tj = tile % s_.w.tiles;
    const int64_t y0 = ti * P::outputs, x0 = tj * P::outputs;
    const int64_t rows = std::min<int64_t>(P::outputs, s_.h.written - y0);
    const int64_t cols = std::min<int64_t>(P::outputs, s_.w.written - x0);
    for (int64_t k = 0; k < count; k += lanes) {
      Vec<A> y[P::outputs][P::outputs];
      transform_output<P>(m + k, s_.sum_step, y);
      const int some = static_cast<int>(std::min<int64_t>(lanes, count - k));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j)
          tail_.put_channels(n, first + k, (y0 + i) * s_.w.written + x0 + j, y[i][j], some);
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<P, T> s_;
  const Tail<T> tail_;
  const T* source_;
  Arena arena_;
  const Work<P, T> work_;
  int64_t slot_[taps];
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout != Layout::nhwc) return "The layout is nchw: the channels of a pixel must lie together.";
  const auto differs = [](const char* what, int64_t h, int64_t w, const char* only) {
    return std::string("The ") + what + " is " + std::to_string(h) + "x" + std::to_string(w) + ": " + only;
  };
  if (p.h.window != filter_size || p.w.window != filter_size)
    return differs("filter", p.h.window, p.w.window, "the transforms are for 3x3.");
  if (p.h.stride != 1 || p.w.stride != 1)
    return differs("stride", p.h.stride, p.w.stride, "neighbouring outputs must share inputs.");
  if (p.h.dilation != 1 || p.w.dilation != 1)
    return differs("dilation", p.h.dilation, p.w.dilation, "the taps must be neighbours.");
  if (p.groups != 1)
    return "There are " + std::to_string(p.groups) + " groups: the products need the channels of one.";
  return {};
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
void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Winograd<P, std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

extern const KernelBody conv2d_fprop_winograd2{refuses, workspace<Points<2>>, run<Points<2>>};
extern const KernelBody conv2d_fprop_winograd4{refuses, workspace<Points<4>>, run<Points<4>>};
extern const KernelBody conv2d_dgrad_winograd2{refuses, workspace<Points<2>>, run<Points<2>>};
extern const KernelBody conv2d_dgrad_winograd4{refuses, workspace<Points<4>>, run<Points<4>>};

}  // namespace fastconv::FASTCONV_ISA
