// How a Winograd convolution is cut into tiles, panels and blocks, and what that costs: plain functions of the problem,
// the number of threads and the register width, which the kernels and whoever chooses between kernels read alike.
#pragma once

#include <algorithm>
#include <string>

#include "core/cost.h"
#include "core/integers.h"
#include "core/machine.h"
#include "core/problem.h"
#include "cpu/packed.h"

namespace fastconv::winograd {

// Input channels summed in registers before the sum goes to memory. It fixes the order of every sum, so it is a
// constant.
inline constexpr int64_t depth_chunk = 128;
inline constexpr int64_t enough_tiles = 24;  // a block of so many uses a transformed filter often enough
inline constexpr int64_t wide_block = 56;    // where the sums of a block do not fit L2 anyway
inline constexpr int64_t most_shared = 128;  // tiles whose sums for one panel fit L2
// Starting and storing the sums of a register tile takes as long as so many channels: products of depth_chunk channels
// run at 90 GFLOP/s a core where igemm's run at 105 (Zen 4, 2026-11-22).
inline constexpr double sum_overhead = 21;
// Tiles whose products take as long as U takes from L2, for each byte of a register: 6 of 64 bytes (Zen 5, 2026-11-23).
inline constexpr double waiting_tiles = 6.0 / 64;
inline constexpr int64_t panel_vectors = 2;  // registers of output channels in a panel

// filter: rows and columns of the filters that the transforms are for.
inline std::string refuses(const Problem& p, int64_t filter) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  const auto differs = [](const char* what, int64_t h, int64_t w, const char* only) {
    return std::string("The ") + what + " is " + std::to_string(h) + "x" + std::to_string(w) + ": " + only;
  };
  if (p.h.window != filter || p.w.window != filter)
    return differs("filter", p.h.window, p.w.window,
                   filter == 3 ? "the transforms are for 3x3." : "the transforms are for 5x5.");
  if (p.h.stride != 1 || p.w.stride != 1)
    return differs("stride", p.h.stride, p.w.stride, "neighbouring outputs must share inputs.");
  if (p.groups != 1) return "There are " + std::to_string(p.groups) + " groups: the products need the channels of one.";
  return {};
}

// One spatial axis of the pass: fprop reads x from -pad on, dgrad reads dy through the flipped filter. Dilated by d, it
// is d axes of taps that are neighbours: every d-th row from one of the first d on. They have a line of tiles each.
struct AxisTiles {
  int64_t source, written;
  int64_t origin;    // source position of the first tile's first row
  int64_t dilation;  // from row to row of a tile
  int64_t step;      // from tile to tile of a line
  int64_t line;      // tiles of one
  int64_t tiles;     // of all

  AxisTiles(const Axis& a, bool dgrad, int64_t outputs)
      : source(dgrad ? a.out : a.in),
        written(dgrad ? a.in : a.out),
        origin(dgrad ? a.pad_lo - (a.window - 1) * a.dilation : -a.pad_lo),
        dilation(a.dilation),
        step(outputs * dilation),
        line(divide_up(written, step)),
        tiles(line * std::min(dilation, written)) {}

  // The first row that a tile writes, and how many of `outputs` there are.
  int64_t first(int64_t tile) const { return tile / line + tile % line * step; }
  int64_t rows(int64_t first, int64_t outputs) const {
    return std::clamp<int64_t>(divide_up(written - first, dilation), 0, outputs);
  }

  // dy as the filter gradient reads it: every output in one tile.
  static AxisTiles of_gradient(const Axis& a, int64_t outputs) {
    AxisTiles t(a, false, outputs);
    t.source = a.out, t.origin = 0;
    return t;
  }
};

// Numbers of a transformed square: the filter is as high as wide.
inline int64_t frequencies_of(const Problem& p, int64_t outputs) {
  return (outputs + p.h.window - 1) * (outputs + p.w.window - 1);
}

// outputs: of a tile along one axis, 2 or 4. lanes: elements of a register. element: bytes of the arithmetic type.
struct Cut {
  bool dgrad;
  AxisTiles h, w;
  int64_t channels, columns;  // of the source; written
  int64_t frequencies, outputs, taps;
  int64_t tiles;          // of all images
  int64_t width, panels;  // output channels of a panel
  bool by_panels;         // threads split the panels; else they split blocks of tiles
  int64_t group;          // of panels that a thread sums side by side
  int64_t blocks, block;  // of tiles; of one, at most

