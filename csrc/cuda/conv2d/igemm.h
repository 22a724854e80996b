// The implicit matrix product behind fprop and dgrad: written pixels x their channels, summed over taps and source
// channels. Which source pixel belongs to a tap is walk.h's; a block's product is tile.h's.
#pragma once

#include "cuda/common/launch.h"
#include "store.h"
#include "tile.h"
#include "walk.h"

namespace fastconv::FASTCONV_GPU {

template <class T>
struct IgemmParams {
  const T* source;
  const T* filter;  // per group: a row for each written channel: [tap][source channel, padded to 16 bytes]
  int64_t image, pixel, channel;     // strides of the source, in elements
  int64_t filter_row, filter_group;  // likewise
  int images, height, width;         // of the source
  int channels, padded;              // source channels of a group; with the padding
  int columns;                       // written channels of a group
  int filter_width;                  // S
  int written_width;                 // pixels of a written row
  int column_tiles;
  Walks h, w;
  Tail<T> tail;
  bool tail_takes_vectors;
};

// Queue the product: on tensor cores, or in float by multiply-adds. Its parameters but column_tiles are given. In
// igemm.cu, for every T.
template <class T>
void start_matrix(IgemmParams<T> params, int64_t groups, Stream stream);
void start_plain(IgemmParams<float> params, int64_t groups, Stream stream);

// Why the product does not number what a problem has; empty: it does.
std::string refuses_product(const Problem& p);

// Wide: a chunk of 16 bytes of source channels is one aligned access. Else each element is loaded by itself, at any
// alignment and in either layout, and written to shared memory by its thread. SharedBytes is what a launch asks for; it
// stands in the kernel's name, where fastconv/testing/cubin.py reads it.
template <class T, class Tile, class Sums, bool Wide, int SharedBytes = Tile::shared_bytes>
FASTCONV_GLOBAL(Tile::threads, 2)
igemm(FASTCONV_PARAMS(IgemmParams<T>) p) {
  constexpr int elements = wide<T>, depth_step = row_bytes / sizeof(T);
  constexpr int lines = Tile::threads / chunks_of_row;  // rows that all threads bring at once
  constexpr int own_rows = Tile::rows / lines, own_columns = Tile::columns / lines;

  const Grid block = this_block();
  const Walk &h = p.h.phase[block.y / static_cast<unsigned>(p.w.count)],
             &w = p.w.phase[block.y % static_cast<unsigned>(p.w.count)];
  const int group = static_cast<int>(block.z), pixels = h.count * w.count, rows = p.images * pixels;
  const int first_row = static_cast<int>(block.x) / p.column_tiles * Tile::rows;
  const int first_column = static_cast<int>(block.x) % p.column_tiles * Tile::columns;
  if (first_row >= rows) return;  // phases differ in size; the whole block goes

  // What this thread brings: one chunk of several rows and columns.
  const int line = this_thread() / chunks_of_row, chunk = this_thread() % chunks_of_row;
  const T* image[own_rows];
  int top[own_rows], left[own_rows];
  FASTCONV_UNROLL
  for (int i = 0; i < own_rows; ++i) {
    const int row = first_row + line + i * lines;
    const int n = row / pixels, at = row % pixels;
    image[i] = p.source + n * p.image + static_cast<int64_t>(group) * p.channels * p.channel;
    top[i] = row < rows ? at / w.count * h.stride + h.first : -0x40000000;  // never inside
    left[i] = at % w.count * w.stride + w.first;
  }
  const T* const filter = p.filter + group * p.filter_group;

  const int depth = h.taps * w.taps * p.padded;
  const int steps = (depth + depth_step - 1) / depth_step;
  auto bring = [&](int step) {
    const int k = step * depth_step + chunk * elements;
    const int tap = k / p.padded, c = k % p.padded, r = tap / w.taps, s = tap % w.taps;
    const bool present = k < depth;
    const Shared<char> stage = Shared<char>::at(step % Tile::stages * Tile::stage_bytes);
    FASTCONV_UNROLL
    for (int i = 0; i < own_rows; ++i) {
      const int y = top[i] + r * h.step, x = left[i] + s * w.step;
      const bool inside = present && static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(p.width);
      const Shared<T> to{reinterpret_cast<T*>((stage + chunk_at(line + i * lines, chunk)).data)};
      const T* from = image[i];
      if (inside) from += (static_cast<int64_t>(y) * p.width + x) * p.pixel + c * p.channel;
      if constexpr (Wide) {
        copy_async(to, from, inside);
      } else {
        Pack<T, elements> pack;
        FASTCONV_UNROLL
        for (int e = 0; e < elements; ++e) pack.v[e] = inside && c + e < p.channels ? fetch(from + e * p.channel) : T{};
        to.write(0, pack);
      }
    }
    const int64_t place =
        (static_cast<int64_t>(h.first_tap + r * h.tap_step) * p.filter_width + w.first_tap + s * w.tap_step) *
            p.padded +
        c;
    const Shared<char> right = stage + Tile::rows * row_bytes;
    FASTCONV_UNROLL
    for (int i = 0; i < own_columns; ++i) {
      const int column = first_column + line + i * lines;
      const bool inside = present && column < p.columns;
      const Shared<T> to{reinterpret_cast<T*>((right + chunk_at(line + i * lines, chunk)).data)};
      copy_async(to, inside ? filter + column * p.filter_row + place : filter, inside);
    }
  };

  Sums sums;
  FASTCONV_UNROLL
  for (int step = 0; step < Tile::stages - 1; ++step) {
    if (step < steps) bring(step);
    commit_group();
  }
  for (int step = 0; step < steps; ++step) {
    wait_groups<Tile::stages - 2>();
    barrier();  // this step's chunks are there, and the last step's have been read
    if (step + Tile::stages - 1 < steps) bring(step + Tile::stages - 1);
    commit_group();
    const Shared<char> stage = Shared<char>::at(step % Tile::stages * Tile::stage_bytes);
    sums.multiply(stage, stage + Tile::rows * row_bytes);
  }

  store_tile<Tile>(p.tail, p.tail_takes_vectors, sums, Shared<float>::at(0), p.columns - first_column,
                   static_cast<int64_t>(group) * p.columns + first_column, [&](int row) {
                     const int n = (first_row + row) / pixels, at = (first_row + row) % pixels;
                     const int64_t y = at / w.count * h.out_step + h.out_first,
                                   x = at % w.count * w.out_step + w.out_first;
                     return Written{first_row + row < rows, n, y * p.written_width + x};
                   });
}

}  // namespace fastconv::FASTCONV_GPU
