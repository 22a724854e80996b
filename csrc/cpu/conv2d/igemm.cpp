// Implicit GEMM, NHWC in place: fprop, and dgrad by phases (phase.h), which is also the transposed convolution.
//
// Output pixels are cut into strips of up to 14 (AVX-512) or 6 (AVX2) pixels, output channels into panels of two
// vectors; the register tile (microkernel.h) computes one strip x panel over all taps and channels. Where a strip reads
// is a table of row pointers, [tap][pixel], with one zero row for the padding: nothing is unfolded. The filter is
// packed once a call (pack.h).
//
// Blocking: panels that fill half of L2 stay there while the strips pass; a strip's rows come from L1 or L2. Threads
// split the strips, or the panels where the filter is the larger operand: then each packs its own panels just before
// use, and they never leave its L2. Every sum runs over taps and channels in one fixed order, so the split does not
// show.
//
// Narrow inputs (C <= 4) would give runs of 3 elements: a row-padded copy makes a filter row one run of S·C elements.
// 16-bit types, and rows so far apart that a strip falls into one L1 set, are staged: the strip's rows are copied
// (widened) into a private scratch.
#include <algorithm>
#include <limits>
#include <numeric>
#include <type_traits>

#include "core/machine.h"
#include "cpu/epilogue.h"
#include "microkernel.h"
#include "pack.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t cache_line = 64;
constexpr int64_t narrow_channels = 4;  // up to here a filter row is merged into one run
constexpr int64_t l1_set_bytes = 4096;  // addresses equal modulo this share a set (32 KiB, 8 ways and 48 KiB, 12)
constexpr int64_t l1_ways = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Hands out consecutive, aligned pieces of the workspace; from a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class U>
  U* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(U)), cache_line);
    return reinterpret_cast<U*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Everything about a problem that does not depend on the phase.
template <class T>
struct Shape {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  int64_t channels, depth;  // of the source, and of one group of it
  int64_t columns;          // written channels of one group
  int64_t filter_taps;
  bool merged;            // a filter row is one run of S·C elements
  int64_t copy_w;         // columns of the row-padded copy; 0: the source is read in place
  int64_t run;            // elements of one tap of the table
  int64_t table_taps;     // at most
  int vectors, strip;     // panel width in vectors, most pixels of a strip
  int64_t width, panels;  // panel width in channels, panels of one group
  bool staged;
  int64_t stage_stride;
  int64_t panel_size;    // elements of a packed panel, at most
  int64_t group_panels;  // panels that half of L2 holds

  explicit Shape(const Problem& p) {
    const bool dgrad = p.pass == Pass::dgrad;
    channels = dgrad ? p.k : p.c;
    depth = channels / p.groups;
    columns = p.written_channels() / p.groups;
    filter_taps = p.taps();
    const bool mergeable = !dgrad && p.groups == 1 && p.w.window > 1 && p.w.dilation == 1;
    const bool padded = p.w.pad_lo > 0 || (p.w.out - 1) * p.w.stride - p.w.pad_lo + p.w.window > p.w.in;
    merged = mergeable && (!padded || channels <= narrow_channels);
    copy_w = merged && padded ? (p.w.out - 1) * p.w.stride + p.w.window : 0;
    run = merged ? p.w.window * depth : depth;
    table_taps = merged ? p.h.window : filter_taps;
    vectors = columns <= lanes ? 1 : tile_vectors;
    strip = vectors == 1 ? max_tile_rows : tile_rows;
    width = vectors * lanes;
    panels = ceil_div(columns, width);
    const int64_t step = dgrad ? 1 : p.w.stride;
    const int64_t apart = step * channels * static_cast<int64_t>(sizeof(A));  // bytes between neighbouring rows
    const bool conflict = table_taps == 1 && strip * std::gcd(apart, l1_set_bytes) > l1_ways / 2 * l1_set_bytes;
    staged = (!std::is_same_v<T, A> && !copy_w) || conflict;
    stage_stride = run + cache_line / static_cast<int64_t>(sizeof(A));
    panel_size = filter_taps * depth * width;
    const int64_t panel_bytes = std::max<int64_t>(1, panel_size * static_cast<int64_t>(sizeof(A)));
    group_panels = std::clamp<int64_t>(machine().l2 / 2 / panel_bytes, 1, p.groups * panels);
  }
};

