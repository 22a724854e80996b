// fprop and dgrad of NCHW tensors: a matrix product whose right side, the im2col matrix, is packed from the planes a
// block at a time and never exists as a whole. Result rows are channels, so every store runs along pixels.
//
// Tile: 14 channels x 32 pixels (AVX-512), 6 x 16 (AVX2). The filter is packed once a call, [panel][C·R·S][14]; a task
// packs depth blocks of 128 pixels into its share of L2 and runs down all filter panels. Where there are few pixels
// the columns are packed first, by all threads, and the tasks split the filters instead. dgrad is the same product with
// the filter transposed, one phase of the input at a time (walk.h): no zero is inserted, no sum is shared.
// Measured (Zen 4, one of 2 cores, AVX-512, f32, batch 1, 2026-11-22; the tile alone reaches 116 GFLOP/s): 3x3 128@28
// 104, 256@56 107, 512@7 63, 1x1 512->128@28 102, 7x7 stem 73; PyTorch's NCHW on the same layers 111, 114, 71, 97, 100.
// Stride-2 dgrad 61-78, limited by stores of single elements; C=3 at 224 by the stores of y, 42.
// Bytes moved: x once a pass through L2, the filter twice, y once.
// Loses to the igemm rows, which take channels_last, and to the direct rows where a group has few channels: packing
// costs one store an element, which C/g·K/g products must pay for.
#include "columns.h"
#include "core/machine.h"
#include "simd/transpose.h"
#include "staged_rows.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t column_panel_bytes = 40 << 10;  // of a depth block: leaves room in a 32 KiB L1 for a filter panel
constexpr int64_t block_bytes_a_row = 512;        // pixels of a task that cuts its depth: 128 floats
constexpr int64_t least_panels = 4;               // a filter panel passes over, or the depth is cut
constexpr int64_t staged_part = 4;                // of L2: what source rows may fill of it
constexpr int64_t rows_a_task = 512;              // result rows of a task: 256 KiB of sums
constexpr int64_t tasks_a_thread = 4;             // fewer, and the tasks become smaller
constexpr int64_t shared_columns_bytes = 16 << 20;
constexpr int64_t alignment = 64;

int64_t align(int64_t bytes) { return round_up(bytes, alignment); }

// What both passes share: sizes of the product, cut into panels, blocks and tasks.
struct Cut {
  bool dgrad;
  int64_t phases_w, phases;
  int64_t rows, channels;  // per group: result rows, and source channels
  int64_t taps;            // of the whole filter
  int64_t panels;          // of columns, of the largest phase
  int64_t depth_block, max_depth;
  int64_t block, row_panels;  // panels of columns and of rows a task has
  bool staged;                // source rows are copied instead of columns; blocks are output rows, not column panels
  bool whole;                 // sums run over the whole depth at once and never leave the first cache
  bool shared;                // columns packed first, for all tasks
  int64_t blocks, row_blocks, tasks;
  int64_t filter_bytes, shared_bytes, column_bytes, sum_bytes;  // of the workspace

  // At least `count` parts of `most`, so that with `others` of each the threads have equally many.
  static int64_t shared_out(int64_t count, int64_t most, int64_t others, int64_t threads) {
    if (count * others >= tasks_a_thread * threads) return count;
    while (count < most && count * others % threads) ++count;
    return std::min(count, most);
  }

