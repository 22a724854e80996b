// fprop and dgrad of NCHW tensors: a matrix product whose right side, the im2col matrix, is made from the planes a
// block at a time and never exists as a whole. Result rows are channels, so every store runs along pixels.
//
// Tile: 14 channels x 32 pixels (AVX-512), 6 x 16 (AVX2). The filter is packed once a call, [panel][C·R·S][14]. Three
// ways to the right side (im2col_cut.h chooses, from the problem and the caches):
//   staged  several taps, strides 1 and 2, rows that fill their registers: the source rows of a few output rows are
//           copied once, padded and cut by residues, and a table of offsets tells the tile where each tap lies
//   whole   up to about a thousand products a sum: columns are packed a quarter of L2 at a time, and one filter panel
//           after the other, in L1, passes over them; sums stay in registers from the first product to the last
//   blocks  deeper sums: a depth block of 128 pixels at a time, with the partial sums in L2
// Where there are few pixels the columns are packed first, by all threads, and the tasks split the filters instead.
// Without an epilogue, and in the type of the sums, the tile stores the result itself: a copy through a buffer stalls
// on its burst of store misses (24->144@56 took 1.08 ms with it and takes 0.89). dgrad of stride 1 is the same
// product with the filter transposed and its taps turned round (walk.h).
//
// Zen 4, 2 threads, batch 8, f32, result preallocated, lower decile, 2026-11-22, ms before / now / torch NCHW / torch
// channels_last, AVX-512: 1x1 64->384@14 0.49 0.38 0.45 0.39 · 384->64@14 0.46 0.39 0.46 0.38 · 96->576@14 1.19 0.86
// 0.97 0.90 · 32->192@28 0.81 0.40 0.50 0.40 · 144->24@56 1.52 1.12 1.75 1.12 · 24->144@56 2.23 0.89 10.5 0.87; stems
// 3x3/2 2.37 0.92 1.10 0.90, 7x7/2 (batch 2) 4.62 2.18 2.20 2.12. 960->320@7 1.89 1.59 1.49 1.81 and 320->1280@7 2.40
// 2.09 1.76 2.14 still lose to torch's NCHW, though the machine was a fifth slower in those minutes than in others, in
// which they take 1.24 and 1.66. So does 3x3/2 128@56 (batch 2), 2.98 2.98 2.29 2.15. AVX2 against
// torch held to AVX2, now / NCHW / channels_last: 96->576@14 0.85 0.92 0.82 · 960->320@7 1.33 1.27 1.25 · 32->192@28
// 0.38 – 0.40 · 144->24@56 1.01 1.56 0.91 · 24->144@56 0.88 10.7 0.89 · stems 0.99 1.27 0.88, 2.13 2.23 2.63. A dash:
// the allocator spoilt the figure.
//
// What it took: sums in registers instead of in L2 (32->192@28 0.82 to 0.45), equal
// shares for the threads, packing a channel of a whole block at a time, so that memory is read in order
// (144->24@56 1.51 to 1.14, of which a single thread spends 0.5 packing), staged rows (7x7 stem 2.9 to 2.5), direct
// stores (3x3 stem 1.54 to 0.92).
//
// Bytes moved: x once, the filter twice, y once. Loses where an epilogue follows a
// shallow product, since that goes through the buffer; to the direct rows where a group has few channels.
#include "im2col_cut.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace im2col;

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

  // `channels` channels from `first` on of rows [row0, row0 + rows); dst is the panel's.
  void pack(int64_t g, int64_t row0, int64_t rows, int64_t first, int64_t channels, int64_t taps, int64_t taps_h,
            A* dst) const {
    const T* base = w + g * group + row0 * row + first * channel;
    const int64_t taps_w = taps / taps_h;
    dst += first * taps * rows;
    const bool dense_taps = s == 1 && r == taps_w;
    if (dense_taps && channel == taps) return transpose(base, row, rows, channels * taps, dst, rows);
    if (taps == 1 && row == 1) {
      for (int64_t c = 0; c < channels; ++c, base += channel, dst += rows)
        for (int64_t i = 0; i < rows; i += Vec<A>::lanes) {
          const int left = static_cast<int>(std::min<int64_t>(Vec<A>::lanes, rows - i));
          store(dst + i, load(base + i, left), left);
        }
      return;
    }
    if (taps == 1 && channel == 1) return transpose(base, row, rows, channels, dst, rows);
    if (dense_taps && row >= taps) {
      for (int64_t c = 0; c < channels; ++c)
        transpose(base + c * channel, row, rows, taps, dst + c * taps * rows, rows);
      return;
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t tr = 0; tr < taps_h; ++tr)
        for (int64_t ts = 0; ts < taps_w; ++ts) {
          const T* tap = base + c * channel + tr * r + ts * s;
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

  Walk h() const { return cut.dgrad ? dgrad_walk(p.h, 0) : fprop_walk(p.h); }
  Walk w() const { return cut.dgrad ? dgrad_walk(p.w, 0) : fprop_walk(p.w); }

  Columns<T> source_of(int64_t g) const {
    const int64_t plane = cut.dgrad ? p.out_pixels() : p.in_pixels(), all = cut.channels * p.groups;
    return {h(), w(), source + g * cut.channels * plane, all * plane, plane};
  }

  A* filter_of(int64_t g) const { return packed + g * cut.rows * cut.max_depth; }

  // fprop reads a panel as long runs. dgrad, whose rows lie together, takes some channels of all panels at a time: a
  // panel at a time would take a short piece of each of many pages.
  void pack_filters(const Parallel& parallel) const {
    const int64_t some = cut.dgrad ? packed_at_once : cut.channels, parts = divide_up(cut.channels, some);
    const int64_t together = cut.dgrad ? panels.count : 1, tasks = panels.count / together;
    parallel(p.groups * parts * tasks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % parts, g = i / parts % p.groups, first = i / parts / p.groups * together;
        const int64_t channel = part * some, count = std::min(some, cut.channels - channel);
        for (int64_t panel = first; panel < first + together; ++panel) {
          const int64_t row = panel * panels.height, rows = panels.rows(panel);
          filter.pack(g, row, rows, channel, count, p.taps(), p.h.window, filter_of(g) + row * cut.max_depth);
        }
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
        const Columns<T> from = source_of(g);
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
    const Columns<T> from = source_of(g);
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
    const A* left = filter_of(g) + row * stage.depth;
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
                  g = i / cut.row_blocks / cut.blocks;
    const Columns<T> from = source_of(g);
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
                      filter_of(g),
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
        tile(k.depth, k.left + row * k.depth, height, right, wide, to.sums, to.step, false, Ahead::none(right));
        if (to.sums == k.sums) put(k.from, k.g * cut.rows + row, height, k.f0 + f, count, k.sums, columns);
      }
    }
  }

  // Where a tile leaves its sums: the result itself where nothing is left to be done with them.
  struct Target {
    A* sums;
    int64_t step;
  };
  bool in_place() const { return std::is_same_v<T, A> && plain(); }
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
                                                    d > 0, Ahead::none(right));
        }
      }
    }
    const int64_t row0 = k.first * panels.height;
    const int64_t rows = (k.last - 1) * panels.height + panels.rows(k.last - 1) - row0;
    put(k.from, k.g * cut.rows + row0, rows, k.f0, k.pixels, k.sums, sum_step);
  }

  // Columns [f0, f0 + count) of `rows` result rows, an image at a time.
  void put(const Columns<T>& from, int64_t channel, int64_t rows, int64_t f0, int64_t count, const A* sums,
           int64_t step) const {
    const int64_t pixels = from.pixels();
    for (int64_t f = 0; f < count;) {
      const int64_t n = (f0 + f) / pixels, at = (f0 + f) % pixels, length = std::min(count - f, pixels - at);
      for (int64_t row = 0; row < rows; ++row) put_whole(n, channel + row, at, length, sums + row * step + f);
      f += length;
    }
  }

  bool plain() const { return !tail.bias && !tail.residual && tail.activation == Activation::none; }

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
  if (p.is_one_pixel() && p.groups == 1) return "The one pixel lies alike in both layouts: there is nothing to unfold.";
  if (p.pass == Pass::dgrad && (p.h.stride > 1 || p.w.stride > 1))
    return "The stride is " + std::to_string(p.h.stride) + "x" + std::to_string(p.w.stride) +
           ": the result falls into as many phases.";
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

