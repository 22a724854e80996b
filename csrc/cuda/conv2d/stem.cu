// fprop of few channels (C <= 4, one group), any filter whose taps of a row are next to each other, either layout.
//
// Algorithm: a block makes 8 x 16 pixels of 64 (or 32) filters after another, one tile from every so many (a persistent
// grid), with all taps of these filters in shared memory. The source under a tile comes there once, 16 bytes at a time
// by cp.async where its rows are aligned, else by elements; the padding is its zero fill. The depth is (tap of a row,
// channel) without gaps, so 7x7 of 3 channels is 160 deep, where padding C to 8 makes 392; fragments are gathered from
// the source's tile by a table (stem.h). f16, bf16 and tf32 are multiplied by mma.sync (target sm80), f32 by
// multiply-adds (target simt). Bytes: the source once and a rim of each tile from L2, the result once. Limit on H200
// (copy 4.3 TB/s): n256c3h224w224_k64r7s7_u2_p3_bf16nhwc moves 488 MB, 114 us, and has 60 GFLOP, 76 us at 790 TFLOP/s;
// 150 us predicted, since gathering takes 8 shared loads of 4 bytes for 16 products; three blocks of 128 threads a
// multiprocessor, 19 % occupancy; not measured. It loses with odd C at odd strides, where a word is gathered by halves,
// and at small maps, whose tiles of 8 x 16 are not full.
#include "stem.h"

#include "cuda/common/launch.h"
#include "store.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int most_channels = 4;
constexpr int64_t largest_place = int64_t{1} << 29;  // of pixels along an axis: sums of two fit an int
constexpr int64_t most_shared = 99 << 10;            // two blocks fit on an SM of sm_80 to sm_100

// A source's row: one line of (pixel, channel) in channels_last, one of pixels for each channel in NCHW.
template <class T>
struct StemParams {
  const T* source;
  const T* filter;
  int64_t image, line, row;  // strides of the source in elements: images, lines of a row, rows
  int64_t filter_stride[4];  // K C R S
  int lines, line_elements;  // of a row
  int spread;                // elements in the tile from one of a line to the next
  int height, channels, columns;
  int filter_height, filter_width;
  int written_height, written_width;
  int stride_h, stride_w, pad_h, pad_w, dilation_h;
  int tiles, tiles_down, tiles_across, blocks;
  int tile_rows, tile_line, pitch, origin;  // of the source's tile; origin: place of a row's first element
  int words_of_row, words, lead;            // of the depth; lead: masked elements in front of a row's first
  int filter_at, tile_at;                   // bytes in shared memory
  bool wide;
  Tail<T> tail;
  bool tail_takes_vectors;
};

template <class T>
FASTCONV_DEVICE void make_table(const StemParams<T>& p, Shared<int> table, int threads) {
  constexpr int E = of_word<T>, bits = 8 * static_cast<int>(sizeof(T));
  for (int i = this_thread(); i < p.words; i += threads) {
    const int r = i / p.words_of_row, first = i % p.words_of_row * E - p.lead;
    unsigned mask = 0;
    FASTCONV_UNROLL
    for (int e = 0; e < E; ++e)
      if (r < p.filter_height && first + e >= 0 && first + e < p.filter_width * p.channels)
        mask |= (0xffffffffu >> (32 - bits)) << (e * bits);
    const int offset = mask ? r * p.dilation_h * p.pitch + first + p.origin : p.origin - p.lead;
    table.write(2 * i, Pack<int, 2>{{offset, static_cast<int>(mask)}});
  }
}