  Cut(const Problem& p, int threads, int64_t outputs, int64_t lanes, int64_t element)
      : dgrad(p.pass == Pass::dgrad), h(p.h, dgrad, outputs), w(p.w, dgrad, outputs), outputs(outputs) {
    channels = dgrad ? p.k : p.c, columns = p.written_channels();
    frequencies = frequencies_of(p, outputs), taps = p.taps();
    tiles = p.n * h.tiles * w.tiles;
    width = columns <= lanes ? lanes : panel_vectors * lanes;
    panels = divide_up(columns, width);
    by_panels = tiles <= most_shared && columns > panel_vectors * lanes && tiles <= columns;
    // A narrow panel is the slower one, an idle thread is slower still. A filter packed apart has one layout.
    if (by_panels && !p.packed && panels < threads) width = lanes;
    panels = divide_up(columns, width);
    group = by_panels ? divide_up(panels, threads) : panels;
    const int64_t fitting = machine().l2 * 3 / 4 / (frequencies * (channels + columns) * element);
    const int64_t wanted = fitting >= enough_tiles ? fitting : wide_block;
    const int64_t needed = divide_up(tiles, wanted);  // and a whole number of blocks for every thread
    blocks = by_panels ? 1 : std::min(tiles, divide_up(needed, threads) * threads);
    block = divide_up(tiles, blocks);
  }
};

// With T tiles, C input channels, K output channels rounded up to registers, filters of r x r taps, F = (m + r - 1)^2
// frequencies and elements of e bytes:
//   products     2·F·T·C·K FLOPs (direct: 2·r^2·m^2·T·C·K), so F(4x4,3x3) saves 144/36 = 4 times, F(2x2,5x5) 100/36 =
//                2.8 and F(2x2,3x3) 36/16 = 2.25, and the sums of every chunk of C
//   filter       F stores and r^2 loads for each of C·K filters, and another r^2 of each to pack them, unless they come
//                packed
//   input        F loads and F stores for each of T·C squares; NCHW stages the F pixels before
//   output       F loads and m^2 stores for each of T·K squares; NCHW stages them behind
//   by tiles     every block reads the F·C·K filters, written before by all threads or packed; where a block's sums
//                outgrow L2 they go out and come back
//   by panels    every thread transforms all inputs, a chunk of channels at a time; where L2 does not hold that chunk,
//                every panel reads it again, and where it does not hold a thread's sums, every chunk moves them. The
//                products of few tiles wait for U from L2
inline Cost cost(const Problem& p, int threads, int64_t outputs, int64_t lanes) {
  const int64_t element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  const Cut c(p, threads, outputs, lanes, element);
  const auto round = [&](int64_t channels) { return double(divide_up(channels, lanes) * lanes); };
  const double f = double(c.frequencies), m2 = double(outputs * outputs), e = double(element);
  const double tiles = double(c.tiles), channels = double(c.channels), columns = round(c.columns);
  const bool planes = p.layout == Layout::nchw;
  const double filters = f * channels * columns, inputs = f * tiles * channels, sums = f * tiles * columns;

  Cost cost;
  const double busy = c.by_panels ? std::max(tiles, waiting_tiles * e * double(lanes)) / tiles : 1;
  cost.flops = 2 * sums * busy * (channels + sum_overhead * double(divide_up(c.channels, depth_chunk)));
  cost.moved = e * channels * columns * (f + double((p.packed ? 1 : 3) * c.taps)) +
               e * tiles * round(c.channels) * (planes ? 4 : 2) * f * (c.by_panels ? threads : 1) +
               e * tiles * columns * (f + (planes ? 3 : 1) * m2);
  if (c.by_panels) {
    const double depth = double(std::min(c.channels, depth_chunk)), half = double(machine().l2) / 2;
    const bool inputs_stay = e * f * tiles * depth <= half;
    const bool sums_stay = e * f * tiles * double(c.group * c.width) <= half;
    cost.shared = (inputs_stay ? 0 : e * inputs * double(c.panels)) +
                  (sums_stay ? 0 : 2 * e * sums * double(divide_up(c.channels, depth_chunk) - 1));
  } else {
    const bool outgrown = e * f * double(c.block) * (channels + columns) > double(machine().l2);
    cost.shared = e * filters * double(2 + c.blocks) + (outgrown ? 2 * e * (inputs + sums) : 0);
  }
  cost.memory = operand_bytes(p, e * channels * columns * double(c.taps));
  const int64_t tasks = c.by_panels ? c.panels : c.blocks;
  cost.imbalance = double(divide_up(tasks, threads) * threads) / double(tasks);
  return cost;
}

}  // namespace fastconv::winograd