  template <class A>
  static Cut of(const Problem& p, int threads) {
    constexpr int64_t columns = Tile<A>::columns;
    Cut c{};
    c.dgrad = p.pass == Pass::dgrad;
    c.phases_w = c.dgrad ? std::min(p.w.stride, p.w.in) : 1;
    c.phases = c.dgrad ? c.phases_w * std::min(p.h.stride, p.h.in) : 1;
    c.rows = c.dgrad ? p.channels_per_group() : p.filters_per_group();
    c.channels = c.dgrad ? p.filters_per_group() : p.channels_per_group();
    c.taps = p.taps();
    const Walk h = c.dgrad ? dgrad_walk(p.h, 0) : fprop_walk(p.h), w = c.dgrad ? dgrad_walk(p.w, 0) : fprop_walk(p.w);
    c.panels = divide_up(p.n * h.count * w.count, columns);
    c.max_depth = c.channels * c.taps;
    const RowPanels<A> filters(c.rows);
    const int64_t panel_bytes = std::max<int64_t>(1, columns * c.max_depth * int64_t{sizeof(A)});
    const int64_t held = machine().l2 / 2 / panel_bytes;  // panels
    c.staged = !c.dgrad && StagedRows<A>::suits(h, w, c.channels, c.rows, machine().l2 / staged_part);
    c.whole = c.staged || held >= least_panels;
    c.depth_block = c.whole ? c.max_depth : std::min(c.max_depth, column_panel_bytes / (columns * int64_t{sizeof(A)}));
    const int64_t wanted = tasks_a_thread * threads;
    const int64_t columns_bytes = p.groups * c.panels * panel_bytes;
    const int64_t most_blocks =
        c.whole ? std::max(least_panels, held / 2) : block_bytes_a_row / (columns * int64_t{sizeof(A)});
    c.shared = !c.staged && c.phases == 1 && filters.count > 1 && p.groups * c.panels < 2 * wanted && threads > 1 &&
               columns_bytes <= shared_columns_bytes;
    if (c.staged) return staged_rows<A>(p, c, h, w, filters.height, threads);
    const int64_t most_rows = c.whole ? filters.count : divide_up(rows_a_task, filters.height);
    c.blocks = divide_up(c.panels, c.shared ? 2 * most_blocks : most_blocks);
    c.row_blocks = divide_up(filters.count, most_rows);
    if (c.shared)
      c.row_blocks = shared_out(c.row_blocks, filters.count, p.groups * c.blocks, threads);
    else
      c.blocks = shared_out(c.blocks, c.panels, c.phases * p.groups * c.row_blocks, threads);
    c.block = divide_up(c.panels, c.blocks);
    c.row_panels = divide_up(filters.count, c.row_blocks);
    c.tasks = c.phases * p.groups * c.blocks * c.row_blocks;
    c.filter_bytes = align(p.groups * c.rows * c.max_depth * int64_t{sizeof(A)});
    c.shared_bytes = c.shared ? align(columns_bytes) : 0;
    c.column_bytes = c.shared ? 0 : align((c.whole ? c.block : 1) * c.depth_block * columns * int64_t{sizeof(A)});
    c.sum_bytes =
        align(c.whole ? filters.height * columns * int64_t{sizeof(A)}
                      : std::min(c.row_panels * filters.height, c.rows) * c.block * columns * int64_t{sizeof(A)});
    return c;
  }

  template <class A>
  static Cut staged_rows(const Problem& p, Cut c, const Walk& h, const Walk& w, int64_t height, int threads) {
    const StagedRows<A> rows(h, w, c.channels);
    c.panels = p.n * h.count;
    int64_t most = 1;
    while (most < h.count && rows.elements(most + 1) * int64_t{sizeof(A)} <= machine().l2 / staged_part) ++most;
    c.blocks = shared_out(divide_up(c.panels, most), c.panels, p.groups, threads);
    c.block = divide_up(c.panels, c.blocks);
    c.row_blocks = 1;
    c.tasks = p.groups * c.blocks;
    c.filter_bytes = align(p.groups * c.rows * c.max_depth * int64_t{sizeof(A)});
    c.column_bytes = align(rows.elements(std::min(c.block, h.count)) * int64_t{sizeof(A)}) +
                     align(c.max_depth * int64_t{sizeof(int64_t)});
    c.sum_bytes = align(height * Tile<A>::columns * int64_t{sizeof(A)});
    return c;
  }
};

// The filter as the product's left side: [panel][channel · taps + tap][row of the panel].
template <class T>
struct Filter {
  using A = arithmetic<T>;
  const T* w;
  int64_t group, row, channel, r, s;  // strides

