// The product of one group of few channels, by one warp: the pixels of a block's tile x the group's written channels,
// summed over (tap, source channel) without gaps. The source of several groups lies in shared memory, [pixel][channel];
// a table says where an element of the depth lies behind a pixel's first, so that no group meets another's numbers.
//
// A lane's share of 32 bytes of depth is 8 bytes next to each other, of the source and of the filter alike: the order
// of a sum's terms is free, and so both registers of a row come by one load.
#pragma once

#include "cuda/common/matrix.h"
#include "group_input.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int nothing = -1;  // in a table: no element, zero
inline constexpr int pair_bytes = 8, pairs_of_step = mma_depth_bytes / pair_bytes;
template <class T>
inline constexpr int of_pair = pair_bytes / static_cast<int>(sizeof(T));  // elements

template <class T>
struct GroupSource {
  Shared<int> table;  // offsets of a depth's elements, or of every first one of a pair
  Shared<T> tile;     // at the group's first channel
  int row, pixel;     // elements from one written row's, and written pixel's, source to the next

  FASTCONV_DEVICE int at(int i) const { return i / group_width * row + i % group_width * pixel; }
};

// On tensor cores, for Columns written channels or fewer. Pairs: eight bytes of depth are neighbours in the source, at
// a multiple of eight bytes. The filter: [column][depth].
template <class T, int Columns, bool Pairs>
struct GroupMatrix {
  static constexpr int columns = Columns, across = Columns / mma_columns, down = group_pixels / mma_rows;
  static constexpr int of_entry = Pairs ? of_pair<T> : 1;  // elements of the depth for each one of the table
  float sum[down][across][4] = {};

  static FASTCONV_BOTH int pitch(int depth) { return depth + of_pair<T>; }
  FASTCONV_DEVICE static int filter_at(int column, int k, int depth) { return column * pitch(depth) + k; }

  FASTCONV_DEVICE static Pack<uint32_t, 2> gather(const GroupSource<T>& source, int from, int pair) {
    Pack<uint32_t, 2> bits{{0, 0}};
    if constexpr (Pairs) {
      const int offset = source.table.get(pair);
      if (offset != nothing)
        bits = Shared<uint32_t>{reinterpret_cast<uint32_t*>(source.tile.data + from + offset)}.template read<2>(0);
    } else {
      Pack<T, of_pair<T>> elements;
      FASTCONV_UNROLL
      for (int e = 0; e < of_pair<T>; ++e) {
        const int offset = source.table.get(pair * of_pair<T> + e);
        elements.v[e] = offset == nothing ? T{} : source.tile.get(from + offset);
      }
      memcpy(&bits, &elements, sizeof bits);
    }
    return bits;
  }

  // depth: a multiple of 32 bytes.
  FASTCONV_DEVICE void multiply(const GroupSource<T>& source, Shared<T> filter, int depth) {
    const int lane = this_thread() % lanes_of_warp, line = lane / 4, share = lane % 4;
    for (int k = 0; k < depth / of_pair<T>; k += pairs_of_step) {
      Pack<uint32_t, 2> b[across];
      FASTCONV_UNROLL
      for (int j = 0; j < across; ++j) {
        T* const at = filter.data + filter_at(j * mma_columns + line, (k + share) * of_pair<T>, depth);
        b[j] = rounded(Shared<uint32_t>{reinterpret_cast<uint32_t*>(at)}.template read<2>(0));
      }
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) {
        const Pack<uint32_t, 2> high = rounded(gather(source, source.at(i * mma_rows + line), k + share)),
                                low = rounded(gather(source, source.at(i * mma_rows + line + 8), k + share));
        const uint32_t a[4] = {high.v[0], low.v[0], high.v[1], low.v[1]};
        FASTCONV_UNROLL
        for (int j = 0; j < across; ++j) MatrixOf<T>::multiply(sum[i][j], a, b[j].v[0], b[j].v[1]);
      }
    }
  }
  FASTCONV_DEVICE static Pack<uint32_t, 2> rounded(Pack<uint32_t, 2> bits) {
    if constexpr (sizeof(T) == sizeof(float)) bits.v[0] = to_tf32(bits.v[0]), bits.v[1] = to_tf32(bits.v[1]);
    return bits;
  }

  // Calls f(pixel, column, two neighbouring sums) for all that this thread has.
  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int lane = this_thread() % lanes_of_warp;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; ++j) FASTCONV_UNROLL
    for (int half = 0; half < 2; ++half)
      f(i * mma_rows + lane / 4 + half * 8, j * mma_columns + lane % 4 * 2,
        Pack<float, 2>{{sum[i][j][2 * half], sum[i][j][2 * half + 1]}});
  }
};

// In float, by multiply-adds: a lane has all columns of every 32nd pixel. The filter: [depth][column].
template <int Columns>
struct GroupPlain {
  static constexpr int columns = Columns, down = group_pixels / lanes_of_warp, of_entry = 1;
  float sum[down][Columns] = {};

  static FASTCONV_BOTH int pitch(int depth) { return depth; }
  FASTCONV_DEVICE static int filter_at(int column, int k, int) { return k * Columns + column; }

  FASTCONV_DEVICE void multiply(const GroupSource<float>& source, Shared<float> filter, int depth) {
    const int lane = this_thread() % lanes_of_warp;
    for (int k = 0; k < depth; ++k) {
      const int offset = source.table.get(k);
      if (offset == nothing) continue;
      float a[down], b[Columns];
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) a[i] = source.tile.get(source.at(lane + i * lanes_of_warp) + offset);
      filter.read_all(b, k * Columns);
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) FASTCONV_UNROLL
      for (int j = 0; j < Columns; ++j) sum[i][j] += a[i] * b[j];
    }
  }

  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int lane = this_thread() % lanes_of_warp;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < Columns; j += 2) f(lane + i * lanes_of_warp, j, Pack<float, 2>{{sum[i][j], sum[i][j + 1]}});
  }
};

}  // namespace fastconv::FASTCONV_GPU
