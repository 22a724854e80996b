// The weight gradient as an outer product over pixels; wgrad.cpp tells the story.
#pragma once

#include "simd/transpose.h"
#include "wgrad_pack.h"
#if defined(__AVX512F__)
#include "pair_outer_tile.h"
#endif

namespace fastconv::FASTCONV_ISA {

namespace wgrad {

inline constexpr int64_t depth_bytes = 640;   // pixels of a depth block: 160 floats, so that a panel stays in L1
inline constexpr int64_t most_filters = 256;  // of a task
inline constexpr int64_t most_columns = 512;  // of a task: 512 KiB of sums with the filters
inline constexpr int64_t least_filters = 64;  // below these, tasks are not cut for more parallelism
inline constexpr int64_t least_columns = 128;
inline constexpr int64_t wanted_tasks = 16;  // of a problem, whatever the thread count
inline constexpr int64_t least_chunk = 512;  // pixels: below, adding partial sums costs more than 5 %
inline constexpr int64_t few_columns = 128;  // dy is read in place: packing it would not pay
inline constexpr int64_t few_filters = 64;   // and so for x
inline constexpr int64_t alignment = 64;

inline int64_t align(int64_t bytes) { return round_up(bytes, alignment); }

// The product cut into tasks of (chunk of pixels) x (block of filters) x (block of columns), from the problem alone.
struct Cut {
  int64_t pixels, filters, columns;  // the whole product, of one group
  int64_t chunk, chunks;
  int64_t filter_block, filter_blocks;  // a block is a whole number of row panels
  int64_t column_block, column_blocks;  // a whole number of column panels
  int64_t depth_block;
  int64_t tiles, sums;  // blocks of all groups; elements of one block of sums
  bool planes;          // NCHW
  bool flat;            // output pixel f reads input pixel f and no other
  int64_t x_bytes, sum_bytes, thread_bytes;
  int64_t pair_bytes;  // of a thread's share, at its end

  template <class A, bool Paired>
  static Cut of(const Problem& p) {
    constexpr int64_t wide = Tile<A>::columns;
    Cut c{};
    c.pixels = p.n * p.out_pixels(), c.filters = p.filters_per_group();
    c.columns = p.channels_per_group() * p.taps();
    c.depth_block = depth_bytes / int64_t{sizeof(A)};
    const RowPanels<A> panels(c.filters);
    int64_t filters = divide_up(c.filters, most_filters), columns = divide_up(c.columns, most_columns);
    c.chunks = std::clamp(wanted_tasks / (p.groups * filters * columns), int64_t{1},
                          std::max(int64_t{1}, c.pixels / least_chunk));
    auto tasks = [&] { return c.chunks * p.groups * filters * columns; };
    while (tasks() < wanted_tasks && c.columns / columns >= 2 * least_columns) columns *= 2;
    while (tasks() < wanted_tasks && c.filters / filters >= 2 * least_filters) filters *= 2;
    if (tasks() == 1 && c.pixels >= least_chunk && c.columns >= 2 * wide) columns = 2;
    c.filter_block = divide_up(panels.count, filters) * panels.height;
    c.filter_blocks = divide_up(c.filters, c.filter_block);
    c.column_block = round_up(divide_up(c.columns, columns), wide);
    c.column_blocks = divide_up(c.columns, c.column_block);
    c.chunk = std::max(int64_t{1}, divide_up(c.pixels, c.chunks));
    c.chunks = std::max(int64_t{1}, divide_up(c.pixels, c.chunk));
    c.tiles = p.groups * c.filter_blocks * c.column_blocks;
    c.sums = std::min(c.filter_block, c.filters) * c.column_block;
    c.planes = p.layout == Layout::nchw && !p.is_one_pixel();
    c.flat = p.taps() == 1 && p.h.stride == 1 && p.w.stride == 1 && p.h.pad_lo == 0 && p.w.pad_lo == 0 &&
             p.h.out == p.h.in && p.w.out == p.w.in;
    c.x_bytes = c.planes && !c.flat ? align(p.x_elements() * int64_t{sizeof(A)}) : 0;
    c.sum_bytes = c.chunks > 1 ? align(c.chunks * c.tiles * c.sums * int64_t{sizeof(A)}) : 0;
    const int64_t packed = c.depth_block * (c.filter_block + wide);
    c.pair_bytes = Paired ? align((packed + 2 * (c.filter_block + wide)) * int64_t{sizeof(bf16)}) : 0;
    c.thread_bytes = align((packed + (c.chunks > 1 ? 0 : c.sums)) * int64_t{sizeof(A)}) + c.pair_bytes;
    return c;
  }
};

// Paired: bfloat16 multiplied two pixels at a time (pair_outer_tile.h).
template <class T, bool Paired>
struct Product {
  using A = arithmetic<T>;
  static constexpr int64_t wide = Tile<A>::columns;