  Filter(const Problem& p, const Args& a)
      : w(static_cast<const T*>(a.w)),
        group(p.filters_per_group() * a.w_stride[0]),
        row(a.w_stride[p.pass == Pass::dgrad ? 1 : 0]),
        channel(a.w_stride[p.pass == Pass::dgrad ? 0 : 1]),
        r(a.w_stride[2]),
        s(a.w_stride[3]) {}

  void pack(int64_t g, int64_t row0, int64_t rows, int64_t channels, const Walk& h, const Walk& v, A* dst) const {
    const T* base = w + g * group + row0 * row;
    const int64_t taps = h.taps * v.taps;
    const bool dense_taps =
        h.tap_step == 1 && v.tap_step == 1 && h.tap_first == 0 && v.tap_first == 0 && s == 1 && r == v.taps;
    if (dense_taps && channel == taps) return transpose(base, row, rows, channels * taps, dst, rows);
    if (taps == 1) base += h.tap_first * r + v.tap_first * s;
    if (taps == 1 && row == 1) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < rows; ++i) *dst++ = widen(base[c * channel + i]);
      return;
    }
    if (taps == 1 && channel == 1) return transpose(base, row, rows, channels, dst, rows);
    if (dense_taps && row >= taps) {
      for (int64_t c = 0; c < channels; ++c)
        transpose(base + c * channel, row, rows, taps, dst + c * taps * rows, rows);
      return;
    }
    const int64_t tap0 = taps == 1 ? 0 : h.tap_first * r + v.tap_first * s;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t tr = 0; tr < h.taps; ++tr)
        for (int64_t ts = 0; ts < v.taps; ++ts) {
          const T* tap = base + tap0 + c * channel + tr * h.tap_step * r + ts * v.tap_step * s;
          for (int64_t i = 0; i < rows; ++i) *dst++ = widen(tap[i * row]);
        }
  }
};

template <class T>
struct Product {
  using A = arithmetic<T>;
  static constexpr int64_t columns = Tile<A>::columns;

  const Problem& p;
  const Cut cut;
  const Tail<T> tail;
  const Filter<T> filter;
  const RowPanels<A> panels;
  const T* source;
  A* packed;
  A* shared;
  char* scratch;

  Product(const Problem& problem, const Args& args, int threads)
      : p(problem),
        cut(Cut::of<A>(problem, threads)),
        tail(problem, args),
        filter(problem, args),
        panels(cut.rows),
        source(static_cast<const T*>(cut.dgrad ? args.y : args.x)) {
    char* memory = static_cast<char*>(args.workspace);
    packed = reinterpret_cast<A*>(memory);
    shared = reinterpret_cast<A*>(memory + cut.filter_bytes);
    scratch = memory + cut.filter_bytes + cut.shared_bytes;
  }

  Walk h(int64_t phase) const { return cut.dgrad ? dgrad_walk(p.h, phase / cut.phases_w) : fprop_walk(p.h); }
  Walk w(int64_t phase) const { return cut.dgrad ? dgrad_walk(p.w, phase % cut.phases_w) : fprop_walk(p.w); }

  Columns<T> source_of(int64_t phase, int64_t g) const {
    const int64_t plane = cut.dgrad ? p.out_pixels() : p.in_pixels(), all = cut.channels * p.groups;
    return {h(phase), w(phase), source + g * cut.channels * plane, all * plane, plane};
  }

  // The packed filter of a phase: phases share out the taps, none has another's.
  A* filter_of(int64_t phase, int64_t g) const {
    int64_t before = 0;
    for (int64_t i = 0; i < phase / cut.phases_w; ++i) before += dgrad_walk(p.h, i).taps * p.w.window;
    for (int64_t i = 0; i < phase % cut.phases_w; ++i) before += h(phase).taps * dgrad_walk(p.w, i).taps;
    return packed + (g * cut.taps + before) * cut.rows * cut.channels;
  }

