// How im2col.cpp cuts a problem: sizes of the product, its panels, blocks and tasks, and the layout of the workspace.
#pragma once

#include "columns.h"
#include "core/machine.h"
#include "staged_rows.h"

namespace fastconv::FASTCONV_ISA::im2col {

// Depth blocks: columns that leave room in a 32 KiB L1 for a filter panel; 128 floats of pixels and 256 KiB of sums.
inline constexpr int64_t column_panel_bytes = 40 << 10;
inline constexpr int64_t block_bytes_a_row = 512;
inline constexpr int64_t rows_a_task = 512;
inline constexpr int64_t least_panels = 4;    // of columns for every pass of a filter panel; or the depth is cut
inline constexpr int64_t staged_part = 4;     // of L2: what staged source rows may fill of it
inline constexpr int64_t tasks_a_thread = 4;  // from here on nobody minds an odd one
inline constexpr int64_t shared_columns_bytes = 16 << 20;
inline constexpr int64_t packed_at_once = 8;  // channels of a filter whose rows lie together
inline constexpr int64_t alignment = 64;

inline int64_t align(int64_t bytes) { return round_up(bytes, alignment); }

// What both passes share: sizes of the product, cut into panels, blocks and tasks.
struct Cut {
  bool dgrad;
  int64_t rows, channels;  // per group: result rows, and source channels
  int64_t taps;            // of the whole filter
  int64_t panels;          // of columns
  int64_t depth_block, max_depth;
  int64_t block, row_panels;  // panels of columns and of rows a task has
  bool staged;                // source rows are copied instead of columns; blocks are output rows, not column panels
  bool whole;                 // every sum runs over the whole depth at once, in registers
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
    c.shared = !c.staged && filters.count > 1 && p.groups * c.panels < 2 * wanted && threads > 1 &&
               columns_bytes <= shared_columns_bytes;
    if (c.staged) return staged_rows<A>(p, c, h, w, filters.height, threads);
    const int64_t most_rows = c.whole ? filters.count : divide_up(rows_a_task, filters.height);
    c.blocks = divide_up(c.panels, c.shared ? 2 * most_blocks : most_blocks);
    c.row_blocks = divide_up(filters.count, most_rows);
    if (c.shared)
      c.row_blocks = shared_out(c.row_blocks, filters.count, p.groups * c.blocks, threads);
    else
      c.blocks = shared_out(c.blocks, c.panels, p.groups * c.row_blocks, threads);
    c.block = divide_up(c.panels, c.blocks);
    c.row_panels = divide_up(filters.count, c.row_blocks);
    c.tasks = p.groups * c.blocks * c.row_blocks;
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

}  // namespace fastconv::FASTCONV_ISA::im2col