// The block's filters, zeros where the depth or the columns are padded.
template <class Sums, class T>
FASTCONV_DEVICE void bring_filter(const StemParams<T>& p, Shared<T> filter, int first_column, int columns,
                                  int threads) {
  const int depth = p.words * of_word<T>;
  for (int i = this_thread(); i < columns * depth; i += threads) {
    const int column = i / depth, k = i % depth;
    const int r = k / of_word<T> / p.words_of_row, j = k - r * p.words_of_row * of_word<T> - p.lead;
    const int s = j / p.channels, c = j % p.channels;
    T value{};
    if (r < p.filter_height && j >= 0 && s < p.filter_width && first_column + column < p.columns)
      value = fetch(p.filter + (first_column + column) * p.filter_stride[0] + c * p.filter_stride[1] +
                    r * p.filter_stride[2] + s * p.filter_stride[3]);
    filter.put(Sums::filter_at(column, k, p.words), value);
  }
}

// The source under written rows from `top` on and columns from `left` on; a warp takes a line at a time.
template <class T>
FASTCONV_DEVICE void bring_source(const StemParams<T>& p, Shared<T> tile, int n, int top, int left, int threads) {
  const int warp = this_thread() / lanes_of_warp, lane = this_thread() % lanes_of_warp;
  const int start = left * (p.lines == 1 ? p.channels : 1);
  for (int i = warp; i < p.tile_rows * p.lines; i += threads / lanes_of_warp) {
    const int at = i / p.lines, line = i % p.lines, y = top + at;
    const bool present = static_cast<unsigned>(y) < static_cast<unsigned>(p.height);
    const T* const from = p.source + n * p.image + line * p.line + static_cast<int64_t>(present ? y : 0) * p.row;
    if (p.wide) {  // a chunk is whole inside a row or outside of it
      for (int k = lane * wide<T>; k < p.origin + p.tile_line; k += lanes_of_warp * wide<T>) {
        const int e = start - p.origin + k;
        const bool inside = present && e >= 0 && e < p.line_elements;
        copy_async(tile + (at * p.pitch + k), inside ? from + e : p.source, inside);
      }
    } else {
      for (int k = lane; k < p.tile_line; k += lanes_of_warp) {
        const bool inside = present && static_cast<unsigned>(start + k) < static_cast<unsigned>(p.line_elements);
        tile.put(at * p.pitch + p.origin + line + k * p.spread, inside ? fetch(from + start + k) : T{});
      }
    }
  }
  commit_group();
}

template <class T, class Tile, class Sums>
FASTCONV_GLOBAL(Tile::threads, 2)
stem(FASTCONV_PARAMS(StemParams<T>) p) {
  const Grid block = this_block();
  const int first_column = static_cast<int>(block.y) * Tile::columns;
  const Shared<int> table = Shared<int>::at(0);
  const Shared<T> filter = Shared<T>::at(p.filter_at), tile = Shared<T>::at(p.tile_at);
  make_table(p, table, Tile::threads);
  bring_filter<Sums>(p, filter, first_column, Tile::columns, Tile::threads);
  for (int at = static_cast<int>(block.x); at < p.tiles; at += p.blocks) {
    const int n = at / p.tiles_across / p.tiles_down;
    const int row = at / p.tiles_across % p.tiles_down * stem_rows, column = at % p.tiles_across * stem_columns;
    bring_source(p, tile, n, row * p.stride_h - p.pad_h, column * p.stride_w - p.pad_w, Tile::threads);
    wait_groups<0>();
    barrier();
    Sums sums;
    sums.multiply({table, tile, p.stride_h * p.pitch, p.stride_w * p.channels}, filter, p.words);
    store_tile<Tile>(p.tail, p.tail_takes_vectors, sums, Shared<float>::at(p.tile_at), p.columns - first_column,
                     first_column, [&](int i) {
                       const int y = row + i / stem_columns, x = column + i % stem_columns;
                       return Written{y < p.written_height && x < p.written_width, n,
                                      static_cast<int64_t>(y) * p.written_width + x};
                     });
    barrier();  // the sums have been read
  }
}

// The places of a block's shared memory, and what decides them.
struct StemShape {
  int64_t element, words_of_row, words, tile_rows, tile_line, pitch;