  void pack_filters(const Parallel& parallel) const {
    parallel(cut.phases * p.groups * panels.count, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i % panels.count, g = i / panels.count % p.groups, phase = i / panels.count / p.groups;
        const Walk vertical = h(phase), horizontal = w(phase);
        const int64_t taps = vertical.taps * horizontal.taps, row = panel * panels.height;
        if (taps)
          filter.pack(g, row, panels.rows(panel), cut.channels, vertical, horizontal,
                      filter_of(phase, g) + row * cut.channels * taps);
      }
    });
  }

  int64_t width(int64_t pixels) const { return std::min(columns, round_up(pixels, Vec<A>::lanes)); }

  A* shared_of(int64_t g, int64_t panel) const { return shared + (g * cut.panels + panel) * columns * cut.max_depth; }

  // Depth block by depth block, so that one task's columns are cut as the product reads them.
  void pack_shared(const Parallel& parallel) const {
    const int64_t depth_blocks = divide_up(cut.max_depth, cut.depth_block);
    parallel(p.groups * cut.panels * depth_blocks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t d = i % depth_blocks * cut.depth_block, panel = i / depth_blocks % cut.panels,
                      g = i / depth_blocks / cut.panels;
        const Columns<T> from = source_of(0, g);
        const int64_t f = panel * columns, count = std::min(columns, p.n * from.pixels() - f);
        from.pack(d, std::min(d + cut.depth_block, cut.max_depth), f, count, width(count),
                  shared_of(g, panel) + d * width(count));
      }
    });
  }

  // One task's share of the product: row panels [first, last) of columns [f0, f0 + pixels).
  struct Share {
    Columns<T> from;
    int64_t g, f0, pixels, first, last, depth;
    const A* left;
    A *columns, *sums;
  };

  // Output rows of one group; `i` counts blocks.
  void staged_task(int64_t i, int thread) const {
    const int64_t block = i % cut.blocks, g = i / cut.blocks, lines = p.h.out;
    const Columns<T> from = source_of(0, g);
    const StagedRows<T> stage(from.h, from.w, cut.channels);
    char* own = scratch + thread * (cut.column_bytes + cut.sum_bytes);
    int64_t* at = reinterpret_cast<int64_t*>(own);
    A* staged = reinterpret_cast<A*>(own + align(cut.max_depth * int64_t{sizeof(int64_t)}));
    A* sums = reinterpret_cast<A*>(own + cut.column_bytes);
    const int64_t end = (block + 1) * cut.panels / cut.blocks;
    int64_t located = 0;
    for (int64_t row = block * cut.panels / cut.blocks; row < end;) {  // the rows of one image at a time
      const int64_t n = row / lines, first = row % lines, rows = std::min(end - row, lines - first);
      if (located != rows) stage.locate(located = rows, at);
      stage.fill(from.source + n * from.image_step, from.plane, first, rows, staged);
      for (int64_t m = 0; m < panels.count; ++m)
        for (int64_t line = 0; line < rows; ++line)
          staged_line(stage, g, m, n, first + line, staged + line * stage.out_step(), at, sums);
      row += rows;
    }
  }

  // Filter panel m of output row `line`.
  void staged_line(const StagedRows<T>& stage, int64_t g, int64_t m, int64_t n, int64_t line, const A* staged,
                   const int64_t* at, A* sums) const {
    const int64_t height = panels.rows(m), row = m * panels.height, channel = g * cut.rows + row;
    const A* left = filter_of(0, g) + row * stage.depth;
    for (int64_t f = 0; f < p.w.out; f += columns) {
      const int64_t count = std::min(columns, p.w.out - f), wide = width(count), pixel = line * p.w.out + f;
      const Target to = in_place() && count == wide ? target(n, channel, pixel) : Target{sums, columns};
      indirect_tile_for<A>(height, wide / Vec<A>::lanes)(stage.depth, left, height, staged + f, at, to.sums, to.step);
      if (to.sums != sums) continue;
      for (int64_t i = 0; i < height; ++i) put_whole(n, channel + i, pixel, count, sums + i * columns);
    }
  }

  void task(int64_t i, int thread) const {
    if (cut.staged) return staged_task(i, thread);
    const int64_t row_block = i % cut.row_blocks, block = i / cut.row_blocks % cut.blocks,
                  g = i / cut.row_blocks / cut.blocks % p.groups, phase = i / cut.row_blocks / cut.blocks / p.groups;
    const Columns<T> from = source_of(phase, g);
    const int64_t all = p.n * from.pixels(), all_panels = divide_up(all, columns);
    const int64_t f0 = block * all_panels / cut.blocks * columns;
    const int64_t pixels = std::min(all, (block + 1) * all_panels / cut.blocks * columns) - f0;
    if (pixels <= 0) return;
    char* own = scratch + thread * (cut.column_bytes + cut.sum_bytes);
    const Share share{from,
                      g,
                      f0,
                      pixels,
                      row_block * panels.count / cut.row_blocks,
                      (row_block + 1) * panels.count / cut.row_blocks,
                      cut.channels * from.taps(),
                      filter_of(phase, g),
                      reinterpret_cast<A*>(own),
                      reinterpret_cast<A*>(own + cut.column_bytes)};
    cut.whole ? whole_depth(share) : by_depth(share);
  }

  // The block's columns lie packed in L2 while one filter panel after the other passes over them.
  void whole_depth(const Share& k) const {
    if (!cut.shared) k.from.pack_panels(cut.channels, k.f0, k.pixels, k.columns);
    const int64_t pixels = k.from.pixels();
    for (int64_t m = k.first; m < k.last; ++m) {
      const int64_t height = panels.rows(m), row = m * panels.height;
      for (int64_t f = 0; f < k.pixels; f += columns) {
        const int64_t count = std::min(columns, k.pixels - f), wide = width(count), at = (k.f0 + f) % pixels;
        const A* right = cut.shared ? shared_of(k.g, (k.f0 + f) / columns) : k.columns + f * k.depth;
        const auto tile = tile_for<A>(height, wide / Vec<A>::lanes);
        const Target to = in_place() && count == wide && at + count <= pixels
                              ? target((k.f0 + f) / pixels, k.g * cut.rows + row, at)
                              : Target{k.sums, columns};
        tile(k.depth, k.left + row * k.depth, height, right, wide, to.sums, to.step, false);
        if (to.sums == k.sums) put(k.from, k.g * cut.rows + row, height, k.f0 + f, count, k.sums, columns);
      }
    }
  }

  // Where a tile leaves its sums: the result itself where nothing is left to be done with them.
  struct Target {
    A* sums;
    int64_t step;
  };
  bool in_place() const { return std::is_same_v<T, A> && cut.phases == 1 && plain(); }
  Target target(int64_t n, int64_t channel, int64_t pixel) const {
    return {reinterpret_cast<A*>(tail.out + tail.out_at(n, channel, pixel)), tail.pixels};
  }

  // Deep sums: a block of the depth at a time, so that its columns stay in L1; the sums in L2.
  void by_depth(const Share& k) const {
    const int64_t sum_step = cut.block * columns;
    for (int64_t d = 0; d < k.depth; d += cut.depth_block) {
      const int64_t deep = std::min(cut.depth_block, k.depth - d);
      for (int64_t f = 0; f < k.pixels; f += columns) {
        const int64_t count = std::min(columns, k.pixels - f), wide = width(count);
        const A* right = k.columns;
        if (cut.shared)
          right = shared_of(k.g, (k.f0 + f) / columns) + d * wide;
        else
          k.from.pack(d, d + deep, k.f0 + f, count, wide, k.columns);
        for (int64_t m = k.first; m < k.last; ++m) {
          const int64_t height = panels.rows(m), row = m * panels.height;
          tile_for<A>(height, wide / Vec<A>::lanes)(deep, k.left + row * k.depth + d * height, height, right, wide,
                                                    k.sums + (row - k.first * panels.height) * sum_step + f, sum_step,
                                                    d > 0);
        }
      }
    }
    const int64_t row0 = k.first * panels.height;
    const int64_t rows = (k.last - 1) * panels.height + panels.rows(k.last - 1) - row0;
    if (k.depth == 0) std::memset(k.sums, 0, static_cast<size_t>(rows * sum_step) * sizeof(A));
    put(k.from, k.g * cut.rows + row0, rows, k.f0, k.pixels, k.sums, sum_step);
  }

  // Columns [f0, f0 + count) of `rows` result rows, an image at a time; a row of a phase at a time, channel by channel.
  void put(const Columns<T>& from, int64_t channel, int64_t rows, int64_t f0, int64_t count, const A* sums,
           int64_t step) const {
    if (cut.phases > 1) {
      for (int64_t row = 0; row < rows; ++row) put_phase(from, channel + row, f0, count, sums + row * step);
      return;
    }
    const int64_t pixels = from.pixels();
    for (int64_t f = 0; f < count;) {
      const int64_t n = (f0 + f) / pixels, at = (f0 + f) % pixels, length = std::min(count - f, pixels - at);
      for (int64_t row = 0; row < rows; ++row) put_whole(n, channel + row, at, length, sums + row * step + f);
      f += length;
    }
  }

  void put_phase(const Columns<T>& from, int64_t channel, int64_t f0, int64_t count, const A* sums) const {
    const int64_t pixels = from.pixels(), line = from.w.count;
    for (int64_t f = 0; f < count;) {
      const int64_t n = (f0 + f) / pixels, at = (f0 + f) % pixels, length = std::min(count - f, line - at % line);
      const int64_t row = from.h.start + at / line * from.h.step;
      put_line(n, channel, row * p.w.in + from.w.start + at % line * from.w.step, from.w.step, length, sums + f);
      f += length;
    }
  }

  bool plain() const { return !tail.bias && !tail.residual && tail.activation == Activation::none; }

  void put_line(int64_t n, int64_t channel, int64_t pixel, int64_t step, int64_t count, const A* sums) const {
    T* out = tail.out + tail.out_at(n, channel, pixel);
    for (int64_t i = 0; i < count; ++i) {
      if (plain())
        out[i * step] = narrow<T>(sums[i]);
      else
        tail.put(n, channel, pixel + i * step, sums[i]);
    }
  }

  void put_whole(int64_t n, int64_t channel, int64_t pixel, int64_t count, const A* sums) const {
    T* out = tail.out + tail.out_at(n, channel, pixel);
    for (int64_t i = 0; i < count; i += Vec<A>::lanes) {
      const int left = static_cast<int>(std::min<int64_t>(Vec<A>::lanes, count - i));
      if (plain())
        store(out + i, Vec<A>::load(sums + i), left);
      else
        tail.put_pixels(n, channel, pixel + i, Vec<A>::load(sums + i), left);
    }
  }

  void run(const Parallel& parallel) const {
    pack_filters(parallel);
    if (cut.shared) pack_shared(parallel);
    parallel(cut.tasks, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) task(i, thread);
    });
  }
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout == Layout::nhwc) return "The layout is nhwc, and this kernel reads planes.";
  return {};
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    const auto cut = Cut::of<arithmetic<std::remove_pointer_t<decltype(t)>>>(p, threads);
    bytes = cut.filter_bytes + cut.shared_bytes + threads * (cut.column_bytes + cut.sum_bytes) +
            Tile<float>::columns * int64_t{sizeof(double)};  // the last sums are read a whole register at a time
  });
  return bytes;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype,
             [&](auto* t) { Product<std::remove_pointer_t<decltype(t)>>(p, args, parallel.threads()).run(parallel); });
}

}  // namespace

extern const KernelBody conv2d_fprop_im2col{refuses, workspace, run};
extern const KernelBody conv2d_dgrad_im2col{refuses, workspace, run};

}  // namespace fastconv::FASTCONV_ISA