// Columns are written and read once, the filter is packed, and sums go to memory once.
Cost cost(const Problem& p, int) {
  const double element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  const double pixels = double(p.pass == Pass::dgrad ? p.x_elements() / p.c : p.y_elements() / p.k);
  const double depth = p.flops() / (2 * pixels * double(p.written_channels()));  // of one sum
  // dgrad of narrow groups takes twice as long as fprop (Zen 4, 4 to 16 channels a group, 2026-11-22).
  constexpr int64_t narrow = 32;
  const bool slow =
      p.groups > 1 && p.pass == Pass::dgrad && std::max(p.channels_per_group(), p.filters_per_group()) <= narrow;
  constexpr double slow_pace = 2.5;
  Cost cost;
  cost.flops = p.flops() * (slow ? slow_pace : 1);
  cost.moved = 2 * element * (pixels * depth * double(p.groups) + double(p.w_elements())) +
               element * pixels * double(p.written_channels());
  cost.memory = p.bytes();
  return cost;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype,
             [&](auto* t) { Product<std::remove_pointer_t<decltype(t)>>(p, args, parallel.threads()).run(parallel); });
}

}  // namespace

extern const KernelBody conv2d_fprop_im2col{refuses, workspace, run, cost};
extern const KernelBody conv2d_dgrad_im2col{refuses, workspace, run, cost};

}  // namespace fastconv::FASTCONV_ISA
