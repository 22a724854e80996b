// Grouped fprop and dgrad, both layouts: a register of consecutive written channels spans several groups (grouped.h).
//
// Source rows are copied, widened, into a ring in L2, [block][column][lane] with their padding: columns then lie a
// register apart, which is known at compile time, and no tile checks a border. A tile is one register of written
// channels of 7 columns in one or, with 32 registers, two output rows (AVX2: up to 10 columns of one row, since fewer
// than 8 sums wait for each other). For each source row and channel of a group the taps of a row stand in registers,
// each source column is permuted once (broadcast, where one group fills the register) and used for all taps of both
// rows: 36 permutes for 126 FMAs. dgrad is the same gather with the filter walked backwards, by residues of the
// columns. Threads share out rows; units of groups are taken so many at a time that ring and weights stay in half of
// L2. Sums run over source rows, channels and taps in one order, whatever the tile.
//
// Bytes: source and result once from memory, each source element once more through L2. Predicted for 128@56 batch 8, 4
// channels a group: 231 MFLOP at 2 x 100 GFLOP/s 1.2 ms, 26 MB 1.3 ms, so 1.5 to 2 ms; outcome 2.5 to 2.7, of which
// copying rows is a fourth.
//
// Zen 4, 2 cores, 2026-11-22, float, batch 8, 3x3, result preallocated, both threads, ms AVX-512 / AVX2 / igemm AVX-512
// / torch channels_last (AVX-512), on a shared machine that varied by a third; fprop, then dgrad. 4 channels a group
// 128@56: 2.6 / 2.6 / 7.9 / 5.6, 2.7 / 2.5 / 8.0 / 4.5 · 8 channels 256@56 stride 2: 3.1 / 3.2 / 7.1 / 5.3, 2.7 / 3.1 /
// 4.3 / 2.9 · 256@28: 1.3 / 1.7 / 3.2 / 1.6, 1.3 / 1.75 / 3.2 / 1.7 · 16 channels 512@14: 1.21 / 1.58 / 2.34 / 1.04,
// 1.20 / 1.60 / 2.34 / 1.09 · 32 channels 1024@7: 1.25 / 1.65 / 1.32 / 1.17, 1.33 / 1.67 / 1.41 / 1.12.
// Packed apart from the call, batch 1: 1024@7 of 32 channels 0.49 and 0.14 (igemm packed 0.17, torch 0.20).
// It loses to igemm as AVX2 from 16 channels a group, and from 32 with AVX-512; to torch by a tenth to a sixth from 16
// channels, where torch runs at 85 to 90 % of the peak; as planes, fprop of up to 8 channels loses to im2col, since
// rows are transposed on the way in and out. cost() knows.
#include <type_traits>

#include "cpu/packed.h"
#include "gather_shape.h"

namespace fastconv::FASTCONV_ISA::grouped {

namespace {

template <class T>
class Gather {
  using A = arithmetic<T>;
  static constexpr int64_t lanes = Vec<A>::lanes;
  using Own = typename Work<A>::Own;

