// wgrad of few channels (C <= 4, one group), any filter whose taps of a row are next to each other, either layout.
//
// Algorithm: a block makes 64 filters x 32, 96 or 160 (tap, channel) of the gradient, without gaps between taps, from a
// part of the tiles of 8 x 16 output pixels: the gradients of a tile and the source under it come to shared memory once
// (stem_input.h) and are the depth of the product. Gradients are transposed by ldmatrix, a column of the source is
// gathered from its tile at the place of its tap. f16, bf16 and tf32 are multiplied by mma.sync (target sm80), f32 by
// multiply-adds (target simt). Parts go to the workspace in float, and are added in a fixed order (parts.h): the same
// bits in every run. Bytes: x and dy once for each 64 filters and 160 columns. Limit on H200 (copy 4.3 TB/s):
// n256c3h224w224_k64r7s7_u2_p3_bf16nhwc_wgrad moves 488 MB, 114 us, and has 60 GFLOP, 76 us at 790 TFLOP/s; 200 us
// predicted, where the general kernel, whose columns are padded from 147 to 392, reads dy seven times; 3 blocks of 128
// threads a multiprocessor, 19 % occupancy; not measured. It loses at small maps, whose tiles of 8 x 16 are not full.
#include "cuda/common/matrix.h"
#include "cuda/common/refuses.h"
#include "parts.h"
#include "stem_input.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int threads = 128, warps = threads / lanes_of_warp;
constexpr int filters = 64, pitch = filters + 8;  // of a block; elements from one pixel's gradients to the next
constexpr int64_t least_tiles = 4;                // of a part
constexpr int64_t most_shared = 99 << 10;         // two blocks fit on an SM of sm_80 to sm_100

template <class T>
struct StemWgradParams {
  StemInput<T> input;
  const T* dy;
  float* sums;                             // [part][filter][column]
  int64_t dy_image, dy_pixel, dy_channel;  // strides in elements
  int filters, columns, column_tiles;      // in all
  int height, width;                       // of dy
  int filter_row, dilation_h;              // S x channels
  int part_tiles;
  int tile_at, dy_at;  // bytes in shared memory
  bool wide;
};

// What a product reads: gradients [pixel][filter], and the source at a tile's pixel and a column's offset.
template <class T>
struct StemOperands {
  Shared<T> dy, source;
  Shared<int> offsets;
  int row, pixel;     // elements of the source from a row of pixels to the next, and from a pixel
  int rows, columns;  // of pixels that are there
};

// On tensor cores: a warp has all filters of 8 Across columns.
template <class T, int Across>
struct StemOuterMatrix {
  static constexpr int columns = warps * Across * mma_columns, down = filters / mma_rows;
  static constexpr int of_word = word_bytes / static_cast<int>(sizeof(T));
  static constexpr int step = mma_depth_bytes / static_cast<int>(sizeof(T));
  float sum[down][Across][4] = {};

  FASTCONV_DEVICE void multiply(const StemOperands<T>& in) {
    const int lane = this_thread() % lanes_of_warp, place = lane / 4, share = lane % 4;
    int offset[Across];
    FASTCONV_UNROLL
    for (int j = 0; j < Across; ++j) offset[j] = in.offsets.get(first_column() + j * mma_columns + place);
    for (int k = 0; k < in.rows * stem_columns; k += step) {
      uint32_t a[down][4];
      FASTCONV_UNROLL
      for (int i = 0; i < down; ++i) gradients(a[i], in.dy, k, i * mma_rows);
      const int row = k / stem_columns * in.row, x = k % stem_columns + share * of_word;
      FASTCONV_UNROLL
      for (int j = 0; j < Across; ++j) {
        uint32_t b[2];
        FASTCONV_UNROLL
        for (int half = 0; half < 2; ++half) {
          Pack<T, of_word> pixels;
          FASTCONV_UNROLL
          for (int e = 0; e < of_word; ++e) {
            const int at = x + half * step / 2 + e;  // an infinite input times no gradient would be NaN
            pixels.v[e] = at < in.columns ? in.source.get(row + at * in.pixel + offset[j]) : T{};
          }
          memcpy(&b[half], &pixels, sizeof pixels);
          if constexpr (sizeof(T) == sizeof(float)) b[half] = to_tf32(b[half]);
        }
        FASTCONV_UNROLL
        for (int i = 0; i < down; ++i) MatrixOf<T>::multiply(sum[i][j], a[i], b[0], b[1]);
      }
    }
  }

