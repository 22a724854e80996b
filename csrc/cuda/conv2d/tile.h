// One block's share of a matrix product: tiles of two operands in shared memory, both with the depth running along a
// row of 64 bytes, and the sums in registers. The chunks of 16 bytes of a row are exchanged so that eight rows of one
// chunk lie in different banks.
#pragma once

#include "cuda/common/async_copy.h"
#include "cuda/common/matrix.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int row_bytes = 64;
inline constexpr int chunks_of_row = row_bytes / vector_bytes;

// Byte of chunk `chunk` of row `row` in a tile.
FASTCONV_BOTH int chunk_at(int row, int chunk) {
  return row * row_bytes + (chunk ^ (row / 2 % chunks_of_row)) * vector_bytes;
}

// Sizes of a block: it makes Rows x Columns sums. Warps share it by WarpRows x WarpColumns.
template <int Rows, int Columns, int WarpRows, int WarpColumns>
struct Tile {
  static constexpr int rows = Rows, columns = Columns, warp_rows = WarpRows, warp_columns = WarpColumns;
  static constexpr int warps_across = Columns / WarpColumns;
  static constexpr int threads = Rows / WarpRows * warps_across * lanes_of_warp;
  static constexpr int stages = 3;
  static constexpr int stage_bytes = (Rows + Columns) * row_bytes;
  static constexpr int sums_pitch = Columns + 8;  // floats: eight rows of the sums lie in different banks
  static constexpr int shared_bytes = std::max(stages * stage_bytes, Rows * sums_pitch * 4);
  static_assert(WarpRows % mma_rows == 0 && WarpColumns % (2 * mma_columns) == 0);
  static_assert(shared_bytes <= 99 << 10, "Two blocks must fit on an SM of sm_80 to sm_100.");
};
using SmallTile = Tile<64, 64, 32, 32>;
using LargeTile = Tile<128, 128, 64, 32>;

// Sums of a warp on tensor cores: float storage is rounded to tf32.
template <class T, class Tile>
struct MatrixSums {
  static constexpr int down = Tile::warp_rows / mma_rows, across = Tile::warp_columns / mma_columns;
  float sum[down][across][4] = {};
  int row, column;  // of the warp in the block's tile

  FASTCONV_DEVICE MatrixSums() {
    const int warp = this_thread() / lanes_of_warp;
    row = warp / Tile::warps_across * Tile::warp_rows;
    column = warp % Tile::warps_across * Tile::warp_columns;
  }

  FASTCONV_DEVICE void multiply(Shared<char> left, Shared<char> right) {
    const int lane = this_thread() % lanes_of_warp, octet = lane / 8, line = lane % 8;
    FASTCONV_UNROLL
    for (int k = 0; k < chunks_of_row; k += 2) {
      uint32_t a[down][4], b[across / 2][4];
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i)
        load_matrices(a[i], left + chunk_at(row + i * mma_rows + line + octet % 2 * 8, k + octet / 2));
      FASTCONV_UNROLL
      for (int j = 0; j < across / 2; ++j)
        load_matrices(b[j], right + chunk_at(column + j * 2 * mma_columns + line + octet / 2 * 8, k + octet % 2));
      if constexpr (sizeof(T) == sizeof(float)) round_operands(a, b);
      accumulate(a, b);
    }
  }

  // What float storage holds, as tf32.
  FASTCONV_DEVICE static void round_operands(uint32_t (&a)[down][4], uint32_t (&b)[across / 2][4]) {
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int e = 0; e < 4; ++e) a[i][e] = to_tf32(a[i][e]);
    FASTCONV_UNROLL
    for (int j = 0; j < across / 2; ++j) FASTCONV_UNROLL
    for (int e = 0; e < 4; ++e) b[j][e] = to_tf32(b[j][e]);
  }
  // 32 bytes of depth: fragments of the warp's rows, and of pairs of its groups of eight columns.
  FASTCONV_DEVICE void accumulate(const uint32_t (&a)[down][4], const uint32_t (&b)[across / 2][4]) {
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; ++j)
      MatrixOf<T>::multiply(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  // Calls f(row, column, two neighbouring sums) for all that this thread has.
  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int lane = this_thread() % lanes_of_warp;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; ++j) FASTCONV_UNROLL
    for (int half = 0; half < 2; ++half)
      f(row + i * mma_rows + lane / 4 + half * 8, column + j * mma_columns + lane % 4 * 2,
        Pack<float, 2>{{sum[i][j][2 * half], sum[i][j][2 * half + 1]}});
  }
};

// The same in float, by multiply-adds: a thread has 8 x Across sums, of rows apart and neighbouring columns.
template <class Tile, int Across = 4>
struct PlainSums {
  static constexpr int down = 8, across = Across;
  static constexpr int columns_of_threads = Tile::columns / across;
  static constexpr int rows_of_threads = Tile::threads / columns_of_threads;
  static_assert(rows_of_threads * down == Tile::rows);
  float sum[down][across] = {};

  FASTCONV_DEVICE void multiply(Shared<char> left, Shared<char> right) {
    const int y = this_thread() / columns_of_threads, x = this_thread() % columns_of_threads;
    for (int k = 0; k < chunks_of_row; ++k) {
      Pack<float, 4> a[down], b[across];
      auto chunk = [k](Shared<char> tile, int row) {
        return Shared<float>{reinterpret_cast<float*>(tile.data + chunk_at(row, k))}.template read<4>(0);
      };
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) a[i] = chunk(left, y + i * rows_of_threads);
      FASTCONV_UNROLL
      for (int j = 0; j < across; ++j) b[j] = chunk(right, x * across + j);
      FASTCONV_UNROLL
      for (int e = 0; e < 4; ++e) FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) FASTCONV_UNROLL
      for (int j = 0; j < across; ++j) sum[i][j] += a[i].v[e] * b[j].v[e];
    }
  }

  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int y = this_thread() / columns_of_threads, x = this_thread() % columns_of_threads;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; j += 2)
      f(y + i * rows_of_threads, x * across + j, Pack<float, 2>{{sum[i][j], sum[i][j + 1]}});
  }
};

}  // namespace fastconv::FASTCONV_GPU
