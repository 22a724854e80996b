// Implicit GEMM over one kind of operand; igemm.cpp and pairs.cpp tell the story.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/epilogue.h"
#include "cpu/packed.h"
#include "ending.h"
#include "igemm_cost.h"
#include "pack.h"
#include "row_table.h"

namespace fastconv::FASTCONV_ISA {

namespace igemm {

template <class Operand>
class Igemm {
  using T = typename Operand::Storage;
  using A = arithmetic<T>;
  using E = typename Operand::Element;
  static constexpr int lanes = Vec<A>::lanes;

 public:
  Igemm(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        shape_(p),
        tail_(p, args),
        ending_(p, tail_, shape_.columns),
        arena_(args.workspace),
        work_(arena_, p, shape_, parallel.threads()),
        packed_(p.packed ? static_cast<const E*>(args.packed) : work_.packed) {
    std::fill_n(work_.zeros, shape_.zeros(), E{});
    std::fill_n(work_.start + p.groups * shape_.panels * shape_.width, shape_.width, A(0));
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t i = 0; i < shape_.panels * shape_.width; ++i)
        work_.start[g * shape_.panels * shape_.width + i] =
            tail_.bias && i < shape_.columns ? widen(tail_.bias[g * shape_.columns + i]) : A(0);
    tail_.bias = nullptr;  // the sums start from it
    tail_.nhwc = true;     // or one pixel, where both layouts are the same
    std::iota(work_.slot, work_.slot + shape_.filter_taps, int64_t{0});
  }

  // Every panel, as a packed problem reads them; zeros fill the last panel of a group.
  void pack(E* out) const {
    if (panel_vectors(shape_.panels - 1) < shape_.vectors) std::fill_n(out, shape_.filter_elements(p_.groups), E{});
    pack_all(out);
  }

  void run() {
    const T* source = static_cast<const T*>(p_.pass == Pass::dgrad ? args_.y : args_.x);
    const Phase phase = phase_of(p_);
    const int64_t row = phase.w.source_size * shape_.channels;
    run_phase(phase, Source<T>{source, phase.h.source_size * row, row, shape_.channels});
  }

 private:
  Private<Operand> share_of(int thread) const {
    Arena arena(work_.threads + thread * work_.thread_bytes);
    return Private<Operand>(arena, shape_, p_.packed);
  }

  // Threads share the panels, or the depths of all panels where a filter's columns lie together.
  void pack_all(E* out) const {
    const int64_t panels = p_.groups * shape_.panels, parts = divide_up(shape_.depth, packed_at_once);
    if (p_.pass == Pass::dgrad)
      return parallel_(parts, [&](int64_t begin, int64_t end, int thread) {
        pack_panels(share_of(thread), 0, panels, part(begin, end), out);
      });
    parallel_(panels * parts, [&](int64_t begin, int64_t end, int thread) {
      const Private<Operand> own = share_of(thread);
      for (int64_t i = begin; i < end; i = (i / parts + 1) * parts)
        pack_panels(own, i / parts, i / parts + 1, part(i % parts, i % parts + std::min(end - i, parts - i % parts)),
                    out);
    });
  }

  // Depths of the parts [begin, end) of packed_at_once depths.
  Depths part(int64_t begin, int64_t end) const {
    return {begin * packed_at_once, std::min(end * packed_at_once, shape_.depth)};
  }

  // Some depths of the panels [first, last), each chunk to its place among all.
  void pack_panels(const Private<Operand>& own, int64_t first, int64_t last, const Depths& some, E* all) const {
    for (int64_t i = some.begin / shape_.chunk; i * shape_.chunk < some.end; ++i) {
      const Depths chunk = shape_.depths(i);
      pack_panels(own, first, last, chunk, {std::max(some.begin, chunk.begin), std::min(some.end, chunk.end)},
                  all + place(first, chunk));
    }
  }

  // Where a chunk of a panel lies among all.
  int64_t place(int64_t panel, const Depths& chunk) const {
    return p_.groups * shape_.panels * shape_.panel_elements({0, chunk.begin}) + panel * shape_.panel_elements(chunk);
  }