  // Calls f(filter, column, sum) for all that this thread has.
  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int lane = this_thread() % lanes_of_warp;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < Across; ++j) FASTCONV_UNROLL
    for (int e = 0; e < 4; ++e)
      f(i * mma_rows + lane / 4 + e / 2 * 8, first_column() + j * mma_columns + lane % 4 * 2 + e % 2, sum[i][j][e]);
  }

 private:
  FASTCONV_DEVICE static int first_column() { return this_thread() / lanes_of_warp * Across * mma_columns; }
  // The fragment of 16 filters and a step's pixels.
  FASTCONV_DEVICE static void gradients(uint32_t (&a)[4], Shared<T> dy, int pixel, int filter) {
    const int lane = this_thread() % lanes_of_warp, octet = lane / 8;
    if constexpr (sizeof(T) == 2) {
      load_transposed(a, dy + (pixel + octet / 2 * 8 + lane % 8) * pitch + filter + octet % 2 * 8);
    } else {
      FASTCONV_UNROLL
      for (int e = 0; e < 4; ++e)
        a[e] = to_tf32(Shared<uint32_t>{reinterpret_cast<uint32_t*>(dy.data)}.get(
            (pixel + lane % 4 + e / 2 * 4) * pitch + filter + lane / 4 + e % 2 * 8));
    }
  }
};

// In float, by multiply-adds: a thread has eight filters of every 16th column.
template <int Across>
struct StemOuterPlain {
  static constexpr int columns = warps * Across * mma_columns, down = 8, lines = 16, across = columns / lines;
  float sum[down][across] = {};

  FASTCONV_DEVICE void multiply(const StemOperands<float>& in) {
    const int first = this_thread() / lines * down, line = this_thread() % lines;
    int offset[across];
    FASTCONV_UNROLL
    for (int j = 0; j < across; ++j) offset[j] = in.offsets.get(line + j * lines);
    for (int row = 0; row < in.rows; ++row)
      for (int x = 0; x < in.columns; ++x) {
        float a[down];
        in.dy.read_all(a, (row * stem_columns + x) * pitch + first);
        FASTCONV_UNROLL
        for (int j = 0; j < across; ++j) {
          const float b = in.source.get(row * in.row + x * in.pixel + offset[j]);
          FASTCONV_UNROLL
          for (int i = 0; i < down; ++i) sum[i][j] += a[i] * b;
        }
      }
  }

  template <class F>
  FASTCONV_DEVICE void each(F&& f) const {
    const int first = this_thread() / lines * down, line = this_thread() % lines;
    FASTCONV_UNROLL
    for (int i = 0; i < down; ++i) FASTCONV_UNROLL
    for (int j = 0; j < across; ++j) f(first + i, line + j * lines, sum[i][j]);
  }
};

// The gradients of a tile's pixels, zeros where there is no pixel or filter. Part of the group of copies that follows.
template <class T>
FASTCONV_DEVICE void bring_gradients(const StemWgradParams<T>& p, const StemPlace& at, int first, Shared<T> dy) {
  constexpr int V = wide<T>, chunks = filters / V;
  auto from = [&](int pixel) {
    const int y = at.row + pixel / stem_columns, x = at.column + pixel % stem_columns;
    const T* const place =
        p.dy + at.image * p.dy_image + (static_cast<int64_t>(y) * p.width + x) * p.dy_pixel + first * p.dy_channel;
    return y < p.height && x < p.width ? place : nullptr;
  };
  if (p.wide) {
    for (int i = this_thread(); i < stem_pixels * chunks; i += threads) {
      const int pixel = i / chunks, filter = i % chunks * V;
      const T* const place = from(pixel);
      const bool inside = place && first + filter < p.filters;
      copy_async(dy + (pixel * pitch + filter), inside ? place + filter : p.dy, inside);
    }
  } else {
    for (int i = this_thread(); i < stem_pixels * filters;
         i += threads) {  // neighbours in memory to neighbouring threads
      const bool by_filters = p.dy_channel == 1;
      const int pixel = by_filters ? i / filters : i % stem_pixels, filter = by_filters ? i % filters : i / stem_pixels;
      const T* const place = from(pixel);
      dy.put(pixel * pitch + filter, place && first + filter < p.filters ? fetch(place + filter * p.dy_channel) : T{});
    }
  }
}

template <class T, class Sums>
FASTCONV_GLOBAL(threads, 2)
stem_wgrad(FASTCONV_PARAMS(StemWgradParams<T>) p) {
  const Grid block = this_block();
  const int first_column = static_cast<int>(block.x) % p.column_tiles * Sums::columns;
  const int first_filter = static_cast<int>(block.x) / p.column_tiles * filters;
  const Shared<int> offsets = Shared<int>::at(0);
  const Shared<T> source = Shared<T>::at(p.tile_at), dy = Shared<T>::at(p.dy_at);
  for (int i = this_thread(); i < Sums::columns; i += threads) {
    const int column = first_column + i, r = column / p.filter_row;
    const int offset = r * p.dilation_h * p.input.pitch + column % p.filter_row;
    offsets.put(i, p.input.origin + (column < p.columns ? offset : 0));
  }
  Sums sums;
  const int first_tile = static_cast<int>(block.y) * p.part_tiles, left = p.input.tiles - first_tile;
  for (int i = 0; i < (left < p.part_tiles ? left : p.part_tiles); ++i) {
    const StemPlace at = p.input.place(first_tile + i);
    bring_gradients(p, at, first_filter, dy);
    p.input.bring(at, source, threads);
    wait_groups<0>();
    barrier();
    const int rows = p.height - at.row, columns = p.width - at.column;
    sums.multiply({dy, source, offsets, p.input.stride_h * p.input.pitch, p.input.stride_w * p.input.channels,
                   rows < stem_rows ? rows : stem_rows, columns < stem_columns ? columns : stem_columns});
    barrier();  // the tile has been read
  }
  float* const part = p.sums + static_cast<int64_t>(block.y) * p.filters * p.columns;
  sums.each([&](int filter, int column, float value) {
    if (first_filter + filter < p.filters && first_column + column < p.columns)
      store(part + static_cast<int64_t>(first_filter + filter) * p.columns + first_column + column,
            Pack<float, 1>{{value}});
  });
}

