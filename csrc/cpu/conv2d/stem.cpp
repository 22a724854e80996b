// Convolution of up to 4 channels, the first layer of a network: fprop, NHWC.
//
// With so few channels a table of row pointers, as igemm keeps, costs as much as the products it leads to. Here a
// thread holds the input rows under one row of outputs in a ring of its own, padded and in the arithmetic type: the
// next output row brings as many new rows as the stride. All pixels of a strip then lie at one distance from each
// other, and one list of R·S·C offsets serves them all (stem_tile.h).
//
// Threads share the output rows. Rows too long for half of L2, or too few for the threads, are cut into pieces with a
// ring each. A sum runs over r, s, c in this order whatever the cut. The filter is packed once a call (pack.h); results
// larger than the last cache pass it by. While one output row is summed, the input rows of the next are fetched.
//
// Measured (Zen 4, 2 threads, 2026-11-22, f32, AVX-512; ms here / igemm / torch's channels_last): 7x7/2 3->64@224 batch
// 1 1.10 / 1.43 / 1.16, batch 8 9.7 / 11.4 / 10.3; 3x3/2 3->32@224 batch 1 0.14 / 0.25 / 0.17, batch 8 1.18 / 1.54
// / 1.26; 3x3 3->64@224 batch 1 1.01 / 1.30 / 0.93, batch 8 9.5 / 10.3 / 44. AVX2 reaches 0.8 to 0.9 of torch, which
// has AVX-512.
#include <algorithm>
#include <type_traits>

#include "cpu/arena.h"
#include "cpu/epilogue.h"
#include "cpu/packed.h"
#include "ending.h"
#include "pack.h"
#include "stem_tile.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t most_channels = 4;
constexpr int64_t nothing = -1;  // what an empty slot of the ring holds

template <class T>
struct Shape {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  int vectors, strip;     // panel width in vectors, most pixels of a strip
  int64_t width, panels;  // of channels
  int64_t depth;          // R·S·C
  int64_t pieces;         // of an output row
  int64_t reach;          // rows of the ring
  int64_t row;            // elements of one of them

  int64_t filter_elements() const { return panels * depth * width; }

  Shape(const Problem& p, int threads) {
    vectors = p.k <= lanes ? 1 : tile_vectors;
    strip = vectors == 1 ? max_tile_rows : tile_rows;
    width = vectors * lanes;
    panels = divide_up(p.k, width);
    depth = p.taps() * p.c;
    reach = p.h.reach();
    const int64_t most_row = std::max<int64_t>(1, machine().l2 / 2 / reach / static_cast<int64_t>(sizeof(A)));
    const int64_t by_cache = divide_up(row_of(p, p.w.out), most_row), by_threads = divide_up(threads, p.n * p.h.out);
    pieces = std::clamp<int64_t>(std::max(by_cache, by_threads), 1, divide_up(p.w.out, strip));
    row = row_of(p, divide_up(p.w.out, pieces));
  }

  static int64_t row_of(const Problem& p, int64_t outputs) { return ((outputs - 1) * p.w.stride + p.w.reach()) * p.c; }
};

template <class T>
struct Private {  // one thread's share of the workspace
  using A = arithmetic<T>;
  A* ring;          // [reach][row]
  int64_t* held;    // [reach]: the padded row that lies there
  int64_t* offset;  // [depth]
  A** out;          // [pixel]
  const A** residual;
  A* tile;  // [pixel][width]: sums on their way through the Tail

  Private(Arena& arena, const Shape<T>& s)
      : ring(arena.take<A>((s.reach + 1) * s.row)),  // and a row of zeros
        held(arena.take<int64_t>(s.reach)),
        offset(arena.take<int64_t>(s.depth)),
        out(arena.take<A*>(s.strip)),
        residual(arena.take<const A*>(s.strip)),
        tile(arena.take<A>(s.strip * s.width)) {}
};

template <class T>
struct Work {
  using A = arithmetic<T>;
  A* packed;  // [panel][depth][width]
  A* start;   // bias padded to whole panels
  int64_t* slot;
  char* threads;
  int64_t thread_bytes;

  Work(Arena& arena, const Problem& p, const Shape<T>& s, int thread_count)
      : packed(arena.take<A>(p.packed ? 0 : s.filter_elements())),
        start(arena.take<A>(s.panels * s.width)),
        slot(arena.take<int64_t>(p.taps())) {
    Arena one(nullptr);
    Private<T>(one, s);
    thread_bytes = one.used();
    threads = arena.take<char>(thread_count * thread_bytes);
  }
};

template <class T>
class Stem {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

