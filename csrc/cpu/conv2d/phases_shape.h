// What phases.cpp derives from a problem before it runs: which residues are taken together, the sizes of panels and
// blocks, and the layout of the workspace.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "core/problem.h"
#include "cpu/arena.h"
#include "microkernel.h"
#include "phase.h"

namespace fastconv::FASTCONV_ISA::phases {

inline constexpr int64_t l1_set_bytes = 4096;  // addresses equal modulo this share a set of the first cache
inline constexpr int64_t l1_ways = 8;
inline constexpr int64_t blocks_part = 4;      // of L2: the source rows of a block and, of planes, its results
inline constexpr int64_t large_block = 256;    // cells, where the filter's panels do not stay in L2 anyway
inline constexpr int64_t turned_at_once = 64;  // pixels of planes that one task turns
inline constexpr double worth_merging = 0.95;  // of the products without

// Whether the phases of all residues of an axis can be one: they read the same rows of the source.
inline bool mergeable(const Problem& p, const Axis& a) {
  const bool dense = p.layout == Layout::nchw || p.buffer_channels() == p.c;
  return a.stride > 1 && a.dilation == 1 && p.groups == 1 && dense;
}

// Rows [row, end) of cells, counted through all images, and the cells [first, last) of each. Several rows are whole.
struct Block {
  int64_t row, end, first, last;
};

// Everything about a problem that does not depend on the phase.
template <class T>
struct Shape {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  bool planes;               // the result is NCHW
  int64_t width_h, width_w;  // residues taken together: 1, or the stride
  int64_t phases_h, phases_w;
  int64_t channels, depth;  // of the source, and of one group of it
  int64_t columns;          // of one group: [row residue][column residue][written channel]
  int64_t filter_taps;      // slots: of all phases
  int64_t most_taps;        // of one phase
  int vectors, strip;       // panel width in vectors, most pixels of a strip
  int64_t width, panels;    // panel width in columns, panels of one group
  int64_t panel_size;       // elements of a packed panel, at most
  int64_t group_panels;     // panels that half of L2 holds
  bool copied;              // the source is laid out anew, widened, its pixels `pixel` elements apart
  int64_t pixel;
  int64_t cells_h, cells_w;
  int64_t rows, cuts;   // a block is at most so many rows of cells, or a part of one row
  int64_t block_cells;  // at most
  int64_t row_pixels;   // of a row of a block, at most
  int64_t pitch;        // of a cell in a block of planes, for each column phase
  int64_t turned;       // elements of a packed row of all columns and taps of a filter row

  Shape(const Problem& p, int threads) {
    planes = p.layout == Layout::nchw;
    channels = p.k, depth = p.filters_per_group();
    choose_widths(p);
    phases_h = p.h.stride / width_h, phases_w = p.w.stride / width_w;
    columns = p.channels_per_group() * width_h * width_w;
    int64_t taps_w = 0, most_h = 0, most_w = 0;
    for (int64_t i = 0; i < phases_w; ++i) {
      const int64_t taps = dgrad_axis(p.w, i, width_w).taps;
      taps_w += taps, most_w = std::max(most_w, taps);
    }
    filter_taps = 0;
    for (int64_t i = 0; i < phases_h; ++i) {
      const int64_t taps = dgrad_axis(p.h, i, width_h).taps;
      filter_taps += taps * taps_w, most_h = std::max(most_h, taps);
    }
    most_taps = most_h * most_w;
    turned = merged() ? most_w * columns : 0;
    vectors = columns <= lanes ? 1 : tile_vectors;
    strip = vectors == 1 ? max_tile_rows : tile_rows;
    width = vectors * lanes;
    panels = divide_up(columns, width);
    panel_size = filter_taps * depth * width;
    const int64_t element = sizeof(A), panel_bytes = std::max<int64_t>(1, panel_size * element);
    const int64_t all = p.groups * panels, held = std::clamp<int64_t>(machine().l2 / 2 / panel_bytes, 1, all);
    group_panels = planes && merged() ? all : divide_up(all, divide_up(all, held));
    const bool conflict = strip * std::gcd(channels * element, l1_set_bytes) > l1_ways / 2 * l1_set_bytes;
    copied = planes || !std::is_same_v<T, A> || conflict;
    pixel = copied ? round_up(channels, cache_line / element) + cache_line / element : channels;
    cells_h = cells(p.h), cells_w = cells(p.w);
    pitch = planes ? (merged() ? round_up(columns, lanes) : group_panels * width) : 0;
    choose_blocks(p, threads, panel_bytes > machine().l2 / 2);
  }