  const Problem& p;
  const Args& args;
  const Cut& cut;
  const T* x;
  const T* dy;
  const A* pixels;  // x in channels_last, where it was transposed first
  A* sums;
  char* scratch;

  struct Block {  // of the filter gradient
    int64_t group, k, filters, j, columns;
  };
  Block block(int64_t tile) const {
    const int64_t b = tile % cut.column_blocks, a = tile / cut.column_blocks % cut.filter_blocks;
    const int64_t k = a * cut.filter_block, j = b * cut.column_block;
    return {tile / cut.column_blocks / cut.filter_blocks, k, std::min(cut.filter_block, cut.filters - k), j,
            std::min(cut.column_block, cut.columns - j)};
  }
  A* sums_of(int64_t chunk, int64_t tile) const { return sums + (chunk * cut.tiles + tile) * cut.sums; }

  void accumulate(const Block& b, int64_t chunk, A* left, A* right, A* out, bf16* pairs) const {
    const int64_t first = chunk * cut.chunk, last = std::min(first + cut.chunk, cut.pixels);
    const int64_t height = RowPanels<A>(cut.filters).height;
    if (first >= last) std::fill(out, out + cut.sums, A(0));
    for (int64_t f = first; f < last; f += cut.depth_block) {
      const int64_t deep = std::min(cut.depth_block, last - f);
      const Side rows = gradients(b, height, f, deep, left);
      bf16* paired_columns = nullptr;
      if constexpr (Paired) {
        for (int64_t row = 0; row < b.filters; row += height)
          pair_rows(left + row * deep, std::min(height, b.filters - row), deep, pairs + 2 * row * divide_up(deep, 2));
        paired_columns = pairs + 2 * cut.filter_block * divide_up(cut.depth_block, 2);
      }
      const int64_t after = f + deep, next = std::min(cut.depth_block, last - after);
      Later<2> later({whole_pixels(dy, b.filters, p.k, after, next),
                      cut.flat ? whole_pixels(x, b.columns, p.c, after, next) : Pieces()},
                     divide_up(b.columns, wide) * divide_up(b.filters, height));
      for (int64_t j = 0; j < b.columns; j += wide) {
        const int64_t wanted = std::min(wide, b.columns - j), width = round_up(wanted, Vec<A>::lanes);
        const Side columns = taps(b, j, wanted, width, f, deep, right);
        if constexpr (Paired) pair_rows(columns.data, width, deep, paired_columns);
        for (int64_t row = 0; row < b.filters; row += height) {
          const int64_t high = std::min(height, b.filters - row);
          if constexpr (Paired) {
            const int64_t steps = divide_up(deep, 2);
            pair_outer_tile_for(high, width / Vec<A>::lanes)(steps, pairs + 2 * row * steps, 2 * high, paired_columns,
                                                             2 * width, out + row * cut.column_block + j,
                                                             cut.column_block, f > first);
            continue;
          }
          tile_for<A>(high, width / Vec<A>::lanes)(deep, rows.data + (rows.step ? row : row * deep),
                                                   rows.step ? rows.step : high, columns.data, columns.step,
                                                   out + row * cut.column_block + j, cut.column_block, f > first,
                                                   later.share(deep, columns.data));
        }
      }
    }
  }

