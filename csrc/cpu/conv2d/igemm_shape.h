// What igemm.cpp derives from a problem before it runs: the sizes of strips and panels, and the layout of the
// workspace.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "core/problem.h"
#include "cpu/arena.h"
#include "microkernel.h"
#include "pack.h"

namespace fastconv::FASTCONV_ISA::igemm {

inline constexpr int64_t l1_set_bytes = 4096;  // addresses equal modulo this share a set of the first cache
inline constexpr int64_t l1_ways = 8;

// Steps of a tile between two trips of its sums through the cache: enough to hide the trip, few enough that chunks of
// eight panels stay in L2.
inline constexpr int64_t chunk_steps = 512;

// Tiles of fewer steps are over before the lines they write have come: they fetch those of the next strip.
inline constexpr int64_t shallow_steps = 32;

// How the operands of a tile lie: storage type T, widened to what it computes in. (pairs.cpp has another.)
template <class T>
struct Widened {
  using Storage = T;
  using Element = arithmetic<T>;
  static constexpr int step = 1;     // depths a tile takes at once
  static constexpr double pace = 1;  // time of a product, in those of a float tile
  static auto tile(int rows, int vectors) { return tile_function<Element>(rows, vectors); }
};
inline constexpr int64_t paired_at_once = 16;  // depths that are packed wide before they become pairs

struct Depths {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Everything that follows from a problem alone.
template <class Operand>
struct Shape {
  using T = typename Operand::Storage;
  using A = arithmetic<T>;
  using E = typename Operand::Element;
  static constexpr int lanes = Vec<A>::lanes;

  int64_t channels, depth;  // of the source, and of one group of it
  int64_t chunk;            // depths that are summed in one go
  int64_t columns;          // written channels of one group
  int64_t filter_taps;
  bool merged;            // a filter row is one run of S·C elements
  int64_t run;            // elements of one tap of the table
  int64_t table_taps;     // at most
  int vectors, strip;     // panel width in vectors, most pixels of a strip
  int64_t width, panels;  // panel width in channels, panels of one group
  bool staged;
  int64_t stage_stride;
  int64_t panel_size;    // elements of one chunk of a packed panel, at most
  int64_t group_panels;  // panels that half of L2 holds

  explicit Shape(const Problem& p) {
    const bool dgrad = p.pass == Pass::dgrad;
    channels = dgrad ? p.k : p.c;
    depth = channels / p.groups;
    columns = p.written_channels() / p.groups;
    filter_taps = p.taps();
    const bool mergeable = !dgrad && p.groups == 1 && p.w.window > 1 && p.w.dilation == 1;
    const bool padded = p.w.pad_lo > 0 || (p.w.out - 1) * p.w.stride - p.w.pad_lo + p.w.window > p.w.in;
    choose_chunk(p);
    merged = mergeable && !padded && chunk == depth && depth % Operand::step == 0;
    run = merged ? p.w.window * depth : round_up(chunk, Operand::step);
    table_taps = merged ? p.h.window : filter_taps;
    vectors = columns <= lanes ? 1 : tile_vectors;
    strip = vectors == 1 ? max_tile_rows : tile_rows;
    width = vectors * lanes;
    panels = divide_up(columns, width);
    const int64_t step = p.w.stride;
    const int64_t apart = step * channels * static_cast<int64_t>(sizeof(E));  // bytes between neighbouring rows
    const bool conflict =
        (table_taps == 1 || chunk < depth) && strip * std::gcd(apart, l1_set_bytes) > l1_ways * l1_set_bytes;
    staged = !std::is_same_v<T, E> || conflict || depth % Operand::step != 0;
    stage_stride = run + cache_line / static_cast<int64_t>(sizeof(E));
    panel_size = panel_elements({0, chunk});
    const int64_t panel_bytes = std::max<int64_t>(1, panel_size * static_cast<int64_t>(sizeof(E)));
    const int64_t held = std::clamp<int64_t>(machine().l2 / 2 / panel_bytes, 1, p.groups * panels);
    group_panels = divide_up(p.groups * panels, divide_up(p.groups * panels, held));  // groups of equal size
  }

  int64_t zeros() const { return std::max(round_up(channels, Operand::step), run); }
  int64_t chunks() const { return std::max<int64_t>(1, divide_up(depth, chunk)); }
  Depths depths(int64_t i) const { return {i * chunk, std::min(depth, (i + 1) * chunk)}; }
  int64_t filter_elements(int64_t groups) const { return groups * panels * panel_elements({0, depth}); }
  int64_t panel_elements(const Depths& d) const { return filter_taps * round_up(d.count(), Operand::step) * width; }

 private:
  // Sums of some depths wait in the result for the others, where it holds them exactly and the last cache holds it.
  void choose_chunk(const Problem& p) {
    chunk = std::max<int64_t>(1, depth);
    const int64_t result = (p.pass == Pass::dgrad ? p.x_elements() : p.y_elements()) * static_cast<int64_t>(sizeof(T));
    if (!std::is_same_v<T, A> || depth * filter_taps < 2 * chunk_steps || result > machine().l3 / 2) return;
    const int64_t line = cache_line / static_cast<int64_t>(sizeof(E));
    const int64_t wanted = round_up(divide_up(chunk_steps, filter_taps), line);
    chunk = std::min(depth, round_up(divide_up(depth, divide_up(depth, wanted)), line));
  }
};

template <class Operand>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<typename Operand::Storage>;
  using E = typename Operand::Element;
  const void** rows;  // [tap][pixel], of the storage type
  const E** staged;   // the same rows in the stage
  int64_t* pixel;     // [pixel] flat index of the written pixel
  A** result;         // [pixel]
  A** out;            // [pixel] in the tile
  const A** residual;
  A* tile;   // [pixel][width]: sums on their way through the Tail
  E* stage;  // [tap][pixel][stage_stride]
  E* packed;
  A* wide;  // [tap][paired_at_once][width]

  Private(Arena& arena, const Shape<Operand>& s, bool packed_before)
      : rows(arena.take<const void*>(s.table_taps * s.strip)),
        staged(arena.take<const E*>(s.staged ? s.table_taps * s.strip : 0)),
        pixel(arena.take<int64_t>(s.strip)),
        result(arena.take<A*>(s.strip)),
        out(arena.take<A*>(s.strip)),
        residual(arena.take<const A*>(s.strip)),
        tile(arena.take<A>(s.strip * s.width)),
        stage(arena.take<E>(s.staged ? s.table_taps * s.strip * s.stage_stride : 0)),
        packed(arena.take<E>(packed_before ? 0 : s.group_panels * s.panel_size)),
        wide(arena.take<A>(Operand::step > 1 ? s.filter_taps * paired_at_once * s.width : 0)) {}
};

template <class Operand>
struct Work {
  using A = arithmetic<typename Operand::Storage>;
  using E = typename Operand::Element;
  E* zeros;  // stands for every pixel of the padding
  A* start;  // bias padded to whole panels, and a panel of zeros
  E* packed;
  int64_t* slot;  // of each tap in a packed panel
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<Operand>& s, int thread_count) {
    zeros = arena.take<E>(s.zeros());
    start = arena.take<A>((p.groups * s.panels + 1) * s.width);
    packed = arena.take<E>(p.packed ? 0 : s.filter_elements(p.groups));
    slot = arena.take<int64_t>(s.filter_taps);
    Arena one(nullptr);
    Private<Operand>(one, s, p.packed);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

}  // namespace fastconv::FASTCONV_ISA::igemm