template <class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  const void** rows;  // [tap][pixel]: of T, or of A in a copied source
  const A** staged;   // the same rows in the stage
  int64_t* pixel;     // [pixel] flat index of the written pixel
  A** out;
  const A** residual;
  A* tile;   // [pixel][width]: sums on their way through the Tail
  A* stage;  // [tap][pixel][stage_stride]
  A* packed;

  Private(Arena& arena, const Shape<T>& s)
      : rows(arena.take<const void*>(s.table_taps * s.strip)),
        staged(arena.take<const A*>(s.staged ? s.table_taps * s.strip : 0)),
        pixel(arena.take<int64_t>(s.strip)),
        out(arena.take<A*>(s.strip)),
        residual(arena.take<const A*>(s.strip)),
        tile(arena.take<A>(s.strip * s.width)),
        stage(arena.take<A>(s.staged ? s.table_taps * s.strip * s.stage_stride : 0)),
        packed(arena.take<A>(s.group_panels * s.panel_size)) {}
};

template <class T>
struct Work {
  using A = arithmetic<T>;
  A* zeros;   // stands for every pixel of the padding
  A* start;   // bias padded to whole panels
  A* packed;  // every panel of one phase
  A* copy;
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<T>& s, int thread_count) {
    zeros = arena.take<A>(std::max(s.channels, s.run));
    start = arena.take<A>(p.groups * s.panels * s.width);
    packed = arena.take<A>(p.groups * s.panels * s.panel_size);
    copy = arena.take<A>(s.copy_w ? p.n * p.h.in * s.copy_w * p.c : 0);
    Arena one(nullptr);
    Private<T>(one, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

template <class S>
struct Source {
  const S* base;
  int64_t image, row, pixel;  // strides in elements
};

// How the tiles of one phase are shared out: chunks of strips x chunks of panels.
struct Split {
  int64_t strips, panels;
};

Split split(int64_t strips, int64_t panels, int threads, bool filter_is_larger) {
  if (threads == 1) return {1, 1};
  const int64_t by_strips = ceil_div(strips, threads) * panels, by_panels = ceil_div(panels, threads) * strips;
  if (by_panels < by_strips || (filter_is_larger && by_panels == by_strips))
    return {1, std::min<int64_t>(panels, threads)};
  const int64_t chunks = std::min<int64_t>(strips, threads);
  return {chunks, std::min(panels, ceil_div(threads, chunks))};
}

template <class T>
class Igemm {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

 public:
  Igemm(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        shape_(p),
        tail_(p, args),
        arena_(args.workspace),
        work_(arena_, p, shape_, parallel.threads()) {
    std::fill_n(work_.zeros, std::max(shape_.channels, shape_.run), A(0));
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t i = 0; i < shape_.panels * shape_.width; ++i)
        work_.start[g * shape_.panels * shape_.width + i] =
            tail_.bias && i < shape_.columns ? widen(tail_.bias[g * shape_.columns + i]) : A(0);
    tail_.bias = nullptr;  // the sums start from it
    using enum Activation;
    const bool clamp = tail_.activation == relu || tail_.activation == relu6;
    direct_ = std::is_same_v<T, A> && (clamp || tail_.activation == none);
    clamped_ = direct_ && clamp;
    high_ = tail_.activation == relu6 ? A(6) : std::numeric_limits<A>::infinity();
  }

  void run() {
    const T* source = static_cast<const T*>(p_.pass == Pass::dgrad ? args_.y : args_.x);
    if (shape_.copy_w) {
      copy_rows(source);
      const int64_t row = shape_.copy_w * p_.c;
      run_phase(phase_of(p_, 0), Source<A>{work_.copy, p_.h.in * row, row, p_.c});
      return;
    }
    for (int64_t i = 0; i < phase_count(p_); ++i) {
      const Phase phase = phase_of(p_, i);
      const int64_t row = phase.w.source_size * shape_.channels;
      run_phase(phase, Source<T>{source, phase.h.source_size * row, row, shape_.channels});
    }
  }

 private:
  // x with the padding of its rows written out, in the arithmetic type.
  void copy_rows(const T* x) {
    const int64_t c = p_.c, left = p_.w.pad_lo * c, row = shape_.copy_w * c;
    const int64_t kept = std::min(p_.w.in * c, row - left);
    parallel_(p_.n * p_.h.in, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        A* out = work_.copy + i * row;
        std::fill_n(out, left, A(0));
        widen_run(x + i * p_.w.in * c, kept, out + left);
        std::fill(out + left + kept, out + row, A(0));
      }
    });
  }

  template <class S>
  static void widen_run(const S* in, int64_t count, A* out) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(out + i, load(in + i));
    if (i < count) store(out + i, load(in + i, static_cast<int>(count - i)), static_cast<int>(count - i));
  }

  template <class S>
  void run_phase(const Phase& phase, const Source<S>& source) {
    const int64_t pixels = p_.n * phase.grid(), panels = p_.groups * shape_.panels;
    const int64_t strips = ceil_div(pixels, shape_.strip);
    if (!pixels) return;
    const Split chunks = split(strips, panels, parallel_.threads(), p_.w_elements() > p_.x_elements());
    const bool shared = chunks.strips > 1;
    if (shared)
      parallel_(panels, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) pack(phase, i, work_.packed + i * shape_.panel_size);
      });
    Phase table = phase;
    if (shape_.merged) {
      table.w.taps = 1;
      if (shape_.copy_w) table.w.first = 0, table.w.source_size = shape_.copy_w;
    }
    parallel_(chunks.strips * chunks.panels, [&](int64_t begin, int64_t end, int thread) {
      Arena arena(work_.threads + thread * work_.thread_bytes);
      const Private<T> own(arena, shape_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t m = task % chunks.strips, k = task / chunks.strips;
        const int64_t last_panel = (k + 1) * panels / chunks.panels;
        for (int64_t panel = k * panels / chunks.panels; panel < last_panel; panel += shape_.group_panels) {
          const int64_t count = std::min(shape_.group_panels, last_panel - panel);
          const A* packed = work_.packed + panel * shape_.panel_size;
          if (!shared) {
            packed = own.packed;
            for (int64_t i = 0; i < count; ++i) pack(phase, panel + i, own.packed + i * shape_.panel_size);
          }
          for (int64_t s = m * strips / chunks.strips; s < (m + 1) * strips / chunks.strips; ++s)
            run_strip(table, source, own, s * pixels / strips, (s + 1) * pixels / strips, panel, count, packed);
        }
      }
    });
  }

  int64_t panel_columns(int64_t panel) const {
    return std::min(shape_.width, shape_.columns - panel % shape_.panels * shape_.width);
  }
  int panel_vectors(int64_t panel) const { return static_cast<int>(ceil_div(panel_columns(panel), lanes)); }

  void pack(const Phase& phase, int64_t panel, A* out) const {
    if (!phase.taps()) return;
    const bool dgrad = p_.pass == Pass::dgrad;
    const int64_t *stride = args_.w_stride, group = panel / shape_.panels;
    Filter<T> f;
    f.column = dgrad ? stride[1] : stride[0], f.depth = dgrad ? stride[0] : stride[1];
    f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = p_.h.window, f.window_w = p_.w.window;
    f.w = static_cast<const T*>(args_.w) + group * p_.filters_per_group() * stride[0] +
          panel % shape_.panels * shape_.width * f.column;
    pack_panel(f, phase, shape_.depth, panel_columns(panel), panel_vectors(panel) * lanes, out);
  }

  // Fills the table of the pixels [begin, end) of the phase's grid over all images.
  template <class S>
  void locate(const Phase& phase, const Source<S>& source, const Private<T>& own, int64_t begin, int64_t end) const {
    const AxisPhase &h = phase.h, &w = phase.w;
    const S** rows = reinterpret_cast<const S**>(own.rows);
    const S* zeros = reinterpret_cast<const S*>(work_.zeros);
    const int64_t count = end - begin;
    int64_t n = begin / phase.grid(), i = begin % phase.grid() / w.grid, j = begin % w.grid;
    for (int64_t m = 0; m < count; ++m) {
      own.pixel[m] = (n * h.out_size + h.out_first + i * h.out_step) * w.out_size + w.out_first + j * w.out_step;
      const int64_t y0 = i * h.step + h.first, x0 = j * w.step + w.first;
      const S** row = rows + m;
      for (int64_t a = 0; a < h.taps; ++a) {
        const int64_t y = y0 + a * h.tap_step;
        const bool inside = y >= 0 && y < h.source_size;
        const int64_t at = n * source.image + y * source.row;
        for (int64_t b = 0; b < w.taps; ++b, row += count) {
          const int64_t x = x0 + b * w.tap_step;
          *row = inside && x >= 0 && x < w.source_size ? source.base + at + x * source.pixel : zeros;
        }
      }
      if (++j == w.grid) {
        j = 0;
        if (++i == h.grid) i = 0, ++n;
      }
    }
  }

  // Copies one group's channels of the located rows into the stage.
  template <class S>
  void stage(const Private<T>& own, int64_t rows, int64_t offset) const {
    const S* const* from = reinterpret_cast<const S* const*>(own.rows);
    const S* zeros = reinterpret_cast<const S*>(work_.zeros);
    for (int64_t i = 0; i < rows; ++i) {
      if (from[i] == zeros) {
        own.staged[i] = work_.zeros;
      } else {
        A* copy = own.stage + i * shape_.stage_stride;
        widen_run(from[i] + offset, shape_.run, copy);
        own.staged[i] = copy;
      }
    }
  }

  template <class S>
  void run_strip(const Phase& phase, const Source<S>& source, const Private<T>& own, int64_t begin, int64_t end,
                 int64_t first_panel, int64_t panels, const A* packed) const {
    const int count = static_cast<int>(end - begin);
    locate(phase, source, own, begin, end);
    Tile<A> tile;
    tile.taps = phase.taps(), tile.run = shape_.run;
    tile.residual = nullptr;
    tile.clamped = clamped_, tile.low = 0, tile.high = high_;
    if constexpr (std::is_same_v<T, A>) {
      if (direct_) {
        for (int i = 0; i < count; ++i) own.out[i] = tail_.out + tail_.out_at(0, 0, own.pixel[i]);
        if (tail_.residual) {
          for (int i = 0; i < count; ++i) own.residual[i] = tail_.residual + tail_.residual_at(0, 0, own.pixel[i]);
          tile.residual = own.residual;
        }
      }
    }
    if (!direct_)
      for (int i = 0; i < count; ++i) own.out[i] = own.tile + i * shape_.width;
    tile.out = own.out;
    int64_t staged_group = -1;
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel, packed += shape_.panel_size) {
      const int64_t group = panel / shape_.panels, columns = panel_columns(panel);
      const int64_t channel = group * shape_.columns + panel % shape_.panels * shape_.width;
      const int vectors = panel_vectors(panel);
      tile.offset = group * shape_.depth;
      if (shape_.staged) {
        if (group != staged_group) stage<S>(own, tile.taps * count, tile.offset);
        staged_group = group, tile.offset = 0;
        tile.rows = own.staged;
      } else {
        tile.rows = reinterpret_cast<const A* const*>(own.rows);
      }
      tile.weights = packed, tile.start = work_.start + panel * shape_.width;
      tile.out_offset = direct_ ? channel : 0, tile.residual_offset = channel;
      tile.last = direct_ ? static_cast<int>(columns - (vectors - 1) * lanes) : lanes;
      tile_function<A>(count, vectors)(tile);
      if (direct_) continue;
      for (int i = 0; i < count; ++i)
        for (int64_t c = 0; c < columns; c += lanes)
          tail_.put_channels(0, channel + c, own.pixel[i], load(own.out[i] + c),
                             static_cast<int>(std::min<int64_t>(lanes, columns - c)));
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<T> shape_;
  Tail<T> tail_;
  Arena arena_;
  const Work<T> work_;
  bool direct_, clamped_;
  A high_;
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout != Layout::nhwc) return "The layout is nchw: the channels of a pixel must lie together.";
  const int64_t columns = p.written_channels() / p.groups;
  if (p.groups > 1 && columns == 1)
    return "Each of the " + std::to_string(p.groups) +
           " groups writes 1 channel: a register holds consecutive channels.";
  return {};
}

int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Work<T>(arena, p, Shape<T>(p), threads);
  });
  return arena.used();
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Igemm<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

extern const KernelBody conv2d_fprop_igemm{refuses, workspace, run};
extern const KernelBody conv2d_dgrad_igemm{refuses, workspace, run};

}  // namespace fastconv::FASTCONV_ISA