  // Pixels of a tensor, where the task reads all `channels` of them.
  Pieces whole_pixels(const T* tensor, int64_t read, int64_t channels, int64_t f, int64_t count) const {
    if (cut.planes || read < channels) return {};
    return {reinterpret_cast<const char*>(tensor + f * channels), count * channels * static_cast<int64_t>(sizeof(T))};
  }

  struct Side {  // of the tile: where it starts, and elements from one pixel to the next (0: packed panels of rows)
    const A* data;
    int64_t step;
  };

  Side gradients(const Block& b, int64_t height, int64_t f, int64_t deep, A* packed) const {
    const int64_t k = b.group * cut.filters + b.k;
    if (cut.planes) {
      for (int64_t row = 0; row < b.filters; row += height) {
        const int64_t high = std::min(height, b.filters - row);
        pack_planes(dy + (k + row) * p.out_pixels(), p.k * p.out_pixels(), p.out_pixels(), high, f, deep,
                    packed + row * deep, high);
      }
      return {packed, 0};
    }
    if constexpr (std::is_same_v<T, A>)
      if (b.columns <= few_columns) return {dy + f * p.k + k, p.k};
    pack_gradients(dy + f * p.k + k, p.k, b.filters, height, deep, packed);
    return {packed, 0};
  }

  Side taps(const Block& b, int64_t j, int64_t wanted, int64_t width, int64_t f, int64_t deep, A* packed) const {
    const int64_t c = b.group * p.channels_per_group();
    if constexpr (std::is_same_v<T, A>)
      if (cut.flat && !cut.planes && wanted == width && b.filters <= few_filters)
        return {x + f * p.c + c + b.j + j, p.c};
    if (wanted < width)
      for (int64_t i = 1; i <= deep; ++i) Vec<A>::zero().store(packed + i * width - Vec<A>::lanes);
    if (pixels)
      Taps<A>(p, pixels + c).pack(b.j + j, wanted, width, f, deep, packed);
    else if (cut.planes)
      pack_planes(x + (c + b.j + j) * p.in_pixels(), p.c * p.in_pixels(), p.in_pixels(), wanted, f, deep, packed,
                  width);
    else
      Taps<T>(p, x + c).pack(b.j + j, wanted, width, f, deep, packed);
    return {packed, width};
  }

  // One filter's share of a finished block to dw, from the order (r, s, c) to the strides of dw.
  void put(const Block& b, int64_t row, const A* from) const {
    const int64_t channels = p.channels_per_group();
    const int64_t *step = args.w_stride, k = b.group * cut.filters + b.k + row;
    for (int64_t at = 0; at < b.columns;) {
      const int64_t tap = (b.j + at) / channels, c = (b.j + at) % channels,
                    count = std::min(b.columns - at, channels - c);
      T* out = static_cast<T*>(args.out) + k * step[0] + c * step[1] + tap / p.w.window * step[2] +
               tap % p.w.window * step[3];
      for (int64_t i = 0; i < count; ++i) out[i * step[1]] = narrow<T>(from[at + i]);
      at += count;
    }
  }

  void run(const Parallel& parallel) const {
    parallel(cut.chunks * cut.tiles, [&](int64_t begin, int64_t end, int thread) {
      A* left = reinterpret_cast<A*>(scratch + thread * cut.thread_bytes);
      A* right = left + cut.depth_block * cut.filter_block;
      for (int64_t i = begin; i < end; ++i) {
        const Block b = block(i % cut.tiles);
        A* out = cut.chunks > 1 ? sums_of(i / cut.tiles, i % cut.tiles) : right + cut.depth_block * wide;
        bf16* pairs = reinterpret_cast<bf16*>(scratch + (thread + 1) * cut.thread_bytes - cut.pair_bytes);
        accumulate(b, i / cut.tiles, left, right, out, pairs);
        if (cut.chunks == 1)
          for (int64_t row = 0; row < b.filters; ++row) put(b, row, out + row * cut.column_block);
      }
    });
    if (cut.chunks > 1) add_chunks(parallel);
  }

