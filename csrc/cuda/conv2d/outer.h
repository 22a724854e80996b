// One block's share of a sum of outer products: tiles of two operands in shared memory whose neighbours are rows (or
// columns) of the result and whose lines are the depth, as pixels with their channels lie in memory. The sums are
// those of tile.h. A line is eight elements longer than the tile is wide, so that eight lines of 16 bytes, and four of
// eight floats, lie in different banks.
#pragma once

#include "tile.h"

namespace fastconv::FASTCONV_GPU {

template <class T>
struct OuterTile : SmallTile {
  static constexpr int depth = row_bytes / static_cast<int>(sizeof(T));  // lines of a step
  static constexpr int pitch = rows + 8;                                 // elements
  static constexpr int operand = depth * pitch;
  static constexpr int stage_bytes = 2 * operand * static_cast<int>(sizeof(T));
  static constexpr int shared_bytes = std::max(stages * stage_bytes, rows * sums_pitch * 4);
  static_assert(rows == columns, "Both operands are brought alike.");
  static_assert(shared_bytes <= 48 << 10);
};

// On tensor cores. Elements of two bytes are transposed by ldmatrix; floats are read one by one.
template <class T>
struct OuterMatrixSums : MatrixSums<T, OuterTile<T>> {
  using Tile = OuterTile<T>;
  using Base = MatrixSums<T, Tile>;

  FASTCONV_DEVICE void multiply(Shared<T> left, Shared<T> right) {
    constexpr int down = Base::down, across = Base::across, pitch = Tile::pitch;
    constexpr int step = mma_depth_bytes / static_cast<int>(sizeof(T));
    const int lane = this_thread() % lanes_of_warp;
    FASTCONV_UNROLL
    for (int k = 0; k < Tile::depth; k += step) {
      uint32_t a[down][4], b[across / 2][4];
      if constexpr (sizeof(T) == 2) {
        const int octet = lane / 8, line = lane % 8;
        FASTCONV_UNROLL
        for (int i = 0; i < down; ++i)
          load_transposed(a[i], left + (k + octet / 2 * 8 + line) * pitch + this->row + i * mma_rows + octet % 2 * 8);
        FASTCONV_UNROLL
        for (int j = 0; j < across / 2; ++j)
          load_transposed(
              b[j], right + (k + octet % 2 * 8 + line) * pitch + this->column + j * 2 * mma_columns + octet / 2 * 8);
      } else {
        const int line = lane % 4, place = lane / 4;
        auto rounded = [](Shared<T> operand, int at) {
          return to_tf32(Shared<uint32_t>{reinterpret_cast<uint32_t*>(operand.data)}.get(at));
        };
        FASTCONV_UNROLL
        for (int i = 0; i < down; ++i) FASTCONV_UNROLL
        for (int e = 0; e < 4; ++e)
          a[i][e] = rounded(left, (k + line + e / 2 * 4) * pitch + this->row + i * mma_rows + place + e % 2 * 8);
        FASTCONV_UNROLL
        for (int j = 0; j < across / 2; ++j) FASTCONV_UNROLL
        for (int e = 0; e < 4; ++e)
          b[j][e] =
              rounded(right, (k + line + e % 2 * 4) * pitch + this->column + j * 2 * mma_columns + place + e / 2 * 8);
      }
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) FASTCONV_UNROLL
      for (int j = 0; j < across; ++j)
        MatrixOf<T>::multiply(this->sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

// In float, by multiply-adds: a thread has 8 x 4 sums, of twice four neighbouring rows and four neighbouring columns.
struct OuterPlainSums {
  using Tile = OuterTile<float>;
  static constexpr int down = 8, across = 4, vector = 4;
  static constexpr int columns_of_threads = Tile::columns / across;
  static constexpr int next_rows = Tile::threads / columns_of_threads * vector;  // from the first four to the others
  static_assert(next_rows * (down / vector) == Tile::rows);
  float sum[down][across] = {};

  FASTCONV_DEVICE void multiply(Shared<float> left, Shared<float> right) {
    const int y = this_thread() / columns_of_threads * vector, x = this_thread() % columns_of_threads * across;
    FASTCONV_UNROLL
    for (int k = 0; k < Tile::depth; ++k) {
      const Pack<float, vector> a[down / vector] = {left.read<vector>(k * Tile::pitch + y),
                                                    left.read<vector>(k * Tile::pitch + y + next_rows)};
      const Pack<float, across> b = right.read<across>(k * Tile::pitch + x);
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) FASTCONV_UNROLL
      for (int j = 0; j < across; ++j) sum[i][j] += a[i / vector].v[i % vector] * b.v[j];
    }
  }

  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int y = this_thread() / columns_of_threads * vector, x = this_thread() % columns_of_threads * across;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; j += 2)
      f(y + i / vector * next_rows + i % vector, x + j, Pack<float, 2>{{sum[i][j], sum[i][j + 1]}});
  }
};

}  // namespace fastconv::FASTCONV_GPU