// How a launch shares the work; the order of sums follows from it.
struct StemShares {
  int across;  // groups of eight columns of a warp
  int64_t column_tiles, filter_tiles, tile_at, dy_at, shared;
  Parts parts;

  static StemShares of(const Problem& p) {
    constexpr int few = 1, some = 3, many = 5, unit = warps * mma_columns;
    const int64_t columns = p.taps() * p.c, element = dtype_bytes(p.dtype);
    StemShares s{};
    s.across = columns <= few * unit ? few : columns <= some * unit ? some : many;
    s.column_tiles = divide_up(columns, s.across * unit), s.filter_tiles = divide_up(p.k, filters);
    const StemExtent tile = StemExtent::of(p, vector_bytes / element - 1);
    s.tile_at = s.across * unit * static_cast<int64_t>(sizeof(int));
    s.dy_at = s.tile_at + tile.rows * tile.pitch * element;
    s.shared = s.dy_at + stem_pixels * pitch * element;
    const int64_t tiles = p.n * divide_up(p.h.out, stem_rows) * divide_up(p.w.out, stem_columns);
    s.parts = Parts::of(tiles, s.column_tiles * s.filter_tiles, least_tiles);
    return s;
  }
};

std::string refuses_geometry(const Problem& p) {
  if (std::string sentence = refuses_stem(p); !sentence.empty()) return sentence;
  constexpr int64_t most_columns = 1 << 24;
  if (const int64_t columns = p.taps() * p.c; columns > most_columns || p.k > most_columns)
    return "It numbers filters and taps x channels in 32 bits, but there are " + std::to_string(p.k) + " and " +
           std::to_string(columns) + ".";
  if (const int64_t bytes = StemShares::of(p).shared; bytes > most_shared)
    return "It keeps the source and the gradients of 8 x 16 pixels in shared memory, which take " +
           std::to_string(bytes) + " bytes.";
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

int64_t workspace(const Problem& p) {
  return StemShares::of(p).parts.count * p.w_elements() * static_cast<int64_t>(sizeof(float));
}

template <class T, template <int> class Sums>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool nhwc = p.layout == Layout::nhwc;
  const StemShares shares = StemShares::of(p);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  StemWgradParams<T> params{};
  params.input = StemInput<T>::of(p, args.x);
  params.dy = static_cast<const T*>(args.y), params.sums = static_cast<float*>(args.workspace);
  params.dy_image = p.k * p.out_pixels(), params.dy_pixel = nhwc ? p.k : 1;
  params.dy_channel = nhwc ? 1 : p.out_pixels();
  params.filters = i(p.k), params.columns = i(p.taps() * p.c), params.column_tiles = i(shares.column_tiles);
  params.height = i(p.h.out), params.width = i(p.w.out);
  params.filter_row = i(p.w.window * p.c), params.dilation_h = i(p.h.dilation);
  params.part_tiles = shares.parts.units, params.tile_at = i(shares.tile_at), params.dy_at = i(shares.dy_at);
  params.wide = nhwc && p.k % wide<T> == 0 && reinterpret_cast<uintptr_t>(params.dy) % vector_bytes == 0;
  const Grid grid{static_cast<unsigned>(shares.column_tiles * shares.filter_tiles),
                  static_cast<unsigned>(shares.parts.count)};
  auto start = [&](auto kernel) { launch(kernel, params, grid, threads, shares.shared, stream); };
  if (shares.across == 1)
    start(stem_wgrad<T, Sums<1>>);
  else if (shares.across == 3)
    start(stem_wgrad<T, Sums<3>>);
  else
    start(stem_wgrad<T, Sums<5>>);
  start_add<T>(p, args, shares.parts.count, p.c, stream);
}

template <int Across>
using HalfSums = StemOuterMatrix<f16, Across>;
template <int Across>
using BrainSums = StemOuterMatrix<bf16, Across>;
template <int Across>
using FloatSums = StemOuterMatrix<float, Across>;

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16, HalfSums>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16, BrainSums>(p, args, stream);
  run_as<float, FloatSums>(p, args, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float, StemOuterPlain>(p, args, stream); }

}  // namespace

extern const GpuKernelBody conv2d_wgrad_stem_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody conv2d_wgrad_stem_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