  void add_chunks(const Parallel& parallel) const {
    using V = Vec<A>;
    parallel(cut.tiles * cut.filter_block, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Block b = block(i / cut.filter_block);
        const int64_t row = i % cut.filter_block;
        if (row >= b.filters) continue;
        A* total = sums_of(0, i / cut.filter_block) + row * cut.column_block;
        for (int64_t j = 0; j < b.columns; j += V::lanes) {
          V sum = V::load(total + j);
          for (int64_t chunk = 1; chunk < cut.chunks; ++chunk)
            sum = sum + V::load(total + chunk * cut.tiles * cut.sums + j);
          sum.store(total + j);
        }
        put(b, row, total);
      }
    });
  }
};

// Planes to channels_last, 64 channels and 64 pixels at a time.
template <class T>
void to_channels_last(const T* planes, arithmetic<T>* out, int64_t images, int64_t channels, int64_t pixels,
                      const Parallel& parallel) {
  constexpr int64_t side = 64;
  const int64_t down = divide_up(channels, side), across = divide_up(pixels, side);
  parallel(images * across, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < down; ++d) {
        const int64_t n = i / across, f = i % across * side, c = d * side;
        transpose(planes + (n * channels + c) * pixels + f, pixels, std::min(side, channels - c),
                  std::min(side, pixels - f), out + (n * pixels + f) * channels + c, channels);
      }
  });
}

template <class T, bool Paired>
void run_typed(const Problem& p, const Args& args, const Parallel& parallel) {
  using A = arithmetic<T>;
  const Cut cut = Cut::of<A, Paired>(p);
  char* memory = static_cast<char*>(args.workspace);
  A* sums = reinterpret_cast<A*>(memory + cut.x_bytes);
  const T *x = static_cast<const T*>(args.x), *dy = static_cast<const T*>(args.y);
  A* pixels = nullptr;
  if (cut.planes && !cut.flat) {
    pixels = reinterpret_cast<A*>(memory);
    to_channels_last(x, pixels, p.n, p.c, p.in_pixels(), parallel);
  }
  Product<T, Paired>{p, args, cut, x, dy, pixels, sums, memory + cut.x_bytes + cut.sum_bytes}.run(parallel);
}

template <class A, bool Paired>
int64_t workspace_of(const Problem& p, int threads) {
  const Cut cut = Cut::of<A, Paired>(p);
  return cut.x_bytes + cut.sum_bytes + threads * cut.thread_bytes;
}

// Products over whole registers; what a block reads is packed, and the sums of chunks are added at the end.
template <class A, bool Paired>
Cost cost_of(const Problem& p, int threads) {
  const Cut c = Cut::of<A, Paired>(p);
  Cost cost;
  const double e = sizeof(A), groups = double(p.groups), pixels = double(c.pixels);
  const double filters = double(c.filters), columns = double(round_up(c.columns, Vec<A>::lanes));
  cost.flops = 2 * groups * pixels * filters * columns / (Paired ? 2 : 1);
  cost.moved = 2 * e * groups * pixels * (columns * double(c.filter_blocks) + filters * double(c.column_blocks)) +
               e * groups * filters * columns * double(1 + c.chunks) + double(2 * c.x_bytes);
  cost.memory = p.bytes();
  const int64_t tasks = c.chunks * c.tiles;
  cost.imbalance = double(divide_up(tasks, threads) * threads) / double(tasks);
  return cost;
}

inline std::string refuses_planes(const Problem& p) {
  if (p.layout == Layout::nhwc) return "The layout is nhwc, and this kernel reads planes.";
  if (p.is_one_pixel()) return "The one pixel lies alike in both layouts: there is nothing to unfold.";
  return {};
}
inline std::string refuses_pixels(const Problem& p) {
  if (p.layout == Layout::nchw && !p.is_one_pixel())
    return "The layout is nchw: the channels of a pixel must lie together.";
  return {};
}

}  // namespace wgrad

}  // namespace fastconv::FASTCONV_ISA