  // Some depths of one chunk of the panels [first, last), which lie one behind the other.
  void pack_panels(const Private<Operand>& own, int64_t first, int64_t last, const Depths& chunk, const Depths& some,
                   E* out) const {
    const int64_t step = p_.pass == Pass::dgrad ? packed_at_once : some.count();
    for (int64_t d = some.begin; d < some.end; d += step)
      for (int64_t panel = first; panel < last; ++panel)
        pack(own, panel, chunk, {d, std::min(d + step, some.end)},
             out + (panel - first) * shape_.panel_elements(chunk));
  }

  static void copy_run(const T* in, int64_t count, E* out) {
    if constexpr (Operand::step > 1) {
      std::copy_n(in, count, out);
      if (count % Operand::step) out[count] = E{};
    } else {
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) store(out + i, load(in + i));
      if (i < count) store(out + i, load(in + i, static_cast<int>(count - i)), static_cast<int>(count - i));
    }
  }

  void run_phase(const Phase& phase, const Source<T>& source) {
    const int64_t pixels = p_.n * phase.grid(), panels = p_.groups * shape_.panels;
    const int64_t strips = divide_up(pixels, shape_.strip);
    if (!pixels) return;
    const Split chunks = split(strips, panels, parallel_.threads(), p_.w_elements() > p_.x_elements());
    const bool shared = chunks.strips > 1, whole = p_.pass == Pass::dgrad && shape_.chunks() == 1;
    if (shared && !p_.packed) pack_all(work_.packed);
    Phase table = phase;
    if (shape_.merged) {
      table.w.taps = 1;
    }
    parallel_(chunks.strips * chunks.panels, [&](int64_t begin, int64_t end, int thread) {
      const Private<Operand> own = share_of(thread);
      const int64_t tasks = chunks.strips * chunks.panels;
      const auto next_part = [&](int64_t i) { return args_.next_bytes * i / tasks; };
      const int64_t groups = divide_up(divide_up(panels, chunks.panels), shape_.group_panels);
      Following following;
      following.next = Stock(static_cast<const char*>(args_.next) + next_part(begin), next_part(end) - next_part(begin),
                             (end - begin) * divide_up(strips, chunks.strips) * groups * shape_.chunks());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t m = task % chunks.strips, k = task / chunks.strips;
        const int64_t first_panel = k * panels / chunks.panels, last_panel = (k + 1) * panels / chunks.panels;
        if (!p_.packed && !shared && whole) pack_panels(own, first_panel, last_panel, shape_.depths(0), work_.packed);
        for (int64_t panel = first_panel; panel < last_panel; panel += shape_.group_panels) {
          const int64_t end_panel = std::min(panel + shape_.group_panels, last_panel);
          for (int64_t c = 0; c < shape_.chunks(); ++c) {
            const Depths chunk = shape_.depths(c);
            const bool at_hand = p_.packed || shared || whole;
            const E* packed = at_hand ? packed_ + place(panel, chunk) : own.packed;
            if (!at_hand) pack_panels(own, panel, end_panel, chunk, chunk, own.packed);
            const int64_t turns = (m + 1) * strips / chunks.strips - m * strips / chunks.strips;
            following.panels = at_hand ? after({panel, end_panel}, last_panel, c, turns) : Stock();
            for (int64_t s = m * strips / chunks.strips; s < (m + 1) * strips / chunks.strips; ++s)
              run_strip(table, source, own, s * pixels / strips, (s + 1) * pixels / strips, {panel, end_panel}, chunk,
                        packed, following);
          }
        }
      }
      if (ending_.stream) finish_streams();
    });
  }

  struct Panels {
    int64_t begin, end;
    int64_t count() const { return end - begin; }
  };
  int64_t channel_of(int64_t panel) const {
    return panel / shape_.panels * shape_.columns + panel % shape_.panels * shape_.width;
  }
  int64_t panel_columns(int64_t panel) const {
    return std::min(shape_.width, shape_.columns - panel % shape_.panels * shape_.width);
  }
  int panel_vectors(int64_t panel) const { return static_cast<int>(divide_up(panel_columns(panel), lanes)); }

