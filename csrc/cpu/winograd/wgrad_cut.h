// How the Winograd filter gradient is cut, and what it costs.
#pragma once

#include "cut.h"

namespace fastconv::winograd {

// Chunks and groups fix the order of every sum, so they depend on the problem alone.
inline constexpr int64_t least_chunk_tiles = 32, most_chunk_tiles = 128;
inline constexpr int64_t chunk_bytes = 4 << 20;                     // of both operands of a chunk, transformed
inline constexpr int64_t most_groups = 16, group_bytes = 32 << 20;  // and all their partial gradients
// Storing the sums of a register tile and transforming them back takes as long as so many tiles of the depth.
inline constexpr double gradient_sum_overhead = 6;
inline constexpr double square_overhead = 4096;  // finding a square's pixels takes as long as moving so many bytes

// outputs: of a tile along one axis, 2 or 4. tile_rows, lanes: filters of a register tile, and channels of one register
// of it. element: bytes of the arithmetic type.
struct GradientCut {
  AxisTiles x_h, x_w;  // of x; dy has the same tiles
  AxisTiles dy_h, dy_w;
  int64_t frequencies;
  int64_t tiles, chunk, chunks;  // of all images; of a chunk, at most
  int64_t groups, group;         // of chunks; chunks of a group, at most
  bool by_groups;                // threads split the groups; else they share each chunk and split its pieces
  int64_t height, width;         // filters and channels of a register tile
  int64_t rows, columns;         // register tiles: of filters and of channels
  int64_t piece_rows;            // row tiles of a piece, at most; it has one column
  int64_t row_pieces, pieces;

  GradientCut(const Problem& p, int threads, int64_t outputs, int64_t tile_rows, int64_t lanes, int64_t element)
      : x_h(p.h, false, outputs),
        x_w(p.w, false, outputs),
        dy_h(AxisTiles::of_gradient(p.h, outputs)),
        dy_w(AxisTiles::of_gradient(p.w, outputs)),
        frequencies(frequencies_of(p, outputs)),
        tiles(p.n * x_h.tiles * x_w.tiles) {
    const int64_t fitting = chunk_bytes / (frequencies * (p.k + p.c) * element);
    chunks = divide_up(tiles, std::clamp(fitting, least_chunk_tiles, most_chunk_tiles));
    groups = std::clamp<int64_t>(group_bytes / (p.k * p.c * p.taps() * element), 1, std::min(chunks, most_groups));
    group = divide_up(chunks, groups);
    groups = divide_up(chunks, group);
    chunk = divide_up(tiles, chunks);

    width = p.c <= lanes ? lanes : panel_vectors * lanes;
    columns = divide_up(p.c, width);
    height = divide_up(p.k, divide_up(p.k, tile_rows));
    rows = divide_up(p.k, height);
    // An idle thread costs more than reading what another has transformed.
    by_groups = divide_up(groups, threads) * threads * 4 <= groups * 5;
    const int64_t fit = std::max<int64_t>(1, machine().l2 / 8 / (frequencies * height * width * element));
    const int64_t wanted = by_groups ? fit : std::clamp<int64_t>(rows * columns / (2 * threads), 1, fit);
    row_pieces = divide_up(rows, wanted);
    piece_rows = divide_up(rows, row_pieces);
    row_pieces = divide_up(rows, piece_rows);
    pieces = row_pieces * columns;
  }
};

// With T tiles and F frequencies:
//   products    2·F·T·K·C FLOPs (direct: 2·9·m^2·T·K·C), and the sums of every chunk
//   operands    F loads and F stores for each of T·(C + K) squares, and finding 2·T; NCHW stages the pixels before
//   pieces      every row of pieces reads the F·T·C of x, every column the F·T·K of dy
//   by pieces   these were written by all threads: reading them is moving them between cores
//   sums        9 stores, loads and stores again for each of K·C filters and chunks
inline Cost gradient_cost(const Problem& p, int threads, int64_t outputs, int64_t tile_rows, int64_t lanes) {
  const int64_t element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  const GradientCut c(p, threads, outputs, tile_rows, lanes, element);
  const double f = double(c.frequencies), e = double(element), tiles = double(c.tiles), chunks = double(c.chunks);
  const double channels = double(round_up(p.c, lanes)), filters = double(round_up(p.k, lanes));

  Cost cost;
  cost.flops = 2 * f * channels * double(p.k) * (tiles + gradient_sum_overhead * chunks);
  cost.moved = e * f * tiles * (channels + filters) * (p.layout == Layout::nchw ? 4 : 2) * (c.by_groups ? 1 : 2) +
               2 * square_overhead * tiles + e * 2 * double(p.taps()) * channels * filters * chunks;
  cost.shared = e * f * tiles * (channels * double(c.row_pieces) + filters * double(c.columns));
  cost.memory = p.bytes();
  const int64_t tasks = c.by_groups ? c.groups : c.pieces;
  cost.imbalance = double(divide_up(tasks, threads) * threads) / double(tasks);
  return cost;
}

}  // namespace fastconv::winograd
