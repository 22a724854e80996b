// Every height and width of the register tile, built once. Accumulators stay in registers: the FMA is one line of
// assembly (simd/fma_into.h) and every index is a template argument.
#include "tile.h"

#include <array>
#include <utility>

#include "simd/fma_into.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// next() is where the row of b after the last lies.
template <class A, int Rows, int Vectors, class Next>
[[gnu::always_inline]] inline void multiply(int64_t depth, const A* a, int64_t a_step, A* c, int64_t c_step, bool add,
                                            Next&& next) {
  using V = Vec<A>;
  V acc[Rows * Vectors];
  unrolled<Rows * Vectors>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
  for (; depth > 0; --depth, a += a_step) {
    const A* b = next();
    V columns[Vectors];
    unrolled<Vectors>([&](auto v) __attribute__((always_inline)) { columns[v] = V::load(b + v * V::lanes); });
    unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
      const V row = V::broadcast(a[i]);
      unrolled<Vectors>([&](auto v)
                            __attribute__((always_inline)) { fma_into(acc[i * Vectors + v], row, columns[v]); });
    });
  }
  unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
    unrolled<Vectors>([&](auto v) __attribute__((always_inline)) {
      A* out = c + i * c_step + v * V::lanes;
      (add ? V::load(out) + acc[i * Vectors + v] : acc[i * Vectors + v]).store(out);
    });
  });
}

template <class A, int Rows, int Vectors>
void tile(int64_t depth, const A* a, int64_t a_step, const A* b, int64_t b_step, A* c, int64_t c_step, bool add,
          Ahead ahead) {
  multiply<A, Rows, Vectors>(depth, a, a_step, c, c_step, add, [&]() __attribute__((always_inline)) {
    __builtin_prefetch(std::exchange(ahead.at, ahead.at + ahead.step), for_reading, into_l2);
    return std::exchange(b, b + b_step);
  });
}

template <class A, int Rows, int Vectors>
void indirect_tile(int64_t depth, const A* a, int64_t a_step, const A* b, const int64_t* at, A* c, int64_t c_step) {
  multiply<A, Rows, Vectors>(depth, a, a_step, c, c_step, false,
                             [&]() __attribute__((always_inline)) { return b + *at++; });
}

template <class A, int... I>
constexpr auto tiles(std::integer_sequence<int, I...>) {
  return std::array<TileFunction<A>, sizeof...(I)>{tile<A, I / Tile<A>::vectors + 1, I % Tile<A>::vectors + 1>...};
}

template <class A, int... I>
constexpr auto indirect_tiles(std::integer_sequence<int, I...>) {
  return std::array<IndirectTile<A>, sizeof...(I)>{
      indirect_tile<A, I / Tile<A>::vectors + 1, I % Tile<A>::vectors + 1>...};
}

}  // namespace

template <class A>
TileFunction<A> tile_for(int64_t rows, int64_t vectors) {
  static constexpr auto all = tiles<A>(std::make_integer_sequence<int, Tile<A>::rows * Tile<A>::vectors>{});
  return all[static_cast<size_t>((rows - 1) * Tile<A>::vectors + vectors - 1)];
}

template <class A>
IndirectTile<A> indirect_tile_for(int64_t rows, int64_t vectors) {
  static constexpr auto all = indirect_tiles<A>(std::make_integer_sequence<int, Tile<A>::rows * Tile<A>::vectors>{});
  return all[static_cast<size_t>((rows - 1) * Tile<A>::vectors + vectors - 1)];
}

template TileFunction<float> tile_for<float>(int64_t, int64_t);
template TileFunction<double> tile_for<double>(int64_t, int64_t);
template IndirectTile<float> indirect_tile_for<float>(int64_t, int64_t);
template IndirectTile<double> indirect_tile_for<double>(int64_t, int64_t);

}  // namespace fastconv::FASTCONV_ISA