  // Some depths of one chunk of a panel, which begins at out.
  void pack(const Private<Operand>& own, int64_t panel, const Depths& chunk, const Depths& some, E* out) const {
    const bool dgrad = p_.pass == Pass::dgrad;
    const int64_t *stride = args_.w_stride, group = panel / shape_.panels;
    Filter<T> f;
    f.column = dgrad ? stride[1] : stride[0], f.depth = dgrad ? stride[0] : stride[1];
    f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = p_.h.window, f.window_w = p_.w.window;
    f.w = static_cast<const T*>(args_.w) + group * p_.filters_per_group() * stride[0] +
          panel % shape_.panels * shape_.width * f.column + chunk.begin * f.depth;
    const int64_t begin = some.begin - chunk.begin, end = some.end - chunk.begin;
    const int64_t columns = panel_columns(panel), width = panel_vectors(panel) * lanes;
    if constexpr (Operand::step > 1)
      pack_pairs(own, f, round_up(chunk.count(), Operand::step), begin, end, columns, width, out);
    else
      pack_panel(f, work_.slot, chunk.count(), begin, end, columns, width, out);
  }

  // The same of pairs: some depths are widened, and put together two at a time.
  void pack_pairs(const Private<Operand>& own, Filter<T> f, int64_t depth, int64_t begin, int64_t end, int64_t columns,
                  int64_t width, E* out) const {
    for (; begin < end; begin += paired_at_once) {
      const int64_t some = std::min(paired_at_once, end - begin);
      Filter<T> here = f;
      here.w += begin * f.depth;
      pack_panel(here, work_.slot, some, 0, some, columns, width, own.wide);
      for (int64_t tap = 0; tap < shape_.filter_taps; ++tap)
        for (int64_t d = 0; d < some; d += 2)
          for (int64_t i = 0; i < width; i += lanes) {
            const A* first = own.wide + (tap * some + d) * width + i;
            const Vec<A> second = d + 1 < some ? load(first + width) : Vec<A>::zero();
            Operand::store(out + (tap * depth + begin + d) * width + 2 * i, load(first), second);
          }
    }
  }

  // Copies one group's channels of the located rows into the stage.
  void stage(const Private<Operand>& own, int64_t rows, int64_t offset, int64_t run) const {
    const T* const* from = reinterpret_cast<const T* const*>(own.rows);
    const T* zeros = reinterpret_cast<const T*>(work_.zeros);
    for (int64_t i = 0; i < rows; ++i) {
      if (from[i] == zeros) {
        own.staged[i] = work_.zeros;
      } else {
        E* copy = own.stage + i * shape_.stage_stride;
        copy_run(from[i] + offset, run, copy);
        own.staged[i] = copy;
      }
    }
  }

  // The panels that a thread reads after some panels of one chunk, of those before `end`.
  Stock after(const Panels& panels, int64_t end, int64_t chunk, int64_t turns) const {
    const bool deeper = chunk + 1 < shape_.chunks();
    const int64_t panel = deeper ? panels.begin : panels.end;
    const Depths depths = shape_.depths(deeper ? chunk + 1 : 0);
    const int64_t count = deeper ? panels.count() : std::min(shape_.group_panels, end - panel);
    return Stock(reinterpret_cast<const char*>(packed_ + place(panel, depths)),
                 count * shape_.panel_elements(depths) * static_cast<int64_t>(sizeof(E)), turns);
  }

  // What a thread reads later than in this strip and the next.
  struct Following {
    Stock panels, next;  // of this call, and of calls after it
  };

  // The tiles of a strip fetch what the next strip and what later panels read. The next strip's own pixels follow the
  // last one that this strip reads, as its residual does.
  Later<4> later(const PixelTile<A, E>& tile, const Phase& phase, int64_t pixel, const Private<Operand>& own,
                 int64_t count, const Depths& chunk, const Panels& panels, const Following& following) const {
    const int64_t size = sizeof(T), first = channel_of(panels.begin), last = panels.end - 1;
    Pieces source, residual;
    if (tile.taps)
      source = {static_cast<const char*>(own.rows[tile.taps * count - 1]) + chunk.begin * size, chunk.count() * size,
                count * phase.w.step * (phase.w.grid <= count ? phase.h.step : 1), pixel};
    if (tile.residual)
      residual = {reinterpret_cast<const char*>(tile.residual[count - 1] + tail_.channels + first),
                  (channel_of(last) + panel_columns(last) - first) * size, count, tail_.channels * size};
    for (Pieces* some : {&source, &residual})
      if (tile.taps > 1 || some->bytes == some->apart) *some = {some->at, some->count * some->apart};
    return {{source, residual, following.panels.part(), following.next.part()}, panels.count()};
  }