 public:
  Gather(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        shape_(p, parallel.threads()),
        at_(static_cast<char*>(args.workspace)),
        work_(at_, p, shape_),
        packed_(p.packed ? static_cast<const A*>(args.packed) : work_.packed),
        tail_(p, args),
        source_(static_cast<const T*>(p.pass == Pass::dgrad ? args.y : args.x)) {
    write_choices(shape_.units, work_.choice);
    for (int64_t residue = 0; residue < phases(p.w, p.pass); ++residue)
      work_.columns[residue].phase = phase_of(p.w, p.pass, residue),
      work_.columns[residue].tile = columns_of_tile(work_.columns[residue].phase.count);
    direct_ = std::is_same_v<T, A> && p.layout == Layout::nhwc && !tail_.bias && !tail_.residual &&
              tail_.activation == Activation::none;
    const int64_t bytes = p.n * shape_.source_channels * staging().plane * static_cast<int64_t>(sizeof(T));
    far_ = p.layout == Layout::nhwc && bytes > machine().l2;
  }

  // Every unit, as a packed problem reads them; zeros fill the lanes that hold no channel.
  void pack(A* out) const {
    std::fill_n(out, shape_.filter_elements(p_), A(0));
    pack_all(out);
  }

  void run() const {
    const Units& units = shape_.units;
    if (!p_.packed) pack_all(work_.packed);
    const int64_t pieces = shape_.pieces;
    parallel_(p_.n * shape_.rows * pieces, [&](int64_t begin, int64_t end, int thread) {
      char* at = work_.threads + thread * work_.thread_bytes;
      const Own own = Work<A>::own(at, shape_);
      for (int64_t i = begin; i < end;) {
        const int64_t n = i / pieces / shape_.rows, row = i / pieces % shape_.rows, first = i % pieces;
        const bool whole = first == 0 && i + pieces <= end;
        const int64_t count = whole ? std::min((end - i) / pieces, shape_.rows - row) : 1;
        const int64_t last = whole ? pieces : std::min(pieces, first + end - i);
        const int64_t stop = std::min(last * shape_.task_units, units.count);
        for (int64_t unit = first * shape_.task_units; unit < stop; unit += shape_.chunk)
          run_units(own, n, row, row + count, unit, std::min(unit + shape_.chunk, stop));
        i += whole ? count * pieces : last - first;
      }
    });
  }

 private:
  const Staging& staging() const { return shape_.staging; }

  void pack_all(A* out) const {
    parallel_(shape_.units.count, [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; ++unit) pack(unit, out);
    });
  }

  // The filter of a unit as [slice][R][depth][S][lane].
  void pack(int64_t unit, A* out) const {
    const Units& u = shape_.units;
    const bool dgrad = p_.pass == Pass::dgrad;
    const int64_t* step = args_.w_stride;
    const int64_t lane_step = dgrad ? step[1] : step[0], depth_step = dgrad ? step[0] : step[1];
    const T* from = static_cast<const T*>(args_.w) + unit * u.side * p_.filters_per_group() * step[0];
    A* to = out + unit * u.weights(p_.taps());
    for (int64_t slice = 0; slice < u.slices; ++slice, to += p_.taps() * u.depth * lanes, from += lanes * lane_step) {
      const int used = u.used(unit, slice);
      const int64_t window = p_.w.window;
      if (!dgrad || u.alone()) {  // lanes at equal distances
        if (depth_step == 1) {
          for (int64_t t = 0; t < p_.taps(); ++t)
            transpose(from + t / window * step[2] + t % window * step[3], lane_step, int64_t{used}, u.depth,
                      to + (t / window * u.depth * window + t % window) * lanes, window * lanes);
          continue;
        }
        if (step[3] == 1 && step[2] == window) {
          A taps[lanes * lanes];
          if (used < lanes) std::fill_n(taps, lanes * lanes, A(0));
          for (int64_t d = 0; d < u.depth; ++d)
            for (int64_t t = 0; t < p_.taps(); t += lanes) {
              const int64_t count = std::min(lanes, p_.taps() - t);
              transpose(from + d * depth_step + t, lane_step, int64_t{used}, count, taps, lanes);
              for (int64_t i = 0; i < count; ++i) {
                const int64_t r = (t + i) / window, s = (t + i) % window;
                store(to + ((r * u.depth + d) * window + s) * lanes, load(taps + i * lanes));
              }
            }
          continue;
        }
      }
      for (int64_t i = 0; i < used; ++i) {
        const int64_t group = u.alone() ? 0 : i / u.written, channel = u.alone() ? i : i % u.written;
        const T* lane = from + channel * lane_step + group * p_.filters_per_group() * step[0];
        for (int64_t r = 0; r < p_.h.window; ++r)
          for (int64_t d = 0; d < u.depth; ++d)
            for (int64_t s = 0; s < window; ++s)
              to[((r * u.depth + d) * window + s) * lanes + i] =
                  widen(lane[d * depth_step + r * step[2] + s * step[3]]);
      }
    }
  }

