// Input gradient of strided convolutions, which is the strided transposed convolution: NHWC and NCHW, by phases
// (phase.h).
//
// A phase is a product like any other: pixels of one residue class, the taps that reach them, the register tile of
// microkernel.h over a table of row pointers, the filter packed once a call. What the phases share is the source:
//   blocks  cells of the result (stride x stride pixels) are cut into blocks whose source rows fit a part of L2; all
//           phases pass over one block before the next, so that the source is read from memory once, not once a phase.
//   merged  where few channels would leave registers half empty, the residues of a row of cells are taken together:
//           they read the same pixels of the source, and their results lie side by side, so a row of a cell is one
//           pixel of stride_w · C channels (21 channels at stride 32: 672 columns, 21 full panels; depth is taps · K).
//           Taps behind the window are zeros. Where even a whole cell fits one register, so do its rows.
// Threads split the blocks, or the panels where the filter is the larger operand; every sum runs over taps and
// channels in one fixed order, so the split does not show.
//
// NCHW, 16-bit types and pixels that would fall into one L1 set are laid out anew as padded pixels, once a call: the
// source has far fewer pixels than the result. A block's rows of planes are computed as pixels in L2 and turned in
// registers.
//
// Zen 4, 2 threads, one image, f32, KCRS weights, result preallocated, medians, 2026-11-22. Time of the better of
// torch's two layouts over own time, before (igemm and im2col, one phase after the other) and now, each against torch
// in its own run; AVX-512, NHWC and NCHW:
//   2x2/2 1024->512@56       0.80 1.04, 0.87 0.94    3x3/2 dgrad 64@56, K=128    1.11 1.03, 0.47 0.92
//   2x2/2 512->256@104       0.94 0.95               3x3/2 dgrad 128@28, K=256   1.14 1.07, 0.46 0.98
//   2x2/2 128->64@392        1.97 2.06, 0.99 1.46    3x3/2 dgrad 256@14, K=512   1.42 0.94, 0.37 1.19
//   64x64/32 21->21@544      1.75 2.02, 1.23 2.47    7x7/2 dgrad 3@224, K=64     0.74 2.05, 1.24 1.82
//   16x16/8 21->21@568       0.91 1.38, 0.56 1.30    1x1/2 dgrad 256@56, K=512   1.11 0.88, 0.38 0.89
//   5x5/2 512->256@16        1.12 1.19, 0.72 1.12    5x5/2 128->3@64             0.85 1.73, 0.90 1.70
// Runs differ by a tenth, and torch's time for 256@14 by half (1.26 and 0.75 ms; own 0.88 and 0.80). With AVX2, now:
// 2x2/2 1024->512 0.98, 16x16/8 1.42, 5x5/2 128->3 2.45, 3x3/2 64@56 1.00, 0.93.
// Loses to torch's channels_last in NCHW where there is little to multiply (1x1/2 64@56, K=128, batch 8: 0.65; torch's
// NCHW takes 2.8 times as long as own): the turns cost as much as the products. 3x3/2 256@14 in NCHW with AVX2
// took 1.45 ms where torch's NCHW took 0.80, in a disturbed run.
#include <algorithm>
#include <type_traits>

#include "cpu/packed.h"
#include "ending.h"
#include "pack.h"
#include "phases_pack.h"
#include "phases_planes.h"
#include "row_table.h"

namespace fastconv::FASTCONV_ISA {

namespace {

using namespace phases;

// How the work is shared out: chunks of blocks x chunks of panels.
struct Split {
  int64_t blocks, panels;
};

template <class T>
Split split(const Problem& p, const Shape<T>& s, int threads) {
  if (threads == 1) return {1, 1};
  const int64_t blocks = s.block_count(p), panels = p.groups * s.panels;
  const int64_t by_blocks = divide_up(blocks, threads) * panels, by_panels = divide_up(panels, threads) * blocks;
  const bool filter_is_larger = p.w_elements() > p.y_elements(), whole_cells = s.planes && s.merged();
  if (!whole_cells && (by_panels < by_blocks || (filter_is_larger && by_panels == by_blocks)))
    return {1, std::min<int64_t>(panels, threads)};
  const int64_t chunks = std::min<int64_t>(blocks, threads);
  return {chunks, whole_cells ? 1 : std::min(panels, divide_up(threads, chunks))};
}

template <class T>
class Dgrad {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