  void run_strip(const Phase& phase, const Source<T>& source, const Private<Operand>& own, int64_t begin, int64_t end,
                 const Panels& panels, const Depths& chunk, const E* packed, Following& following) const {
    const int count = static_cast<int>(end - begin);
    locate<T>(phase, source, reinterpret_cast<const T*>(work_.zeros), begin, end, reinterpret_cast<const T**>(own.rows),
              own.pixel);
    PixelTile<A, E> tile;
    tile.taps = phase.taps();
    tile.run = shape_.merged ? shape_.run : round_up(chunk.count(), Operand::step);
    tile.residual = nullptr;
    const bool ends = chunk.end == shape_.depth, direct = ending_.direct || !ends;
    ending_.mark(tile);
    if (!ends) tile.clamped = tile.stream = false;
    if constexpr (std::is_same_v<T, A>) {
      for (int i = 0; i < count; ++i) own.result[i] = tail_.out + tail_.out_at(0, 0, own.pixel[i]);
      if (chunk.begin > 0) tile.sums = own.result;
      if (direct && ends && tail_.residual) {
        for (int i = 0; i < count; ++i) own.residual[i] = tail_.residual + tail_.residual_at(0, 0, own.pixel[i]);
        tile.residual = own.residual;
      }
    }
    for (int i = 0; i < count; ++i) own.out[i] = own.tile + i * shape_.width;
    tile.out = direct ? own.result : own.out;
    if (direct && tile.taps * tile.run < shallow_steps) tile.out_ahead = count * tail_.out_channels;
    const int64_t pixel_bytes = source.pixel * static_cast<int64_t>(sizeof(T));
    Later<4> later = this->later(tile, phase, pixel_bytes, own, count, chunk, panels, following);
    following.panels.pass(later.fetches(2)), following.next.pass(later.fetches(3));
    int64_t staged_group = -1;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel, packed += shape_.panel_elements(chunk)) {
      const int64_t group = panel / shape_.panels, columns = panel_columns(panel), channel = channel_of(panel);
      const int vectors = panel_vectors(panel);
      tile.offset = group * shape_.depth + chunk.begin;
      if (shape_.staged) {
        if (group != staged_group)
          stage(own, tile.taps * count, tile.offset, shape_.merged ? shape_.run : chunk.count());
        staged_group = group, tile.offset = 0;
        tile.rows = own.staged;
      } else {
        tile.rows = reinterpret_cast<const E* const*>(own.rows);
      }
      tile.weights = packed;
      tile.start = work_.start + (chunk.begin > 0 ? p_.groups * shape_.panels : panel) * shape_.width;
      tile.out_offset = direct ? channel : 0, tile.channel = channel;
      tile.last = static_cast<int>(columns - (vectors - 1) * lanes);
      tile.ahead = later.share(tile.taps * tile.run, own.out);
      Operand::tile(count, vectors)(tile);
      if (!direct) tail_.put_tile(0, channel, columns, count, own.out, [&](int64_t i) { return own.pixel[i]; });
    }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<Operand> shape_;
  Tail<T> tail_;
  const Ending<T> ending_;
  Arena arena_;
  const Work<Operand> work_;
  const E* const packed_;  // all panels
};

template <class Operand>
int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  Work<Operand>(arena, p, Shape<Operand>(p), threads);
  return arena.used();
}

// Chunks decide what lies beside what.
template <class Operand>
PackedForm packed_form(const Problem& p) {
  const Shape<Operand> s(p);
  return {s.filter_elements(p.groups) * static_cast<int64_t>(sizeof(typename Operand::Element)), s.chunk};
}

template <class Operand>
void pack(const Problem& problem, const Args& args, void* out, const Parallel& parallel) {
  Problem p = problem;
  p.packed = true;  // the workspace holds no panels
  const Scratch scratch(workspace<Operand>(p, parallel.threads()));
  Args own = args;
  own.workspace = scratch.get();
  Igemm<Operand>(p, own, parallel).pack(static_cast<typename Operand::Element*>(out));
}

}  // namespace igemm

}  // namespace fastconv::FASTCONV_ISA
