// The product behind the direct kernel for few channels. Its depth is the filter's rows, each of (tap, channel) as they
// lie next to each other in a row of the source, so that nothing is padded but the end of a filter row. A tile of the
// source lies in shared memory once, and every fragment is gathered from it by a table of the depth.
#pragma once

#include "stem_input.h"
#include "tile.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int step_words = mma_depth_bytes / word_bytes;
template <class T>
inline constexpr int of_word = word_bytes / static_cast<int>(sizeof(T));  // elements

template <int Columns>
using StemTile = Tile<stem_rows * stem_columns, Columns, 2 * stem_columns, Columns>;

// What of a source's tile belongs to one word of the depth: elements from `offset` on, behind a pixel's first, as far
// as the bits of `mask`. What is masked may be another pixel's infinity, so it is not left to a filter's zero.
struct StemWord {
  int offset;
  unsigned mask;
};

// The source's tile in shared memory, as a thread gathers from it.
template <class T>
struct StemSource {
  Shared<int> table;  // [word] offset, mask
  Shared<T> tile;
  int pitch, pixel;  // elements from a written row's source to the next, and from a written pixel's

  FASTCONV_DEVICE StemWord word(int i) const {
    const Pack<int, 2> entry = table.template read<2>(2 * i);
    return {entry.v[0], static_cast<unsigned>(entry.v[1])};
  }
  // First element of written pixel `row` of the tile.
  FASTCONV_DEVICE int at(int row) const { return row / stem_columns * pitch + row % stem_columns * pixel; }
  // Aligned: words start at multiples of four bytes.
  template <bool Aligned>
  FASTCONV_DEVICE uint32_t gather(int from, StemWord word) const {
    T* const at = tile.data + from + word.offset;
    if constexpr (Aligned) {
      return Shared<uint32_t>{reinterpret_cast<uint32_t*>(at)}.get(0) & word.mask;
    } else {
      const Shared<uint16_t> halves{reinterpret_cast<uint16_t*>(at)};
      return (halves.get(0) | static_cast<uint32_t>(halves.get(1)) << 16) & word.mask;
    }
  }
};

// On tensor cores. The filter lies as [column][depth], lines eight halves longer than a multiple of 32 bytes.
template <class T, class Tile, bool Aligned>
struct StemMatrixSums : MatrixSums<T, Tile> {
  using Base = MatrixSums<T, Tile>;

  static FASTCONV_BOTH int filter_words(int words) { return Tile::columns * line_words(words); }
  static FASTCONV_BOTH int line_words(int words) { return words + vector_bytes / word_bytes; }
  FASTCONV_DEVICE static int filter_at(int column, int element, int words) {
    return column * line_words(words) * of_word<T> + element;
  }

  FASTCONV_DEVICE void multiply(const StemSource<T>& source, Shared<T> filter, int words) {
    constexpr int down = Base::down, across = Base::across;
    const int lane = this_thread() % lanes_of_warp, octet = lane / 8, line = lane % 8;
    int from[down][2];
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int half = 0; half < 2; ++half) from[i][half] = source.at(this->row + i * mma_rows + half * 8 + lane / 4);
    for (int k = 0; k < words; k += step_words) {
      uint32_t a[down][4], b[across / 2][4];
      FASTCONV_UNROLL
      for (int q = 0; q < 2; ++q) {
        const StemWord word = source.word(k + q * 4 + lane % 4);
        FASTCONV_UNROLL
        for (int i = 0; i < down; ++i) FASTCONV_UNROLL
        for (int half = 0; half < 2; ++half) a[i][2 * q + half] = source.template gather<Aligned>(from[i][half], word);
      }
      FASTCONV_UNROLL
      for (int j = 0; j < across / 2; ++j)
        load_matrices(b[j], filter + filter_at(this->column + j * 2 * mma_columns + line + octet / 2 * 8,
                                               (k + octet % 2 * 4) * of_word<T>, words));
      if constexpr (sizeof(T) == sizeof(float)) Base::round_operands(a, b);
      this->accumulate(a, b);
    }
  }
};

// In float, by multiply-adds: a thread has 8 rows, as many columns as a warp tile's eighth. The filter lies as
// [depth][column].
template <class Tile>
struct StemPlainSums : PlainSums<Tile, Tile::columns / 8> {
  using Base = PlainSums<Tile, Tile::columns / 8>;

  static FASTCONV_BOTH int filter_words(int words) { return Tile::columns * words; }
  FASTCONV_DEVICE static int filter_at(int column, int element, int) { return element * Tile::columns + column; }

  FASTCONV_DEVICE void multiply(const StemSource<float>& source, Shared<float> filter, int words) {
    constexpr int down = Base::down, across = Base::across;
    const int y = this_thread() / Base::columns_of_threads, x = this_thread() % Base::columns_of_threads;
    int from[down];
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) from[i] = source.at(y + i * Base::rows_of_threads);
    for (int k = 0; k < words; ++k) {
      const StemWord word = source.word(k);
      float a[down], b[across];
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) a[i] = word.mask ? source.tile.get(from[i] + word.offset) : 0.0f;
      filter.read_all(b, k * Tile::columns + x * across);
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) FASTCONV_UNROLL
      for (int j = 0; j < across; ++j) this->sum[i][j] += a[i] * b[j];
    }
  }
};

}  // namespace fastconv::FASTCONV_GPU
