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
#include "cuda/common/refuses.h"
#include "stem_input.h"
#include "store.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int64_t most_shared = 99 << 10;  // two blocks fit on an SM of sm_80 to sm_100

template <class T>
struct StemParams {
  StemInput<T> input;
  const T* filter;
  int64_t filter_stride[4];  // K C R S
  int columns;
  int filter_height, filter_width;
  int written_height, written_width;
  int dilation_h;
  int blocks;
  int words_of_row, words, lead;  // of the depth; lead: masked elements in front of a row's first
  int filter_at, tile_at;         // bytes in shared memory
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
      if (r < p.filter_height && first + e >= 0 && first + e < p.filter_width * p.input.channels)
        mask |= (0xffffffffu >> (32 - bits)) << (e * bits);
    const int offset = mask ? r * p.dilation_h * p.input.pitch + first + p.input.origin : p.input.origin - p.lead;
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
    const int s = j / p.input.channels, c = j % p.input.channels;
    T value{};
    if (r < p.filter_height && j >= 0 && s < p.filter_width && first_column + column < p.columns)
      value = fetch(p.filter + (first_column + column) * p.filter_stride[0] + c * p.filter_stride[1] +
                    r * p.filter_stride[2] + s * p.filter_stride[3]);
    filter.put(Sums::filter_at(column, k, p.words), value);
  }
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
  for (int at = static_cast<int>(block.x); at < p.input.tiles; at += p.blocks) {
    const StemPlace place = p.input.place(at);
    p.input.bring(place, tile, Tile::threads);
    wait_groups<0>();
    barrier();
    Sums sums;
    sums.multiply({table, tile, p.input.stride_h * p.input.pitch, p.input.stride_w * p.input.channels}, filter,
                  p.words);
    store_tile<Tile>(p.tail, p.tail_takes_vectors, sums, Shared<float>::at(p.tile_at), p.columns - first_column,
                     first_column, [&](int i) {
                       const int y = place.row + i / stem_columns, x = place.column + i % stem_columns;
                       return Written{y < p.written_height && x < p.written_width, place.image,
                                      static_cast<int64_t>(y) * p.written_width + x};
                     });
    barrier();  // the sums have been read
  }
}

// The depth, and the bytes of a block's shared memory.
struct StemShape {
  StemExtent tile;
  int64_t element, words_of_row, words;

  static StemShape of(const Problem& p, int64_t origin, int64_t lead) {
    const int64_t element = dtype_bytes(p.dtype);
    const int64_t of_row = divide_up(lead + p.w.window * p.c, word_bytes / element);
    return {StemExtent::of(p, origin), element, of_row, round_up(p.h.window * of_row, step_words)};
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
    return table_bytes() + filter + std::max(tile.rows * tile.pitch * element, sums_bytes<Tile>());
  }
};

std::string refuses_geometry(const Problem& p) {
  if (std::string sentence = refuses_stem(p); !sentence.empty()) return sentence;
  if (const int64_t bytes = StemShape::widest(p).shared_bytes<StemTile<32>>(); bytes > most_shared)
    return "It keeps the taps of 32 filters and the source of 8 x 16 pixels in shared memory, which take " +
           std::to_string(bytes) + " bytes.";
  if (p.k > most_blocks_yz) return "It has a block layer for some filters, but there are " + std::to_string(p.k) + ".";
  return {};
}

std::string refuses_matrix(const Problem& p) {
  const std::string sentence = refuses_for_matrix(p.dtype);
  return sentence.empty() ? refuses_geometry(p) : sentence;
}

std::string refuses_plain(const Problem& p) {
  const std::string sentence = refuses_for_plain(p.dtype);
  return sentence.empty() ? refuses_geometry(p) : sentence;
}

template <class T, class Tile, bool Matrix>
void start(const Problem& p, const Args& args, Stream stream) {
  auto i = [](int64_t v) { return static_cast<int>(v); };
  StemParams<T> params{};
  params.input = StemInput<T>::of(p, args.x);
  params.filter = static_cast<const T*>(args.w);
  for (int a = 0; a < 4; ++a) params.filter_stride[a] = args.w_stride[a];
  params.columns = i(p.k), params.dilation_h = i(p.h.dilation);
  params.filter_height = i(p.h.window), params.filter_width = i(p.w.window);
  params.written_height = i(p.h.out), params.written_width = i(p.w.out);
  constexpr int E = of_word<T>;
  const int origin = params.input.origin;
  const bool aligned = p.w.stride * p.c % E == 0;
  const int64_t lead = aligned ? origin % E : 0;
  const StemShape shape = StemShape::of(p, origin, lead);
  params.words_of_row = i(shape.words_of_row), params.words = i(shape.words), params.lead = i(lead);
  params.tail = Tail<T>::of(p, args);
  params.tail_takes_vectors = p.k % wide<T> == 0 && params.tail.takes(wide<T>);
  const int64_t column_tiles = divide_up(p.k, Tile::columns);
  constexpr int64_t blocks_of_multiprocessor = 3;
  params.blocks =
      i(std::clamp<int64_t>(multiprocessors() * blocks_of_multiprocessor / column_tiles, 1, params.input.tiles));
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