 public:
  Dgrad(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        shape_(p, parallel.threads()),
        tail_(p, args),
        ending_(p, tail_, shape_.columns),
        arena_(args.workspace),
        work_(arena_, p, shape_, parallel.threads()),
        packed_(p.packed ? static_cast<const A*>(args.packed) : work_.packed) {
    std::fill_n(work_.zeros, shape_.channels, A(0));
    const int64_t padded = shape_.panels * shape_.width, per_group = p.channels_per_group();
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t i = 0; i < padded; ++i)
        work_.start[g * padded + i] =
            tail_.bias && i < shape_.columns ? widen(tail_.bias[g * per_group + i % per_group]) : A(0);
    tail_.bias = nullptr;  // the sums start from it
    if (shape_.planes || shape_.width_h > 1) ending_.direct = ending_.clamped = ending_.stream = false;
    list_phases();
  }

  // Every panel, as a packed problem reads them; zeros fill the last panel of a group.
  void pack(A* out) const {
    std::fill_n(out, shape_.filter_elements(p_), A(0));
    pack_all(out);
  }

  void run() {
    const T* source = static_cast<const T*>(args_.y);
    if (shape_.copied) {
      copy_source(p_, shape_, source, work_.copy, parallel_);
      source_.base = work_.copy;
    } else if constexpr (std::is_same_v<T, A>) {
      source_.base = source;
    }
    source_.pixel = shape_.pixel, source_.row = p_.w.out * shape_.pixel, source_.image = p_.h.out * source_.row;

    const int64_t panels = p_.groups * shape_.panels, blocks = shape_.block_count(p_);
    const Split chunks = split(p_, shape_, parallel_.threads());
    // A thread that has panels of its own packs them itself, and they stay in its caches.
    const bool own_panels = !p_.packed && chunks.blocks == 1 && !shape_.merged();
    if (!p_.packed && !own_panels) pack_all(work_.packed);
    parallel_(chunks.blocks * chunks.panels, [&](int64_t begin, int64_t end, int thread) {
      const Private<T> own = share_of(thread);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t m = task % chunks.blocks, k = task / chunks.blocks;
        const int64_t first_panel = k * panels / chunks.panels, last_panel = (k + 1) * panels / chunks.panels;
        for (int64_t d = 0; own_panels && d < shape_.depth; d += packed_at_once)
          pack_depths(d, first_panel, last_panel, work_.packed);
        for (int64_t panel = first_panel; panel < last_panel; panel += shape_.group_panels) {
          const int64_t count = std::min(shape_.group_panels, last_panel - panel);
          for (int64_t b = m * blocks / chunks.blocks; b < (m + 1) * blocks / chunks.blocks; ++b)
            run_block(block_of(b), own, panel, count);
        }
      }
      if (ending_.stream) finish_streams();
    });
  }

 private:
  Private<T> share_of(int thread) const {
    Arena arena(work_.threads + thread * work_.thread_bytes);
    return Private<T>(arena, shape_);
  }

  void list_phases() const {
    for (int64_t i = 0; i < shape_.phases_h; ++i) work_.h[i] = dgrad_axis(p_.h, i, shape_.width_h);
    for (int64_t j = 0; j < shape_.phases_w; ++j) work_.w[j] = dgrad_axis(p_.w, j, shape_.width_w);
    int64_t next = 0;
    for (int64_t i = 0; i < shape_.phases_h; ++i)
      for (int64_t j = 0; j < shape_.phases_w; ++j) {
        const AxisPhase &h = work_.h[i], &w = work_.w[j];
        work_.first_slot[i * shape_.phases_w + j] = next;
        if (shape_.merged()) {
          next += h.taps * w.taps;
          continue;
        }
        for (int64_t a = 0; a < h.taps; ++a)
          for (int64_t b = 0; b < w.taps; ++b) {
            const int64_t r = h.window_first + a * h.window_step;
            work_.slot[r * p_.w.window + w.window_first + b * w.window_step] = next++;
          }
      }
  }

