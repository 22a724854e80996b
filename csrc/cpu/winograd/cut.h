// How a Winograd convolution is cut into tiles, panels and blocks, and what that costs: plain functions of the problem,
// the number of threads and the register width, which the kernels and whoever chooses between kernels read alike.
#pragma once

#include <algorithm>

#include "core/machine.h"
#include "core/problem.h"

namespace fastconv::winograd {

inline constexpr int64_t filter_size = 3, filter_taps = filter_size * filter_size;
// Input channels summed in registers before the sum goes to memory. It fixes the order of every sum, so it is a
// constant.
inline constexpr int64_t depth_chunk = 128;
inline constexpr int64_t enough_tiles = 24;  // a block of so many uses a transformed filter often enough
inline constexpr int64_t wide_block = 56;    // where the sums of a block do not fit L2 anyway
inline constexpr int64_t most_shared = 128;  // tiles whose sums for one panel fit L2
inline constexpr int64_t panel_vectors = 2;  // registers of output channels in a panel

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One spatial axis of the pass: fprop reads x from -pad on, dgrad reads dy through the flipped filter.
struct AxisTiles {
  int64_t source, written;
  int64_t origin;  // source position of the first tile's first row
  int64_t tiles;

  AxisTiles(const Axis& a, bool dgrad, int64_t outputs)
      : source(dgrad ? a.out : a.in),
        written(dgrad ? a.in : a.out),
        origin(dgrad ? a.pad_lo - (filter_size - 1) : -a.pad_lo),
        tiles(divide_up(written, outputs)) {}
};

// outputs: of a tile along one axis, 2 or 4. lanes: elements of a register. element: bytes of the arithmetic type.
struct Cut {
  bool dgrad;
  AxisTiles h, w;
  int64_t channels, columns;  // of the source; written
  int64_t frequencies, outputs;
  int64_t tiles;          // of all images
  int64_t width, panels;  // output channels of a panel
  bool by_panels;         // threads share the transformed input and split the panels; else they split blocks of tiles
  int64_t blocks, block;  // of tiles; of one, at most

  Cut(const Problem& p, int threads, int64_t outputs, int64_t lanes, int64_t element)
      : dgrad(p.pass == Pass::dgrad), h(p.h, dgrad, outputs), w(p.w, dgrad, outputs), outputs(outputs) {
    channels = dgrad ? p.k : p.c, columns = p.written_channels();
    frequencies = (outputs + filter_size - 1) * (outputs + filter_size - 1);
    tiles = p.n * h.tiles * w.tiles;
    by_panels = tiles <= most_shared && tiles <= columns && columns > panel_vectors * lanes;
    width = panel_vectors * lanes;
    // A narrow panel is the slower one, an idle thread is slower still.
    if (columns <= lanes || (by_panels && divide_up(columns, width) < threads)) width = lanes;
    panels = divide_up(columns, width);
    const int64_t fitting = machine().l2 * 3 / 4 / (frequencies * (channels + columns) * element);
    const int64_t wanted = fitting >= enough_tiles ? fitting : wide_block;
    const int64_t needed = divide_up(tiles, wanted);  // and a whole number of blocks for every thread
    blocks = by_panels ? 1 : std::min(tiles, divide_up(needed, threads) * threads);
    block = divide_up(tiles, blocks);
  }
};

// What one call does, summed over its threads.
struct Cost {
  double product_flops;  // of the products of frequencies, empty lanes included
  double
      transform_bytes;  // loaded and stored by packing and the three transforms: they are bound by that, not by FLOPs
  double shared_bytes;  // that the caches of one core do not hold
  double memory_bytes;  // every operand once
  double imbalance;     // the busiest thread's share of the work, times the threads
};

// With T tiles, C input channels, K output channels rounded up to registers, F = (m + 2)^2 frequencies and elements of
// e bytes:
//   products     2·F·T·C·K FLOPs (direct: 2·9·m^2·T·C·K), so F(4x4) saves 144/36 = 4 and F(2x2) 36/16 = 2.25 times
//   filter       F stores and 9 loads for each of C·K filters, and another 9 of each to pack them
//   input        F loads and F stores for each of T·C squares; NCHW stages the F pixels before
//   output       F loads and m^2 stores for each of T·K squares; NCHW stages them behind
//   by tiles     every block reads the F·C·K filters, written before by all threads; where a block's sums outgrow L2
//                they go out and come back
//   by panels    every panel reads the F·T·C inputs, written before by all threads
inline Cost cost(const Problem& p, int threads, int64_t outputs, int64_t lanes) {
  const int64_t element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  const Cut c(p, threads, outputs, lanes, element);
  const auto round = [&](int64_t channels) { return double(divide_up(channels, lanes) * lanes); };
  const double f = double(c.frequencies), m2 = double(outputs * outputs), e = double(element);
  const double tiles = double(c.tiles), channels = double(c.channels), columns = round(c.columns);
  const bool planes = p.layout == Layout::nchw;
  const double filters = f * channels * columns, inputs = f * tiles * channels, sums = f * tiles * columns;

  Cost cost;
  cost.product_flops = 2 * filters * tiles;
  cost.transform_bytes = e * channels * columns * (f + 3 * filter_taps) +
                         e * tiles * round(c.channels) * (planes ? 4 : 2) * f +
                         e * tiles * columns * (f + (planes ? 3 : 1) * m2);
  if (c.by_panels) {
    cost.shared_bytes = e * inputs * double(1 + c.panels);
  } else {
    const bool outgrown = e * f * double(c.block) * (channels + columns) > double(machine().l2);
    cost.shared_bytes = e * filters * double(2 + c.blocks) + (outgrown ? 2 * e * (inputs + sums) : 0);
  }
  cost.memory_bytes = p.bytes();
  const int64_t tasks = c.by_panels ? c.panels : c.blocks;
  cost.imbalance = double(divide_up(tasks, threads) * threads) / double(tasks);
  return cost;
}

// What a machine does in a second.
struct Rates {
  double flops;      // of one core's multiply-adds
  double transform;  // bytes of one core's loads and stores to L1 and L2
  double shared;     // bytes of one core from the last cache
  double memory;     // bytes of all cores
};

// Zen 4, both cores, f32, 2026-11-22, fitted to 104 measurements: the layers of resnet50 and vgg16, batch 1 and 8, both
// layouts, both tiles, AVX2 and AVX-512. The estimate is 0.83 to 1.11 times the measured time in 90 % of them and never
// below 0.70 times (64 channels at 224x224, whose operands come from memory). shared and memory never decided there.
inline constexpr Rates zen4{90e9, 77e9, 25e9, 20e9};

// The cores' own work, unless the caches or the memory they share take longer.
inline double estimated_seconds(const Cost& cost, int threads, const Rates& rates = zen4) {
  const double core = (cost.product_flops / rates.flops + cost.transform_bytes / rates.transform) * cost.imbalance;
  return std::max({core / threads, cost.shared_bytes / rates.shared / threads, cost.memory_bytes / rates.memory});
}

}  // namespace fastconv::winograd