  static StemShape of(const Problem& p, int64_t origin, int64_t lead) {
    const int64_t element = dtype_bytes(p.dtype), elements = word_bytes / element;
    const int64_t of_row = divide_up(lead + p.w.window * p.c, elements);
    const int64_t line = ((stem_columns - 1) * p.w.stride + p.w.window) * p.c;
    return {element,
            of_row,
            round_up(p.h.window * of_row, step_words),
            (stem_rows - 1) * p.h.stride + p.h.reach(),
            line,
            round_up(origin + line + elements, vector_bytes / element)};
  }
  // The widest: at any place and with a masked element in front.
  static StemShape widest(const Problem& p) { return of(p, vector_bytes / dtype_bytes(p.dtype) - 1, 1); }

  template <class Tile>
  int64_t sums_bytes() const {
    return int64_t{Tile::rows} * Tile::sums_pitch * static_cast<int64_t>(sizeof(float));
  }
  int64_t table_bytes() const { return round_up(words * int64_t{sizeof(StemWord)}, vector_bytes); }
  template <class Tile>
  int64_t shared_bytes() const {
    const int64_t filter = Tile::columns * (words + vector_bytes / word_bytes) * word_bytes;
    return table_bytes() + filter + std::max(tile_rows * pitch * element, sums_bytes<Tile>());
  }
};

std::string refuses_geometry(const Problem& p) {
  if (p.groups != 1 || p.c > most_channels)
    return "It is for at most " + std::to_string(most_channels) +
           " channels in one group, not C=" + std::to_string(p.c) + " in " + std::to_string(p.groups) + ".";
  if (p.w.dilation != 1 && p.w.window > 1)
    return "It takes taps of a row that are next to each other, but the dilation is " + std::to_string(p.w.dilation) +
           ".";
  for (const Axis* a : {&p.h, &p.w})
    for (int64_t size : {a->in, a->out, a->reach(), a->pad_lo, a->stride})
      if (size > largest_place / most_channels)
        return "Its places are 32-bit numbers, but a size, window, stride or padding is " + std::to_string(size) + ".";
  if (const int64_t bytes = StemShape::widest(p).shared_bytes<StemTile<32>>(); bytes > most_shared)
    return "It keeps the taps of 32 filters and the source of 8 x 16 pixels in shared memory, which take " +
           std::to_string(bytes) + " bytes.";
  if (p.k > most_blocks_yz) return "It has a block layer for some filters, but there are " + std::to_string(p.k) + ".";
  const int64_t tiles = p.n * divide_up(p.h.out, stem_rows) * divide_up(p.w.out, stem_columns);
  if (tiles > most_blocks / 2) return "It numbers tiles in 32 bits, but there are " + std::to_string(tiles) + ".";
  return {};
}

std::string refuses_matrix(const Problem& p) {
  if (p.dtype == Dtype::f32)
    return "Tensor cores take f16, bf16 and tf32; in f32 they would drop 13 of 23 mantissa bits.";
  return refuses_geometry(p);
}

std::string refuses_plain(const Problem& p) {
  if (p.dtype != Dtype::f32) return "It multiplies in f32; tensor cores are for " + std::string(name_of(p.dtype)) + ".";
  return refuses_geometry(p);
}