 public:
  Stem(const Problem& p, const Args& args, const Parallel& parallel)
      : p_(p),
        args_(args),
        parallel_(parallel),
        shape_(p, parallel.threads()),
        tail_(p, args),
        ending_(p, tail_, p.k),
        arena_(args.workspace),
        work_(arena_, p, shape_, parallel.threads()),
        packed_(p.packed ? static_cast<const A*>(args.packed) : work_.packed) {
    for (int64_t i = 0; i < shape_.panels * shape_.width; ++i)
      work_.start[i] = tail_.bias && i < p.k ? widen(tail_.bias[i]) : A(0);
    tail_.bias = nullptr;  // the sums start from it
    for (int64_t tap = 0; tap < p.taps(); ++tap) work_.slot[tap] = tap;
  }

  // Every panel, as a packed problem reads them; zeros fill the last one.
  void pack(A* out) const {
    if (panel_vectors(shape_.panels - 1) < shape_.vectors) std::fill_n(out, shape_.filter_elements(), A(0));
    pack_all(out);
  }

  void run() {
    if (!p_.packed) pack_all(work_.packed);
    // Neighbouring tasks are rows of one piece: they share their ring.
    parallel_(p_.n * shape_.pieces * p_.h.out, [&](int64_t begin, int64_t end, int thread) {
      Arena arena(work_.threads + thread * work_.thread_bytes);
      const Private<T> own(arena, shape_);
      std::fill_n(own.ring + shape_.reach * shape_.row, shape_.row, A(0));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t i = task % p_.h.out, piece = task / p_.h.out % shape_.pieces;
        if (task == begin || i == 0) std::fill_n(own.held, shape_.reach, nothing);
        const int64_t first = piece * p_.w.out / shape_.pieces, last = (piece + 1) * p_.w.out / shape_.pieces;
        run_row(own, task / p_.h.out / shape_.pieces, i, first, last);
      }
      if (ending_.stream) finish_streams();
    });
  }

 private:
  int64_t panel_columns(int64_t panel) const { return std::min(shape_.width, p_.k - panel * shape_.width); }
  int panel_vectors(int64_t panel) const { return static_cast<int>(divide_up(panel_columns(panel), lanes)); }

  void pack_all(A* out) const {
    parallel_(shape_.panels, [&](int64_t begin, int64_t end, int) {
      for (int64_t panel = begin; panel < end; ++panel) pack(panel, out + panel * shape_.depth * shape_.width);
    });
  }

  void pack(int64_t panel, A* out) const {
    const int64_t* stride = args_.w_stride;
    Filter<T> f;
    f.column = stride[0], f.depth = stride[1], f.tap_h = stride[2], f.tap_w = stride[3];
    f.window_h = p_.h.window, f.window_w = p_.w.window;
    f.w = static_cast<const T*>(args_.w) + panel * shape_.width * f.column;
    pack_panel(f, work_.slot, p_.c, 0, p_.c, panel_columns(panel), panel_vectors(panel) * lanes, out);
  }

  // Brings the rows under output row i of image n into the ring and finds the offset of every element of the depth.
  void fill_ring(const Private<T>& own, int64_t n, int64_t i, int64_t first) const {
    int64_t* offset = own.offset;
    for (int64_t r = 0; r < p_.h.window; ++r) {
      const int64_t padded = i * p_.h.stride + r * p_.h.dilation, y = padded - p_.h.pad_lo;
      const bool exists = y >= 0 && y < p_.h.in;
      const int64_t slot = exists ? padded % shape_.reach : shape_.reach;
      if (exists && own.held[slot] != padded) {
        copy_row(n * p_.h.in + y, first * p_.w.stride - p_.w.pad_lo, own.ring + slot * shape_.row);
        own.held[slot] = padded;
      }
      for (int64_t s = 0; s < p_.w.window; ++s)
        for (int64_t c = 0; c < p_.c; ++c) *offset++ = slot * shape_.row + s * p_.w.dilation * p_.c + c;
    }
  }

  // Row `line` of all images from column x on, zeros outside.
  void copy_row(int64_t line, int64_t x, A* out) const {
    const int64_t columns = shape_.row / p_.c;
    const int64_t left = std::clamp<int64_t>(-x, 0, columns);
    const int64_t right = std::clamp<int64_t>(p_.w.in - x, left, columns);
    const T* in = static_cast<const T*>(args_.x) + (line * p_.w.in + x) * p_.c;
    std::fill_n(out, left * p_.c, A(0));
    int64_t e = left * p_.c;
    for (; e + lanes <= right * p_.c; e += lanes) store(out + e, load(in + e));
    for (; e < right * p_.c; ++e) out[e] = widen(in[e]);
    std::fill(out + e, out + shape_.row, A(0));
  }

  void run_row(const Private<T>& own, int64_t n, int64_t i, int64_t first, int64_t last) const {
    fill_ring(own, n, i, first);
    StemTile<A> tile;
    ending_.mark(tile);
    tile.step = p_.w.stride * p_.c, tile.offset = own.offset, tile.depth = shape_.depth;
    tile.out = own.out;
    tile.residual = nullptr;
    const int64_t strips = divide_up(last - first, shape_.strip), pixels = last - first;
    // The rows that the next output row brings follow those of this one; the tiles of the first panel ask for them.
    const int64_t next = n * p_.h.in + i * p_.h.stride - p_.h.pad_lo + shape_.reach;
    const char* ahead = reinterpret_cast<const char*>(static_cast<const T*>(args_.x) + next * p_.w.in * p_.c);
    const int64_t bytes = p_.h.stride * p_.w.in * p_.c * static_cast<int64_t>(sizeof(T));
    for (int64_t panel = 0; panel < shape_.panels; ++panel) {
      const int64_t channel = panel * shape_.width, columns = panel_columns(panel);
      const int vectors = panel_vectors(panel);
      tile.weights = packed_ + panel * shape_.depth * shape_.width;
      tile.start = work_.start + channel;
      tile.out_offset = ending_.direct ? channel : 0, tile.channel = channel;
      tile.last = ending_.direct ? static_cast<int>(columns - (vectors - 1) * lanes) : lanes;
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t begin = s * pixels / strips, count = (s + 1) * pixels / strips - begin;
        const int64_t pixel = i * p_.w.out + first + begin;
        tile.x = own.ring + begin * tile.step;
        point(own, n, pixel, count, tile);
        for (int64_t byte = s * bytes / strips; panel == 0 && byte < (s + 1) * bytes / strips; byte += cache_line)
          __builtin_prefetch(ahead + byte, 0, 2);
        stem_tile_function<A>(static_cast<int>(count), vectors)(tile);
        if (!ending_.direct) tail_.put_tile(n, channel, columns, count, own.out, [&](int64_t m) { return pixel + m; });
      }
    }
  }

  // Where the pixels of a tile are written, and what is added to them.
  void point(const Private<T>& own, int64_t n, int64_t pixel, int64_t count, StemTile<A>& tile) const {
    if constexpr (std::is_same_v<T, A>) {
      if (ending_.direct) {
        for (int64_t m = 0; m < count; ++m) own.out[m] = tail_.out + tail_.out_at(n, 0, pixel + m);
        if (!tail_.residual) return;
        for (int64_t m = 0; m < count; ++m) own.residual[m] = tail_.residual + tail_.residual_at(n, 0, pixel + m);
        tile.residual = own.residual;
        return;
      }
    }
    for (int64_t m = 0; m < count; ++m) own.out[m] = own.tile + m * shape_.width;
  }

  const Problem& p_;
  const Args& args_;
  const Parallel& parallel_;
  const Shape<T> shape_;
  Tail<T> tail_;
  const Ending<T> ending_;
  Arena arena_;
  const Work<T> work_;
  const A* const packed_;
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout != Layout::nhwc) return "The layout is nchw: the channels of a pixel must lie together.";
  if (p.groups > 1) return "It has " + std::to_string(p.groups) + " groups, not one.";
  if (p.c > most_channels)
    return "It has " + std::to_string(p.c) + " channels: more than " + std::to_string(most_channels) +
           " are worth a table of their own.";
  return {};
}

int64_t workspace(const Problem& p, int threads) {
  Arena arena(nullptr);
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Work<T>(arena, p, Shape<T>(p, threads), threads);
  });
  return arena.used();
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Stem<std::remove_pointer_t<decltype(t)>>(p, args, parallel).run(); });
}

PackedForm packed_form(const Problem& p) {
  PackedForm form;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    form.bytes = Shape<T>(p, 1).filter_elements() * static_cast<int64_t>(sizeof(arithmetic<T>));
  });
  return form;
}

void pack(const Problem& problem, const Args& args, void* out, const Parallel& parallel) {
  Problem p = problem;
  p.packed = true;
  const Scratch scratch(workspace(p, parallel.threads()));
  Args own = args;
  own.workspace = scratch.get();
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Stem<T>(p, own, parallel).pack(static_cast<arithmetic<T>*>(out));
  });
}

}  // namespace

extern const KernelBody conv2d_fprop_stem{refuses, workspace, run, nullptr, packed_form, pack};

}  // namespace fastconv::FASTCONV_ISA