  // Output rows [begin, end) of image n, units [first, last).
  void run_units(const Own& own, int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last) const {
    std::fill_n(own.held, shape_.ring, int64_t{-1});
    for (int64_t row = begin; row < end;) {
      const Phase h = phase_of(p_.h, p_.pass, row % phases(p_.h, p_.pass));
      const int64_t j = row / h.step, height = shape_.paired && row + 1 < end ? 2 : 1;
      const auto [tap_begin, tap_end] = h.clip(j);
      const auto [next_begin, next_end] = height == 2 ? h.clip(j + 1) : std::pair<int64_t, int64_t>{0, 0};
      const int64_t shift = -tap_begin;  // the first source row is read through the first valid tap row
      const int64_t next_shift = shift + h.in_step;
      // A row that lies in the padding only reads nothing, wherever its empty range ends.
      const int64_t below = next_begin < next_end ? next_end + next_shift : 0;
      const int64_t count = std::max(tap_begin < tap_end ? tap_end + shift : 0, below);
      const int64_t source = h.source(j) + tap_begin * h.dilation;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t y = source + i * h.dilation;
        A* place = own.ring + y % shape_.ring * shape_.row_of_ring();
        own.source[i] = place;
        if (own.held[y % shape_.ring] == y) continue;
        own.held[y % shape_.ring] = y;
        staging().fill(source_, n, y, first, last, place);
      }
      Step step{n, row, height, count, first, source + count * h.dilation, &h, {}};
      step.taps[0] = {shift, tap_begin, tap_end}, step.taps[1] = {next_shift, next_begin, next_end};
      for (int64_t unit = first; unit < last; ++unit)
        for (int64_t slice = 0; slice < shape_.units.slices; ++slice) run_slice(own, step, unit, slice);
      row += height;
    }
  }

  struct Step {  // one or two output rows
    int64_t n, row, height, source_rows, first_unit, next_source;
    const Phase* h;
    decltype(Rows<A>::taps) taps;
  };

  void run_slice(const Own& own, const Step& step, int64_t unit, int64_t slice) const {
    const Units& u = shape_.units;
    const int64_t channel = u.first(unit, slice), tap_row = u.depth * p_.w.window * lanes;
    const int used = u.used(unit, slice);
    const A* packed = packed_ + unit * u.weights(p_.taps()) + slice * p_.h.window * tap_row;
    for (int64_t residue = 0; residue < phases(p_.w, p_.pass); ++residue) {
      const auto& [w, tile] = work_.columns[residue];
      if (w.count == 0) continue;
      Rows<A> k{own.source,
                w.taps ? step.source_rows : 0,
                {step.taps[0], step.taps[1]},
                w,
                tile,
                staging().left + w.offset,
                staging().block(),
                u.depth,
                u.deep,
                work_.choice,
                packed + step.h->tap * tap_row + w.tap * lanes,
                step.h->tap_step * tap_row,
                p_.w.window * lanes,
                w.tap_step * lanes,
                own.line + w.first * lanes,
                w.step * lanes,
                shape_.width * lanes,
                static_cast<int>(lanes),
                nullptr,
                0,
                0,
                0};
      if constexpr (std::is_same_v<T, A>)
        if (direct_) {
          k.out = tail_.out + tail_.out_at(step.n, channel, step.row * shape_.width + w.first);
          k.out_step = w.step * tail_.out_channels, k.out_row = shape_.width * tail_.out_channels;
          k.used = used;
        }
      if (far_) {
        const int64_t row = staging().width * shape_.source_channels;
        k.ahead = reinterpret_cast<const char*>(source_ + step.n * staging().plane * shape_.source_channels +
                                                step.next_source * row + unit * u.side * u.depth +
                                                std::min(slice * lanes, u.depth - 1));
        k.ahead_rows = step.height * step.h->in_step;
        k.ahead_row = row * static_cast<int64_t>(sizeof(T));
        k.ahead_pixel = shape_.source_channels * static_cast<int64_t>(sizeof(T));
      }
      const int64_t offset = (unit - step.first_unit) * staging().unit();
      k.first += offset / lanes;
      u.alone() ? grouped::run_rows<true>(k, step.height) : grouped::run_rows<false>(k, step.height);
    }
    if (!direct_)
      for (int64_t row = 0; row < step.height; ++row)
        put_row(own, step.n, step.row + row, channel, used, own.line + row * shape_.width * lanes);
  }