  void pack_all(A* out) const {
    if (shape_.merged()) {
      const MergedFilter<T> filter{p_, args_, shape_, work_, out};
      parallel_(shape_.depth,
                [&](int64_t begin, int64_t end, int thread) { filter.pack(begin, end, share_of(thread).turned); });
      return;
    }
    const int64_t parts = divide_up(shape_.depth, packed_at_once);
    parallel_(parts, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) pack_depths(i * packed_at_once, 0, p_.groups * shape_.panels, out);
    });
  }

  // As many depths as are packed at once of panels [first, last).
  void pack_depths(int64_t depth, int64_t first, int64_t last, A* out) const {
    const int64_t end = std::min(depth + packed_at_once, shape_.depth);
    for (int64_t panel = first; panel < last; ++panel) pack(panel, depth, end, out + panel * shape_.panel_size);
  }

  void pack(int64_t panel, int64_t begin, int64_t end, A* out) const {
    const int64_t *stride = args_.w_stride, group = panel / shape_.panels;
    Filter<T> f;
    f.column = stride[1], f.depth = stride[0], f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = p_.h.window, f.window_w = p_.w.window;
    f.w = static_cast<const T*>(args_.w) + group * shape_.depth * stride[0] +
          panel % shape_.panels * shape_.width * f.column;
    pack_panel(f, work_.slot, shape_.depth, begin, end, shape_.panel_columns(panel),
               shape_.panel_vectors(panel) * lanes, out);
  }

  Block block_of(int64_t i) const {
    const int64_t rows = shape_.all_rows(p_), blocks = shape_.block_count(p_);
    if (shape_.cuts == 1) return {i * rows / blocks, (i + 1) * rows / blocks, 0, shape_.cells_w};
    const int64_t row = i / shape_.cuts, cut = i % shape_.cuts;
    return {row, row + 1, cut * shape_.cells_w / shape_.cuts, (cut + 1) * shape_.cells_w / shape_.cuts};
  }

  // Panels [panel, panel + count) of all phases of a block.
  void run_block(const Block& block, const Private<T>& own, int64_t panel, int64_t count) const {
    const auto rows_before = [&](const AxisPhase& h, int64_t row) {
      return row / shape_.cells_h * h.grid + std::clamp<int64_t>(row % shape_.cells_h - h.cell, 0, h.grid);
    };
    const auto columns_before = [](const AxisPhase& w, int64_t cell) {
      return std::clamp<int64_t>(cell - w.cell, 0, w.grid);
    };
    for (int64_t a = 0; a < shape_.phases_h; ++a) {
      const AxisPhase& h = work_.h[a];
      const int64_t row = rows_before(h, block.row), end_row = rows_before(h, block.end);
      if (row == end_row) continue;
      const bool constant = shape_.planes && h.taps == 0;
      for (int64_t b = 0; b < (constant ? 0 : shape_.phases_w); ++b) {
        const AxisPhase& w = work_.w[b];
        const int64_t begin = row * w.grid + columns_before(w, block.first);
        const int64_t pixels = (end_row - row - 1) * w.grid + row * w.grid + columns_before(w, block.last) - begin;
        const Phase phase{h, w, work_.first_slot[a * shape_.phases_w + b]};
        A* results = own.block + b * shape_.block_cells * shape_.pitch;
        const int64_t strips = divide_up(pixels, shape_.strip);
        for (int64_t s = 0; s < strips; ++s)
          run_strip(phase, own, begin + s * pixels / strips, begin + (s + 1) * pixels / strips, panel, count, results,
                    block.row * shape_.cells_w + block.first);
      }
      if (shape_.planes) PlanesEnd<T>{p_, shape_, work_, tail_}.put(block, h, own, panel, count);
    }
  }

  // Whether the pixels [begin, end) of a phase of merged columns hold one that reaches over the edges.
  bool reaches_over(const AxisPhase& w, int64_t begin, int64_t end) const {
    const bool starts = w.out_first < 0;
    const bool ends = w.out_first + (w.grid - 1) * w.out_step + shape_.width_w > w.out_size;
    const int64_t i = begin % w.grid, last = i + end - begin - 1;
    return (starts && (i == 0 || last >= w.grid)) || (ends && last >= w.grid - 1);
  }

  // In planes, cell `cell` of the block lies at `results`.
  void run_strip(const Phase& phase, const Private<T>& own, int64_t begin, int64_t end, int64_t first_panel,
                 int64_t panels, A* results, int64_t cell) const {
    const int count = static_cast<int>(end - begin);
    const bool direct = ending_.direct && !reaches_over(phase.w, begin, end);
    PixelTile<A> tile;
    tile.taps = phase.taps(), tile.run = shape_.depth;
    tile.residual = nullptr;
    ending_.mark(tile);
    if (!direct) tile.clamped = tile.stream = false;
    tile.rows = own.rows, tile.out = own.out;
    if (shape_.planes) {
      Phase at = phase;  // written positions are cells
      at.h.out_first = phase.h.cell, at.h.out_step = 1, at.h.out_size = shape_.cells_h;
      at.w.out_first = phase.w.cell, at.w.out_step = 1, at.w.out_size = shape_.cells_w;
      locate<A>(at, source_, work_.zeros, begin, end, own.rows, own.pixel);
      for (int i = 0; i < count; ++i) own.out[i] = results + (own.pixel[i] - cell) * shape_.pitch;
    } else {
      locate<A>(phase, source_, work_.zeros, begin, end, own.rows, own.pixel);
      for (int i = 0; i < count; ++i) own.out[i] = own.tile + i * shape_.width;
    }
    if constexpr (std::is_same_v<T, A>) {
      if (direct) {
        for (int i = 0; i < count; ++i) own.out[i] = tail_.out + tail_.out_at(0, 0, own.pixel[i]);
        if (tail_.residual) {
          for (int i = 0; i < count; ++i) own.residual[i] = tail_.residual + tail_.residual_at(0, 0, own.pixel[i]);
          tile.residual = own.residual;
        }
      }
    }
    // The next strip's own rows follow the last row this strip reads through its last tap.
    const int64_t fetched = count * shape_.pixel * static_cast<int64_t>(sizeof(A)), steps = tile.taps * tile.run;
    const auto* last_row = reinterpret_cast<const char*>(own.rows[std::max(int64_t{1}, tile.taps * count) - 1]);
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
      const int64_t group = panel / shape_.panels, columns = shape_.panel_columns(panel);
      const int64_t column = panel % shape_.panels * shape_.width;
      const int vectors = shape_.panel_vectors(panel);
      tile.offset = group * shape_.depth;
      tile.weights = packed_ + panel * shape_.panel_size + phase.first_slot * shape_.depth * vectors * lanes;
      tile.start = work_.start + panel * shape_.width;
      tile.channel = group * shape_.columns + column;
      tile.out_offset = direct ? tile.channel : shape_.planes ? (panel - first_panel) * shape_.width : 0;
      tile.last = direct ? static_cast<int>(columns - (vectors - 1) * lanes) : lanes;
      tile.ahead = Ahead::range(last_row, fetched, panel - first_panel, panels, std::max(int64_t{1}, steps));
      tile_function<A>(count, vectors)(tile);
      if (direct || shape_.planes) continue;
      for (int i = 0; i < count; ++i) put_pixel(phase, begin + i, group * shape_.columns, column, columns, own.out[i]);
    }
  }

  // Columns [first, first + count) of one grid position, those that lie inside.
  void put_pixel(const Phase& phase, int64_t at, int64_t channel, int64_t first, int64_t count, const A* sums) const {
    const AxisPhase &h = phase.h, &w = phase.w;
    const int64_t per_pixel = p_.channels_per_group(), part = shape_.width_w * per_pixel;
    const int64_t n = at / phase.grid(), y = h.out_first + at % phase.grid() / w.grid * h.out_step;
    const int64_t x = w.out_first + at % w.grid * w.out_step;
    const int64_t inside = std::max<int64_t>(0, -x) * per_pixel,
                  outside = std::min(shape_.width_w, w.out_size - x) * per_pixel;
    for (int64_t q = 0; q < shape_.width_h; ++q) {
      if (y + q < 0 || y + q >= h.out_size) continue;
      const int64_t begin = std::max(first, q * part + inside), end = std::min(first + count, q * part + outside);
      for (int64_t c = begin; c < end; c += lanes)
        tail_.put_channels(0, channel + c - q * part, (n * h.out_size + y + q) * w.out_size + x,
                           load(sums + c - first, static_cast<int>(std::min<int64_t>(lanes, end - c))),
                           static_cast<int>(std::min<int64_t>(lanes, end - c)));
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<T> shape_;
  Tail<T> tail_;
  Ending<T> ending_;
  Arena arena_;
  const Work<T> work_;
  const A* const packed_;
  Source<A> source_;
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.h.stride == 1 && p.w.stride == 1) return "The stride is 1: there is one phase.";
  if (p.groups > 1 && p.channels_per_group() == 1)
    return "Each of the " + std::to_string(p.groups) +
           " groups writes 1 channel: a register holds consecutive channels.";
  return {};
}

