// Implicit GEMM, NHWC in place: fprop, and dgrad of stride 1, which is fprop with the taps turned round (phase.h).
//
// Output pixels are cut into strips of up to 14 (AVX-512) or 6 (AVX2) pixels, output channels into panels of two
// vectors; the register tile (microkernel.h) computes one strip x panel over all taps and channels. Where a strip reads
// is a table of row pointers, [tap][pixel], with one zero row for the padding: nothing is unfolded. The filter is
// packed once a call (pack.h).
//
// Blocking: panels that fill half of L2 stay there while the strips pass; a strip's rows come from L1 or L2. Deep
// filters are cut into chunks of depth, so that eight panels fit; the sums of the chunks before wait in the result.
// Threads split the strips, or the panels where the filter is the larger operand: then each packs its own panels just
// before use, and they never leave its L2. Every sum runs over chunks, taps and channels in one fixed order, so the
// split does not show. Chunks: 512@14 3x3/2 batch 8 122 -> 186 GFLOP/s on two threads (torch 178 and 191 in the same
// runs), 2048->512@7 176 -> 194 (torch 140); at 1024->256@14 the tile has 90 % of the time and runs at 96 % of its
// limit.
//
// 16-bit types, and rows so far apart that a strip falls into one L1 set, are staged: the strip's rows are copied
// (widened) into a private scratch. Rows that just fill the ways of their sets are not: staging them cost 4 % more than
// it saved (256@28 3x3/2).
// Results larger than the last cache pass it by (simd/stream.h): no line of them is read before it is written.
// 16->96@112 at batch 8, 38 MB, took 3.5 and then 2.1 ms (AVX2 3.6 and 2.5; Zen 4, 2026-11-22).
//
// Measured on one core (Zen 4, 2 cores, 2026-11-22, f32, batch 1, processor time on a shared machine, KCRS weights
// packed in every call; GFLOP/s with AVX-512 / AVX2 / the better of torch's two layouts): 3x3 64@56 99/104/102, 3x3
// 256@14 98/97/88, 3x3 512@7 79/76/54, 1x1 64->256@56 89/89/69, 1x1 2048->512@7 79/77/71. It loses
// to torch's direct kernel on large 3x3 maps (0.91-0.98x for vgg16's 112x112 and 56x56), where Winograd takes over. The
// tile alone reaches 94 to 96 % of the measured multiply-add rate from L1 and L2; what is missing goes to staging,
// tables and stores.
#include <algorithm>
#include <type_traits>

#include "cpu/epilogue.h"
#include "ending.h"
#include "igemm_shape.h"
#include "pack.h"
#include "row_table.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace igemm;

Phase phase_of(const Problem& p) {
  if (p.pass == Pass::dgrad) return {dgrad_axis(p.h, 0), dgrad_axis(p.w, 0)};
  return {fprop_axis(p.h), fprop_axis(p.w)};
}

// How the tiles are shared out: chunks of strips x chunks of panels.
struct Split {
  int64_t strips, panels;
};