template <class T, class Tile, bool Matrix>
void start(const Problem& p, const Args& args, Stream stream) {
  const bool nhwc = p.layout == Layout::nhwc;
  auto i = [](int64_t v) { return static_cast<int>(v); };
  StemParams<T> params{};
  params.source = static_cast<const T*>(args.x), params.filter = static_cast<const T*>(args.w);
  params.line_elements = i(p.w.in * (nhwc ? p.c : 1)), params.lines = i(nhwc ? 1 : p.c);
  params.spread = i(nhwc ? 1 : p.c);
  params.image = p.c * p.in_pixels(), params.line = p.in_pixels(), params.row = params.line_elements;
  for (int a = 0; a < 4; ++a) params.filter_stride[a] = args.w_stride[a];
  params.height = i(p.h.in), params.channels = i(p.c), params.columns = i(p.k);
  params.filter_height = i(p.h.window), params.filter_width = i(p.w.window);
  params.written_height = i(p.h.out), params.written_width = i(p.w.out);
  params.stride_h = i(p.h.stride), params.stride_w = i(p.w.stride), params.dilation_h = i(p.h.dilation);
  params.pad_h = i(p.h.pad_lo), params.pad_w = i(p.w.pad_lo);
  params.tiles_down = i(divide_up(p.h.out, stem_rows)), params.tiles_across = i(divide_up(p.w.out, stem_columns));
  params.tiles = i(p.n * params.tiles_down * params.tiles_across);
  params.wide =
      nhwc && params.line_elements % wide<T> == 0 && reinterpret_cast<uintptr_t>(params.source) % vector_bytes == 0;
  constexpr int E = of_word<T>;
  const int64_t first = params.wide ? -p.w.pad_lo * p.c % wide<T> : 0;  // of every tile, from a chunk's beginning
  const int64_t origin = first < 0 ? first + wide<T> : first;
  const bool aligned = p.w.stride * p.c % E == 0;
  const int64_t lead = aligned ? origin % E : 0;
  const StemShape shape = StemShape::of(p, origin, lead);
  params.tile_rows = i(shape.tile_rows), params.pitch = i(shape.pitch), params.origin = i(origin);
  params.tile_line = i(shape.tile_line / params.spread);
  params.words_of_row = i(shape.words_of_row), params.words = i(shape.words), params.lead = i(lead);
  params.tail = Tail<T>::of(p, args);
  params.tail_takes_vectors = p.k % wide<T> == 0 && params.tail.takes(wide<T>);
  const int64_t column_tiles = divide_up(p.k, Tile::columns);
  constexpr int64_t blocks_of_multiprocessor = 3;
  params.blocks = i(std::clamp<int64_t>(multiprocessors() * blocks_of_multiprocessor / column_tiles, 1, params.tiles));
  const Grid grid{static_cast<unsigned>(params.blocks), static_cast<unsigned>(column_tiles)};
  auto with = [&](auto* sums, auto kernel) {
    using Sums = std::remove_pointer_t<decltype(sums)>;
    params.filter_at = i(shape.table_bytes());
    params.tile_at = params.filter_at + Sums::filter_words(params.words) * word_bytes;
    launch(kernel, params, grid, Tile::threads, shape.shared_bytes<Tile>(), stream);
  };
  if constexpr (!Matrix) {
    using Sums = StemPlainSums<Tile>;
    with(static_cast<Sums*>(nullptr), stem<T, Tile, Sums>);
  } else {
    using Aligned = StemMatrixSums<T, Tile, true>;
    using Halves = StemMatrixSums<T, Tile, sizeof(T) == word_bytes>;
    if (aligned)
      with(static_cast<Aligned*>(nullptr), stem<T, Tile, Aligned>);
    else
      with(static_cast<Halves*>(nullptr), stem<T, Tile, Halves>);
  }
}

template <class T, bool Matrix>
void run_as(const Problem& p, const Args& args, Stream stream) {
  constexpr int few = 32, many = 64;
  if (p.k > few && StemShape::widest(p).shared_bytes<StemTile<many>>() <= most_shared)
    start<T, StemTile<many>, Matrix>(p, args, stream);
  else
    start<T, StemTile<few>, Matrix>(p, args, stream);
}

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16, true>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16, true>(p, args, stream);
  run_as<float, true>(p, args, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float, false>(p, args, stream); }

}  // namespace

extern const GpuKernelBody conv2d_fprop_stem_sm80{refuses_matrix, no_gpu_workspace, run_matrix};
extern const GpuKernelBody conv2d_fprop_stem_simt{refuses_plain, no_gpu_workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