int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Work<T>(arena, p, Shape<T>(p, threads), threads);
  });
  return arena.used();
}

// The order of the taps follows from stride and dilation; which residues are taken together hangs on the map too.
PackedForm packed_form(const Problem& p) {
  constexpr int64_t radix = 1 << 15;  // larger strides are as good as this to a window
  PackedForm form;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Shape<T> s(p, 1);
    form.bytes = s.filter_elements(p) * static_cast<int64_t>(sizeof(arithmetic<T>));
    for (const int64_t digit : {p.h.stride, p.h.dilation, p.w.stride, p.w.dilation})
      form.variant = form.variant * radix + std::min(digit, radix - 1);
    form.variant = form.variant * 4 + (s.width_h > 1) * 2 + (s.width_w > 1);
  });
  return form;
}

void pack(const Problem& problem, const Args& args, void* out, const Parallel& parallel) {
  Problem p = problem;
  p.packed = true;
  const Scratch scratch(workspace(p, parallel.threads()));
  Args own = args;
  own.workspace = scratch.get();
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Dgrad<T>(p, own, parallel).pack(static_cast<arithmetic<T>*>(out));
  });
}

// Products over whole registers; the filter is read and written once by packing, or read packed; the results once
// (those of planes twice), the source once where it is laid out anew, and once more for each group of panels after the
// first.
Cost cost(const Problem& p, int threads) {
  Cost cost;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Shape<T> s(p, threads);
    const double element = sizeof(arithmetic<T>);
    const int64_t blocks = s.block_count(p), panels = p.groups * s.panels;
    const Split chunks = split(p, s, threads);
    const int64_t tasks = divide_up(chunks.blocks * chunks.panels, threads);
    // Groups of one register run at half the rate (igemm.cpp).
    const double pace = p.groups > 1 && s.vectors == 1 ? 2 : 1;
    cost.flops = s.products(p, s.width_h, s.width_w) * double(p.groups * s.depth) * pace;
    cost.imbalance = double(tasks * threads * divide_up(blocks, chunks.blocks) * divide_up(panels, chunks.panels)) /
                     double(blocks * panels);
    const double source = double(p.n * p.out_pixels() * s.pixel), filter = double(panels * s.panel_size);
    cost.moved = element * ((p.packed ? 0 : 2 * filter) + (s.copied ? 2 * source : 0) +
                            double(p.x_elements()) * (s.planes ? 2 : 1));
    cost.shared = element * source * double(divide_up(panels, s.group_panels) - 1);
    if (p.packed) cost.shared += element * filter * double(chunks.blocks);  // each of them reads all panels
    cost.memory = operand_bytes(p, element * filter);
  });
  return cost;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Dgrad<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace

extern const KernelBody conv2d_dgrad_phases{refuses, workspace, run, cost, packed_form, pack};

}  // namespace fastconv::FASTCONV_ISA