Split split(int64_t strips, int64_t panels, int threads, bool filter_is_larger) {
  if (threads == 1) return {1, 1};
  const int64_t by_strips = divide_up(strips, threads) * panels, by_panels = divide_up(panels, threads) * strips;
  if (by_panels < by_strips || (filter_is_larger && by_panels == by_strips))
    return {1, std::min<int64_t>(panels, threads)};
  const int64_t chunks = std::min<int64_t>(strips, threads);
  return {chunks, std::min(panels, divide_up(threads, chunks))};
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
        ending_(p, tail_, shape_.columns),
        arena_(args.workspace),
        work_(arena_, p, shape_, parallel.threads()) {
    std::fill_n(work_.zeros, shape_.zeros(), A(0));
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t i = 0; i < shape_.panels * shape_.width; ++i)
        work_.start[g * shape_.panels * shape_.width + i] =
            tail_.bias && i < shape_.columns ? widen(tail_.bias[g * shape_.columns + i]) : A(0);
    tail_.bias = nullptr;  // the sums start from it
    tail_.nhwc = true;     // or one pixel, where both layouts are the same
  }

  void run() {
    const T* source = static_cast<const T*>(p_.pass == Pass::dgrad ? args_.y : args_.x);
    std::iota(work_.slot, work_.slot + shape_.filter_taps, int64_t{0});
    const Phase phase = phase_of(p_);
    const int64_t row = phase.w.source_size * shape_.channels;
    run_phase(phase, Source<T>{source, phase.h.source_size * row, row, shape_.channels});
  }

 private:
  // Threads share the panels, or the depths of all panels where a filter's columns lie together.
  void pack_all() const {
    const int64_t panels = p_.groups * shape_.panels, parts = divide_up(shape_.depth, packed_at_once);
    if (p_.pass == Pass::dgrad)
      return parallel_(parts, [&](int64_t begin, int64_t end, int) { pack_panels(0, panels, part(begin, end)); });
    parallel_(panels * parts, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i = (i / parts + 1) * parts)
        pack_panels(i / parts, i / parts + 1, part(i % parts, i % parts + std::min(end - i, parts - i % parts)));
    });
  }

  // Depths of the parts [begin, end) of packed_at_once depths.
  Depths part(int64_t begin, int64_t end) const {
    return {begin * packed_at_once, std::min(end * packed_at_once, shape_.depth)};
  }

  // Some depths of the panels [first, last), each chunk to its place among all.
  void pack_panels(int64_t first, int64_t last, const Depths& some) const {
    for (int64_t i = some.begin / shape_.chunk; i * shape_.chunk < some.end; ++i) {
      const Depths chunk = shape_.depths(i);
      pack_panels(first, last, chunk, {std::max(some.begin, chunk.begin), std::min(some.end, chunk.end)},
                  place(first, chunk));
    }
  }

  // Where a chunk of a panel lies among all.
  A* place(int64_t panel, const Depths& chunk) const {
    return work_.packed + p_.groups * shape_.panels * shape_.panel_elements({0, chunk.begin}) +
           panel * shape_.panel_elements(chunk);
  }

  // Some depths of one chunk of the panels [first, last), which lie one behind the other.
  void pack_panels(int64_t first, int64_t last, const Depths& chunk, const Depths& some, A* out) const {
    const int64_t step = p_.pass == Pass::dgrad ? packed_at_once : some.count();
    for (int64_t d = some.begin; d < some.end; d += step)
      for (int64_t panel = first; panel < last; ++panel)
        pack(panel, chunk, {d, std::min(d + step, some.end)}, out + (panel - first) * shape_.panel_elements(chunk));
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
    const int64_t strips = divide_up(pixels, shape_.strip);
    if (!pixels) return;
    const Split chunks = split(strips, panels, parallel_.threads(), p_.w_elements() > p_.x_elements());
    const bool shared = chunks.strips > 1, whole = p_.pass == Pass::dgrad && shape_.chunks() == 1;
    if (shared) pack_all();
    Phase table = phase;
    if (shape_.merged) {
      table.w.taps = 1;
    }
    parallel_(chunks.strips * chunks.panels, [&](int64_t begin, int64_t end, int thread) {
      Arena arena(work_.threads + thread * work_.thread_bytes);
      const Private<T> own(arena, shape_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t m = task % chunks.strips, k = task / chunks.strips;
        const int64_t first_panel = k * panels / chunks.panels, last_panel = (k + 1) * panels / chunks.panels;
        if (!shared && whole) pack_panels(first_panel, last_panel, shape_.depths(0));
        for (int64_t panel = first_panel; panel < last_panel; panel += shape_.group_panels) {
          const int64_t end_panel = std::min(panel + shape_.group_panels, last_panel);
          for (int64_t c = 0; c < shape_.chunks(); ++c) {
            const Depths chunk = shape_.depths(c);
            A* packed = shared || whole ? place(panel, chunk) : own.packed;
            if (packed == own.packed) pack_panels(panel, end_panel, chunk, chunk, packed);
            for (int64_t s = m * strips / chunks.strips; s < (m + 1) * strips / chunks.strips; ++s)
              run_strip(table, source, own, s * pixels / strips, (s + 1) * pixels / strips, panel, end_panel, chunk,
                        packed);
          }
        }
      }
      if (ending_.stream) finish_streams();
    });
  }

  int64_t panel_columns(int64_t panel) const {
    return std::min(shape_.width, shape_.columns - panel % shape_.panels * shape_.width);
  }
  int panel_vectors(int64_t panel) const { return static_cast<int>(divide_up(panel_columns(panel), lanes)); }

  void pack(int64_t panel, const Depths& chunk, const Depths& part, A* out) const {
    const bool dgrad = p_.pass == Pass::dgrad;
    const int64_t *stride = args_.w_stride, group = panel / shape_.panels;
    Filter<T> f;
    f.column = dgrad ? stride[1] : stride[0], f.depth = dgrad ? stride[0] : stride[1];
    f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = p_.h.window, f.window_w = p_.w.window;
    f.w = static_cast<const T*>(args_.w) + group * p_.filters_per_group() * stride[0] +
          panel % shape_.panels * shape_.width * f.column + chunk.begin * f.depth;
    pack_panel(f, work_.slot, chunk.count(), part.begin - chunk.begin, part.end - chunk.begin, panel_columns(panel),
               panel_vectors(panel) * lanes, out);
  }

  // Copies one group's channels of the located rows into the stage.
  template <class S>
  void stage(const Private<T>& own, int64_t rows, int64_t offset, int64_t run) const {
    const S* const* from = reinterpret_cast<const S* const*>(own.rows);
    const S* zeros = reinterpret_cast<const S*>(work_.zeros);
    for (int64_t i = 0; i < rows; ++i) {
      if (from[i] == zeros) {
        own.staged[i] = work_.zeros;
      } else {
        A* copy = own.stage + i * shape_.stage_stride;
        widen_run(from[i] + offset, run, copy);
        own.staged[i] = copy;
      }
    }
  }

  template <class S>
  void run_strip(const Phase& phase, const Source<S>& source, const Private<T>& own, int64_t begin, int64_t end,
                 int64_t first_panel, int64_t end_panel, const Depths& chunk, const A* packed) const {
    const int count = static_cast<int>(end - begin);
    locate<S>(phase, source, reinterpret_cast<const S*>(work_.zeros), begin, end, reinterpret_cast<const S**>(own.rows),
              own.pixel);
    PixelTile<A> tile;
    tile.taps = phase.taps(), tile.run = shape_.merged ? shape_.run : chunk.count();
    tile.residual = nullptr;
    const bool ends = chunk.end == shape_.depth, direct = ending_.direct || !ends;
    ending_.mark(tile);
    if (!ends) tile.clamped = tile.stream = false;
    if constexpr (std::is_same_v<T, A>) {
      for (int i = 0; i < count; ++i) own.result[i] = tail_.out + tail_.out_at(0, 0, own.pixel[i]);
      if (chunk.begin > 0) tile.sums = own.result;
      if (direct && ends && tail_.residual) {
        for (int i = 0; i < count; ++i) own.residual[i] = tail_.residual + tail_.residual_at(0, 0, own.pixel[i]);
        tile.residual = own.residual;
      }
    }
    for (int i = 0; i < count; ++i) own.out[i] = own.tile + i * shape_.width;
    tile.out = direct ? own.result : own.out;
    // The next strip's own pixels follow the last one that this strip reads.
    const int64_t rows_here = tile.taps * count, pixel_bytes = source.pixel * static_cast<int64_t>(sizeof(S));
    const int64_t next = count * phase.w.step * (phase.w.grid <= count ? phase.h.step : 1);
    const int64_t channels = shape_.chunks() > 1 ? chunk.count() : shape_.channels;
    Ahead ahead{nullptr, divide_up(channels * static_cast<int64_t>(sizeof(S)), cache_line), pixel_bytes};
    if (rows_here) {
      ahead.at = static_cast<const char*>(own.rows[rows_here - 1]) + chunk.begin * static_cast<int64_t>(sizeof(S));
      tile.ahead = &ahead;
      tile.ahead_lines = divide_up(next * ahead.lines, (end_panel - first_panel) * tile.taps);
    }
    int64_t staged_group = -1;
    for (int64_t panel = first_panel; panel < end_panel; ++panel, packed += shape_.panel_elements(chunk)) {
      const int64_t group = panel / shape_.panels, columns = panel_columns(panel);
      const int64_t channel = group * shape_.columns + panel % shape_.panels * shape_.width;
      const int vectors = panel_vectors(panel);
      tile.offset = group * shape_.depth + chunk.begin;
      if (shape_.staged) {
        if (group != staged_group) stage<S>(own, tile.taps * count, tile.offset, tile.run);
        staged_group = group, tile.offset = 0;
        tile.rows = own.staged;
      } else {
        tile.rows = reinterpret_cast<const A* const*>(own.rows);
      }
      tile.weights = packed;
      tile.start = chunk.begin > 0 ? work_.zeros : work_.start + panel * shape_.width;
      tile.out_offset = direct ? channel : 0, tile.channel = channel;
      tile.last = static_cast<int>(columns - (vectors - 1) * lanes);
      tile_function<A>(count, vectors)(tile);
      if (direct) continue;
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
  const Ending<T> ending_;
  Arena arena_;
  const Work<T> work_;
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout != Layout::nhwc && !p.is_one_pixel())
    return "The layout is nchw: the channels of a pixel must lie together.";
  if (p.pass == Pass::dgrad && (p.h.stride > 1 || p.w.stride > 1))
    return "The stride is " + std::to_string(p.h.stride) + "x" + std::to_string(p.w.stride) +
           ": the result falls into as many phases.";
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

// Products over whole registers; the filter is read and written once by packing, the results once, and the source once
// more for each group of panels after the first.
Cost cost(const Problem& p, int threads) {
  Cost cost;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Shape<T> s(p);
    const double element = sizeof(arithmetic<T>), width = double(round_up(s.columns, s.lanes) * p.groups);
    const Phase phase = phase_of(p);
    const int64_t pixels = p.n * phase.grid(), strips = divide_up(pixels, s.strip), panels = p.groups * s.panels;
    const Split chunks = split(strips, panels, threads, p.w_elements() > p.x_elements());
    // Groups of one register: 28 rows of few channels leave little between the loads of their pointers, and run at
    // half the rate (Zen 4, 4 to 16 channels a group, 2026-11-22).
    const double pace = p.groups > 1 && s.vectors == 1 ? 2 : 1;
    cost.flops = 2.0 * double(pixels * phase.taps() * s.depth) * width * pace;
    const int64_t tasks = divide_up(chunks.strips * chunks.panels, threads);
    cost.imbalance = double(tasks * threads * divide_up(strips, chunks.strips) * divide_up(panels, chunks.panels)) /
                     double(strips * panels);
    cost.moved = element * double(pixels) * width;
    const double filter = double(p.groups * s.panels * s.panel_elements({0, s.depth}));
    cost.moved += 2 * element * double(s.chunks() - 1) * double(pixels) * width;
    const double source = double(p.pass == Pass::dgrad ? p.y_elements() : p.x_elements());
    cost.moved += 2 * element * (filter + (s.staged ? source * double(s.table_taps) : 0));
    cost.shared = element * source * double(divide_up(p.groups * s.panels, s.group_panels) - 1);
    cost.memory = p.bytes();
  });
  return cost;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Igemm<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

extern const KernelBody conv2d_fprop_igemm{refuses, workspace, run, cost};
extern const KernelBody conv2d_dgrad_igemm{refuses, workspace, run, cost};

}  // namespace fastconv::FASTCONV_ISA
