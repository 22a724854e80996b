// How the Winograd filter gradient is cut, and what it costs.
#pragma once

#include "core/integers.h"
#include "cut.h"

namespace fastconv::winograd {

// Tiles summed in registers before the sum goes to memory. Their number fixes the order of every sum, so it depends on
// the problem alone.
inline constexpr int64_t most_chunk_tiles = 128, least_chunk_tiles = 64;
inline constexpr int64_t chunk_bytes = 4 << 20;  // of both operands, transformed
// Loading, adding and storing the sums of a register tile takes as long as so many tiles of the depth.
inline constexpr double gradient_sum_overhead = 4;

// rows, lanes: filters and channels of a register tile of one vector. element: bytes of the arithmetic type.
struct GradientCut {
  AxisTiles x_h, x_w;  // of x; dy has the same tiles
  AxisTiles dy_h, dy_w;
  int64_t frequencies, outputs;
  int64_t tiles, chunk, chunks;  // of all images; of a chunk, at most
  int64_t height;                // filters of a register tile
  int64_t width;                 // channels of a register tile
  int64_t rows, columns;         // register tiles: of filters and of channels
  int64_t task_rows;             // row tiles of a task, at most; it has one column
  int64_t row_tasks, tasks;

  GradientCut(const Problem& p, int threads, int64_t outputs, int64_t tile_rows, int64_t lanes, int64_t element)
      : x_h(p.h, false, outputs),
        x_w(p.w, false, outputs),
        dy_h(AxisTiles::of_gradient(p.h, outputs)),
        dy_w(AxisTiles::of_gradient(p.w, outputs)),
        outputs(outputs) {
    frequencies = (outputs + filter_size - 1) * (outputs + filter_size - 1);
    tiles = p.n * x_h.tiles * x_w.tiles;
    const int64_t fitting = chunk_bytes / (frequencies * (p.k + p.c) * element);
    chunks = divide_up(tiles, std::clamp(fitting, least_chunk_tiles, most_chunk_tiles));
    chunk = divide_up(tiles, chunks);
    chunks = divide_up(tiles, chunk);
    width = p.c <= lanes ? lanes : panel_vectors * lanes;
    columns = divide_up(p.c, width);
    height = divide_up(p.k, divide_up(p.k, tile_rows));
    rows = divide_up(p.k, height);
    // As tall as half of L2 holds its sums, unless threads would wait.
    const int64_t fit = machine().l2 / 2 / (frequencies * height * width * element);
    task_rows = std::clamp<int64_t>(rows * columns / (wanted_tasks * threads), 1, std::max<int64_t>(1, fit));
    row_tasks = divide_up(rows, task_rows);
    task_rows = divide_up(rows, row_tasks);
    row_tasks = divide_up(rows, task_rows);
    tasks = row_tasks * columns;
  }

 private:
  static constexpr int64_t wanted_tasks = 2;  // of a thread
};

// With T tiles and F frequencies:
//   products    2·F·T·K·C FLOPs (direct: 2·9·m^2·T·K·C), and the sums of every chunk of T
//   operands    F loads and F stores for each of T·(C + K) squares; NCHW stages the pixels before
//   pieces      every row of pieces reads the F·T·C of x, every column the F·T·K of dy, written before by all threads
//   sums        F loads for each of K·C filters at the end; where they outgrow L2, they go out and come back every
//   chunk
inline Cost gradient_cost(const Problem& p, int threads, int64_t outputs, int64_t tile_rows, int64_t lanes) {
  const int64_t element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  const GradientCut c(p, threads, outputs, tile_rows, lanes, element);
  const double f = double(c.frequencies), e = double(element), tiles = double(c.tiles), chunks = double(c.chunks);
  const double channels = double(round_up(p.c, lanes)), filters = double(p.k);
  const double sums = f * filters * channels;

  Cost cost;
  cost.flops = 2 * sums * (tiles + gradient_sum_overhead * chunks);
  cost.moved = e * f * tiles * (channels + filters) * (p.layout == Layout::nchw ? 4 : 2) + e * sums;
  cost.shared = e * f * tiles * (channels * double(1 + c.row_tasks) + filters * double(1 + c.columns));
  if (e * sums > double(threads * machine().l2)) cost.shared += 2 * e * sums * (chunks - 1);
  cost.memory = p.bytes();
  cost.imbalance = double(divide_up(c.tasks, threads) * threads) / double(c.tasks);
  return cost;
}

}  // namespace fastconv::winograd
