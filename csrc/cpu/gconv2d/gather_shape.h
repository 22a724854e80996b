// What gather.cpp derives from a problem before it runs: the ring of source rows, how tasks are cut, and the layout of
// the workspace.
#pragma once

#include "gather_tile.h"

namespace fastconv::FASTCONV_ISA::grouped {

inline constexpr int64_t tasks_a_thread = 4;   // at least, so that 7 rows share out evenly
inline constexpr int64_t l1_set_bytes = 4096;  // addresses equal modulo this share a set of the first cache

// Everything about a call that does not depend on the row.
template <class A>
struct Shape {
  static constexpr int64_t lanes = Vec<A>::lanes;
  Units units;
  int64_t rows, width, source_rows, source_width, source_channels;
  bool paired;
  int64_t ring;  // source rows held, more than any output row or pair reads from
  Staging staging;
  int64_t chunk;  // units whose rows and weights stay in L2
  int64_t task_units, pieces;

  Shape(const Problem& p, int threads)
      : units(p.groups, p.written_channels() / p.groups, (p.pass == Pass::dgrad ? p.k : p.c) / p.groups, lanes) {
    const bool dgrad = p.pass == Pass::dgrad;
    rows = dgrad ? p.h.in : p.h.out, width = dgrad ? p.w.in : p.w.out;
    source_rows = dgrad ? p.h.out : p.h.in, source_width = dgrad ? p.w.out : p.w.in;
    source_channels = dgrad ? p.k : p.c;
    paired = phases(p.h, p.pass) == 1 && phases(p.w, p.pass) == 1 &&
             pairs<A>(phase_of(p.h, p.pass, 0), phase_of(p.w, p.pass, 0));
    const int64_t reach = dgrad ? (p.h.reach() - 1) / p.h.stride + 2 : p.h.reach();
    ring = std::min(source_rows, reach + paired);
    int64_t left = 0, end = 1;
    for (int64_t residue = 0; residue < phases(p.w, p.pass); ++residue) {
      const Phase w = phase_of(p.w, p.pass, residue);
      if (w.taps == 0 || w.count == 0) continue;
      left = std::max(left, -w.offset);
      end = std::max(end, w.source(round_up(w.count, columns_of_tile(w.count)) - 1) + (w.taps - 1) * w.dilation + 1);
    }
    const int64_t pixel = lanes * static_cast<int64_t>(sizeof(A));
    int64_t pitch = end + left;
    if (pitch * pixel % l1_set_bytes == 0) ++pitch;
    staging = {lanes,
               units.side,
               units.deep,
               units.depth,
               units.blocks,
               units.groups,
               source_channels,
               source_width,
               source_rows * source_width,
               left,
               pitch,
               p.layout == Layout::nchw};
    const int64_t bytes_a_unit = (ring * staging.unit() + units.weights(p.taps())) * static_cast<int64_t>(sizeof(A));
    chunk = std::clamp<int64_t>(machine().l2 / 2 / bytes_a_unit, 1, units.count);
    chunk = divide_up(units.count, divide_up(units.count, chunk));
    // Tasks are rows, or pieces of rows where there are few; neighbours in memory stay neighbours in a thread.
    const int64_t wanted = std::min(divide_up(tasks_a_thread * threads, p.n * rows), units.count);
    task_units = divide_up(units.count, wanted);
    pieces = divide_up(units.count, task_units);
  }
  int64_t filter_elements(const Problem& p) const { return units.count * units.weights(p.taps()); }
  int64_t row_of_ring() const { return chunk * staging.unit(); }
};

// The workspace: what all threads read, then each thread's own.
template <class A>
struct Work {
  A* packed;
  int32_t* choice;
  struct Columns {
    Phase phase;
    int64_t tile;
  };
  Columns* columns;  // of every residue
  char* threads;
  int64_t thread_bytes;

  // One thread's share.
  struct Own {
    A* ring;
    A* line;    // the sums of one or two rows of a slice on their way through the Tail: [row][column][lane]
    A* turned;  // [lane][column]
    const A** source;
    int64_t* held;  // the source row each place of the ring holds
  };

  static Own own(char*& at, const Shape<A>& s) {
    return {take<A>(at, s.ring * s.row_of_ring()), take<A>(at, 2 * s.width * s.lanes), take<A>(at, s.width * s.lanes),
            take<const A*>(at, s.ring), take<int64_t>(at, s.ring)};
  }
  Work(char*& at, const Problem& p, const Shape<A>& s)
      : packed(take<A>(at, p.packed ? 0 : s.filter_elements(p))),
        choice(take<int32_t>(at, s.units.deep * s.lanes)),
        columns(take<Columns>(at, phases(p.w, p.pass))) {
    threads = at;
    own(at, s);
    thread_bytes = at - threads;
    at = threads;
  }
};

}  // namespace fastconv::FASTCONV_ISA::grouped
