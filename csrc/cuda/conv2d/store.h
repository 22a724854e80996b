// The end of a block that has the sums of some pixels and channels: through shared memory, so that neighbouring threads
// store neighbouring channels, 16 bytes at once where the tail takes them.
#pragma once

#include "cuda/common/epilogue.h"
#include "cuda/common/shared.h"

namespace fastconv::FASTCONV_GPU {

// Where a row of a block's tile is written.
struct Written {
  bool present;
  int image;
  int64_t pixel;
};

// Sums in shared memory, [row][column], to the tensor: `rows` x `columns` of them, of which the first `present` columns
// exist, from channel `first` on. place(row): Written. by_vectors: columns and channels are multiples of 16 bytes.
template <class T, class Place>
FASTCONV_DEVICE void store_shared(const Tail<T>& tail, bool by_vectors, Shared<float> sums, int pitch, int rows,
                                  int columns, int present, int64_t first, int threads, Place&& place) {
  constexpr int elements = wide<T>;
  auto put = [&](auto vector, int row, int column) {
    constexpr int V = decltype(vector)::value;
    if (column >= present) return;
    const Written to = place(row);
    if (!to.present) return;
    float value[V];
    sums.read_all(value, row * pitch + column);
    tail.put(to.image, to.pixel, first + column, value);
  };
  if (by_vectors) {
    const int across = columns / elements;
    for (int i = this_thread(); i < rows * across; i += threads)
      put(std::integral_constant<int, elements>{}, i / across, i % across * elements);
  } else if (tail.out_channel == 1) {
    for (int i = this_thread(); i < rows * columns; i += threads)
      put(std::integral_constant<int, 1>{}, i / columns, i % columns);
  } else {
    for (int i = this_thread(); i < rows * columns; i += threads)
      put(std::integral_constant<int, 1>{}, i % rows, i / rows);
  }
}

// sums: Tile::rows x Tile::columns in registers. Shared memory from `shared` on may hold what other threads still read:
// a barrier comes first.
template <class Tile, class T, class Sums, class Place>
FASTCONV_DEVICE void store_tile(const Tail<T>& tail, bool by_vectors, const Sums& sums, Shared<float> shared,
                                int present, int64_t first, Place&& place) {
  barrier();
  sums.each([&](int row, int column, Pack<float, 2> pair) { shared.write(row * Tile::sums_pitch + column, pair); });
  barrier();
  store_shared(tail, by_vectors, shared, Tile::sums_pitch, Tile::rows, Tile::columns, present, first, Tile::threads,
               place);
}

}  // namespace fastconv::FASTCONV_GPU