  void put_row(const Own& own, int64_t n, int64_t row, int64_t channel, int used, const A* line) const {
    const int64_t width = shape_.width, pixel = row * width;
    if (p_.layout == Layout::nhwc) {
      for (int64_t i = 0; i < width; ++i) tail_.put_channels(n, channel, pixel + i, load(line + i * lanes), used);
      return;
    }
    transpose(line, lanes, width, int64_t{used}, own.turned, width);
    for (int64_t c = 0; c < used; ++c)
      for (int64_t i = 0; i < width; i += lanes) {
        const int count = static_cast<int>(std::min(lanes, width - i));
        tail_.put_pixels(n, channel + c, pixel + i, load(own.turned + c * width + i, count), count);
      }
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<A> shape_;
  char* at_;
  const Work<A> work_;
  const A* const packed_;
  const Tail<T> tail_;
  const T* source_;
  bool direct_;  // sums are stored as they are
  bool far_;     // the source comes from beyond L2: fetch the next rows ahead
};

}  // namespace

int64_t gather_workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    const Shape<A> shape(p, threads);
    char* at = nullptr;
    const Work<A> work(at, p, shape);
    bytes = (at - static_cast<char*>(nullptr)) + threads * work.thread_bytes;
  });
  return bytes;
}

PackedForm packed_form(const Problem& p) {
  PackedForm form;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    form.bytes = Shape<A>(p, 1).filter_elements(p) * static_cast<int64_t>(sizeof(A));
  });
  return form;
}

void pack(const Problem& problem, const Args& args, void* out, const Parallel& parallel) {
  Problem p = problem;
  p.packed = true;
  const Scratch scratch(gather_workspace(p, parallel.threads()));
  Args own = args;
  own.workspace = scratch.get();
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Gather<T>(p, own, parallel).pack(static_cast<arithmetic<T>*>(out));
  });
}

// Products over whole registers and tiles; the filter is read and written once by packing, or read packed; the source
// once by staging, the results once, twice more where they pass through a line. Weights that L1 does not hold come from
// L2 for each tile.
Cost gather_cost(const Problem& p, int threads) {
  constexpr double permuting = 1.15;  // the permutes share a port with the products (Zen 4, 2026-11-22)
  constexpr double transposing = 10;  // times the bytes of an element: 128@56 took that much longer as planes
  Cost cost;
  with_dtype(p.dtype, [&](auto* t) {
    using A = arithmetic<std::remove_pointer_t<decltype(t)>>;
    const Shape<A> s(p, threads);
    const Units& u = s.units;
    const double element = sizeof(A), registers = double(u.count * u.slices);
    const double slice = element * double(u.depth * p.taps() * s.lanes);
    const double streamed = slice > double(machine().l1) / 2 ? slice : 0;
    for (int64_t i = 0; i < phases(p.h, p.pass); ++i)
      for (int64_t j = 0; j < phases(p.w, p.pass); ++j) {
        const Phase h = phase_of(p.h, p.pass, i), w = phase_of(p.w, p.pass, j);
        if (!h.count || !w.count) continue;
        const int64_t columns = columns_of_tile(w.count), tiles = divide_up(w.count, columns);
        const double rows = double(p.n * h.count);
        cost.flops += 2 * rows * double(tiles * std::max(columns, busy_columns) * h.taps * w.taps * u.depth * s.lanes) *
                      registers;
        cost.moved += rows * double(tiles) * registers * streamed / (s.paired ? 2 : 1);
      }
    if (!u.alone()) cost.flops *= permuting;
    const double written = double(p.n * s.rows * s.width) * double(s.lanes) * registers;
    const bool direct = p.layout == Layout::nhwc && p.epilogue == Epilogue{};
    const double source = double(p.n * s.source_rows * s.source_width * s.source_channels);
    const bool planes = p.layout == Layout::nchw;
    cost.moved += element * (source * (planes ? transposing : 2) +
                             written * (planes   ? transposing
                                        : direct ? 1
                                                 : 3) +
                             (p.packed ? 0 : 4 * double(s.filter_elements(p))));
    cost.memory = operand_bytes(p, element * double(s.filter_elements(p)));
    const int64_t tasks = p.n * s.rows * s.pieces;
    cost.imbalance = double(divide_up(tasks, threads) * threads) / double(tasks);
  });
  return cost;
}

void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Gather<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

}  // namespace fastconv::FASTCONV_ISA::grouped
