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

// sums: Tile::rows x Tile::columns, of which the first `columns` exist, from channel `first` on. place(row): Written.
// Shared memory from `shared` on may hold what other threads still read: a barrier comes first.
template <class Tile, class T, class Sums, class Place>
FASTCONV_DEVICE void store_tile(const Tail<T>& tail, bool by_vectors, const Sums& sums, Shared<float> shared,
                                int columns, int64_t first, Place&& place) {
  barrier();
  sums.each([&](int row, int column, Pack<float, 2> pair) { shared.write(row * Tile::sums_pitch + column, pair); });
  barrier();
  auto put = [&](auto vector, int row, int column) {
    constexpr int V = decltype(vector)::value;
    if (column >= columns) return;
    const Written to = place(row);
    if (!to.present) return;
    float value[V];
    shared.read_all(value, row * Tile::sums_pitch + column);
    tail.put(to.image, to.pixel, first + column, value);
  };
  constexpr int elements = wide<T>, across = Tile::columns / elements;
  if (by_vectors) {
    for (int i = this_thread(); i < Tile::rows * across; i += Tile::threads)
      put(std::integral_constant<int, elements>{}, i / across, i % across * elements);
  } else if (tail.out_channel == 1) {
    for (int i = this_thread(); i < Tile::rows * Tile::columns; i += Tile::threads)
      put(std::integral_constant<int, 1>{}, i / Tile::columns, i % Tile::columns);
  } else {
    for (int i = this_thread(); i < Tile::rows * Tile::columns; i += Tile::threads)
      put(std::integral_constant<int, 1>{}, i % Tile::rows, i / Tile::rows);
  }
}

}  // namespace fastconv::FASTCONV_GPU