  int64_t panel_columns(int64_t panel) const { return std::min(width, columns - panel % panels * width); }
  int panel_vectors(int64_t panel) const { return static_cast<int>(divide_up(panel_columns(panel), lanes)); }
  int64_t filter_elements(const Problem& p) const { return p.groups * panels * panel_size; }
  bool merged() const { return width_h * width_w > 1; }
  int64_t all_rows(const Problem& p) const { return p.n * cells_h; }
  int64_t block_count(const Problem& p) const { return cuts > 1 ? all_rows(p) * cuts : divide_up(all_rows(p), rows); }

  // Products of whole registers, for one channel of the source.
  static double products(const Problem& p, int64_t width_h, int64_t width_w) {
    double h = 0, w = 0;
    const auto sum = [](const Axis& a, int64_t width) {
      double all = 0;
      for (int64_t i = 0; i < a.stride; i += width) {
        const AxisPhase phase = dgrad_axis(a, i, width);
        all += double(phase.grid * phase.taps);
      }
      return all;
    };
    h = sum(p.h, width_h), w = sum(p.w, width_w);
    return 2.0 * double(p.n) * h * w * double(round_up(p.channels_per_group() * width_h * width_w, lanes));
  }

 private:
  void choose_widths(const Problem& p) {
    width_h = width_w = 1;
    double least = products(p, 1, 1) * worth_merging;
    const auto consider = [&](int64_t h, int64_t w) {
      const double all = products(p, h, w);
      if (all >= least) return;
      least = all * worth_merging, width_h = h, width_w = w;
    };
    if (mergeable(p, p.w)) consider(1, p.w.stride);
    // Rows of cells lie apart: only where one register holds them.
    if (mergeable(p, p.h) && (p.w.stride == 1 || mergeable(p, p.w)) &&
        p.h.stride * p.w.stride * p.channels_per_group() <= lanes)
      consider(p.h.stride, p.w.stride);
  }

  void choose_blocks(const Problem& p, int threads, bool large) {
    const int64_t element = sizeof(A), bytes = (pixel + phases_w * pitch) * element;
    int64_t wanted = std::max<int64_t>(strip, machine().l2 / blocks_part / bytes);
    if (large) wanted = std::max(wanted, large_block);
    cuts = cells_w >= 2 * wanted ? cells_w / wanted : 1;
    const int64_t all = all_rows(p);
    rows = cuts > 1 ? 1 : std::max<int64_t>(1, wanted / cells_w);
    if (all < threads) cuts = std::max(cuts, std::min(divide_up(threads, all), divide_up(cells_w, strip)));
    if (cuts > 1) rows = 1;
    // Equally many for each thread.
    const int64_t blocks = std::min(all, round_up(divide_up(all, rows), threads));
    rows = divide_up(all, blocks);
    const int64_t row_cells = divide_up(cells_w, cuts);
    block_cells = rows * row_cells, row_pixels = row_cells * p.w.stride;
  }
};

template <class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  const A** rows;  // [tap][pixel]
  int64_t* pixel;  // [pixel] flat index of the written pixel, or of its cell
  A** out;
  const A** residual;
  A* tile;            // [pixel][width]: sums on their way through the Tail
  A* block;           // [column phase][cell][pitch]: results of planes on their way
  const A** results;  // where those of a row of planes lie
  A* turned;          // a filter row of one depth, [tap][column]

  Private(Arena& arena, const Shape<T>& s)
      : rows(arena.take<const A*>(s.most_taps * s.strip)),
        pixel(arena.take<int64_t>(s.strip)),
        out(arena.take<A*>(s.strip)),
        residual(arena.take<const A*>(s.strip)),
        tile(arena.take<A>(s.strip * s.width)),
        block(arena.take<A>(s.planes ? s.phases_w * s.block_cells * s.pitch + s.lanes : 0)),
        results(arena.take<const A*>(s.planes ? s.row_pixels : 0)),
        turned(arena.take<A>(s.turned)) {}
};

template <class T>
struct Work {
  using A = arithmetic<T>;
  A* zeros;  // stands for every pixel of the padding
  A* start;  // bias padded to whole panels
  A* packed;
  A* copy;  // of the source
  AxisPhase *h, *w;
  int64_t* first_slot;  // of each phase
  int64_t* slot;        // of each tap in a packed panel
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<T>& s, int thread_count) {
    zeros = arena.take<A>(s.channels);
    start = arena.take<A>(p.groups * s.panels * s.width);
    packed = arena.take<A>(p.packed ? 0 : s.filter_elements(p));
    copy = arena.take<A>(s.copied ? p.n * p.out_pixels() * s.pixel : 0);
    h = arena.take<AxisPhase>(s.phases_h), w = arena.take<AxisPhase>(s.phases_w);
    first_slot = arena.take<int64_t>(s.phases_h * s.phases_w);
    slot = arena.take<int64_t>(p.taps());
    Arena one(nullptr);
    Private<T>(one, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

}  // namespace fastconv::FASTCONV_ISA::phases
