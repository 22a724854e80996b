// wgrad as an implicit matrix product over pixels, for every stride, dilation, group count, padding and either layout.
//
// Algorithm: a block makes 64 x 64 sums of filters x (tap, channel) of one group over a part of the N·P·Q pixels, in
// steps of 32 pixels (16 of four bytes), three steps in flight by cp.async; the padding is the zero fill of the copies.
// Pixels lie in shared memory as in channels_last, so an operand's depth runs across its lines (outer.h): f16 and bf16
// are transposed by ldmatrix, tf32 is read by elements, both multiplied by mma.sync (target sm80); f32 by multiply-adds
// (target simt). Parts go to the workspace in float, and a second kernel adds them in a fixed order (parts.h): no
// atomics, the same bits in every run. Bytes: dy once for each 64 columns, x once for each 64 filters, from L2 where
// blocks of one part run together; the workspace written and read once. Limit on H200 (790 TFLOP/s of bf16 by wgmma,
// of which mma.sync reaches some 60 %; copy 4.3 TB/s): n256c256h14w14_k256r3s3_p1_bf16nhwc_wgrad has 59 GFLOP and moves
// 53 MB, 125 us predicted at best; not measured. It loses: tiles of 64 x 64 to larger ones where filters and columns
// are many; operands off alignment, in NCHW or with channels that are no multiple of 16 bytes are loaded an element at
// a time; few channels pay for their padding; depthwise problems use a row of each tile; dense layers on Hopper lose to
// wgmma.
#include "cuda/common/launch.h"
#include "cuda/common/refuses.h"
#include "outer.h"
#include "parts.h"
#include "walk.h"

namespace fastconv::FASTCONV_GPU {

namespace {

template <class T>
struct WgradParams {
  const T* dy;
  const T* x;
  float* sums;                             // [part][group][row][column]
  int64_t dy_image, dy_pixel, dy_channel;  // strides in elements
  int64_t x_image, x_pixel, x_channel;     // likewise
  int64_t part_elements;
  int rows, columns;     // of a group: its filters; taps x padded channels
  int channels, padded;  // of a group; padded to 16 bytes
  int filter_width;      // S
  int pixels, part_pixels, column_tiles;
  int height, width;  // of x
  Walk h, w;          // from output places to those of x
};

// Wide: a chunk of 16 bytes of neighbouring channels is one aligned access, of dy and of x. Else each element is loaded
// by itself, at any alignment and in either layout. SharedBytes is what a launch asks for; it stands in the kernel's
// name, where fastconv/testing/cubin.py reads it.
template <class T, class Sums, bool Wide, int SharedBytes = Sums::Tile::shared_bytes>
FASTCONV_GLOBAL(Sums::Tile::threads, 2)
wgrad_igemm(FASTCONV_PARAMS(WgradParams<T>) p) {
  using Tile = typename Sums::Tile;
  constexpr int elements = wide<T>, chunks = Tile::rows / elements;
  constexpr int lines = Tile::threads / chunks;  // that all threads bring at once
  constexpr int own_lines = Tile::depth / lines;
  static_assert(lines * own_lines == Tile::depth);

  const Grid block = this_block();
  const int first_row = static_cast<int>(block.x) / p.column_tiles * Tile::rows;
  const int first_column = static_cast<int>(block.x) % p.column_tiles * Tile::columns;
  const int group = static_cast<int>(block.y), first_pixel = static_cast<int>(block.z) * p.part_pixels;
  const int left_pixels = p.pixels - first_pixel,
            own_pixels = left_pixels < p.part_pixels ? left_pixels : p.part_pixels;

  // What this thread brings: one chunk of several lines. Neighbouring threads bring neighbouring chunks where chunks
  // are one access, else neighbouring pixels, which lie together in NCHW.
  const int line = Wide ? this_thread() / chunks : this_thread() % lines;
  const int chunk = Wide ? this_thread() % chunks : this_thread() / lines;
  const int row = first_row + chunk * elements, column = first_column + chunk * elements;
  const int tap = column / p.padded, c = column % p.padded;
  const int down = tap / p.filter_width * p.h.step + p.h.first, right = tap % p.filter_width * p.w.step + p.w.first;
  const T* const dy = p.dy + (static_cast<int64_t>(group) * p.rows + row) * p.dy_channel;
  const T* const x = p.x + (static_cast<int64_t>(group) * p.channels + c) * p.x_channel;

  auto place = [](Shared<T> to, const T* from, bool inside, int64_t channel, int present) {
    if constexpr (Wide) {
      copy_async(to, from, inside);
    } else {
      Pack<T, elements> pack;
      FASTCONV_UNROLL
      for (int e = 0; e < elements; ++e) pack.v[e] = inside && e < present ? fetch(from + e * channel) : T{};
      to.write(0, pack);
    }
  };
  auto bring = [&](int step) {
    const Shared<T> stage = Shared<T>::at(step % Tile::stages * Tile::stage_bytes);
    FASTCONV_UNROLL
    for (int i = 0; i < own_lines; ++i) {
      const int at = line + i * lines, pixel = step * Tile::depth + at;
      const bool present = pixel < own_pixels;
      const int plane = p.h.count * p.w.count, n = (first_pixel + pixel) / plane,
                within = (first_pixel + pixel) % plane;
      const bool of_dy = present && row < p.rows;
      place(stage + (at * Tile::pitch + chunk * elements), of_dy ? dy + n * p.dy_image + within * p.dy_pixel : p.dy,
            of_dy, p.dy_channel, p.rows - row);
      const int source_row = within / p.w.count * p.h.stride + down,
                source_column = within % p.w.count * p.w.stride + right;
      const bool of_x = present && column < p.columns &&
                        static_cast<unsigned>(source_row) < static_cast<unsigned>(p.height) &&
                        static_cast<unsigned>(source_column) < static_cast<unsigned>(p.width);
      const int64_t source = static_cast<int64_t>(source_row) * p.width + source_column;
      place(stage + (Tile::operand + at * Tile::pitch + chunk * elements),
            of_x ? x + n * p.x_image + source * p.x_pixel : p.x, of_x, p.x_channel, p.channels - c);
    }
  };

  Sums sums;
  const int steps = (own_pixels + Tile::depth - 1) / Tile::depth;
  FASTCONV_UNROLL
  for (int step = 0; step < Tile::stages - 1; ++step) {
    if (step < steps) bring(step);
    commit_group();
  }
  for (int step = 0; step < steps; ++step) {
    wait_groups<Tile::stages - 2>();
    barrier();  // this step's chunks are there, and the last step's have been read
    if (step + Tile::stages - 1 < steps) bring(step + Tile::stages - 1);
    commit_group();
    const Shared<T> stage = Shared<T>::at(step % Tile::stages * Tile::stage_bytes);
    sums.multiply(stage, stage + Tile::operand);
  }

  // Through shared memory, so that a thread stores 16 bytes of neighbouring columns.
  constexpr int vector = wide<float>, across = Tile::columns / vector;
  barrier();
  const Shared<float> shared = Shared<float>::at(0);
  sums.each([&](int at, int beside, Pack<float, 2> pair) { shared.write(at * Tile::sums_pitch + beside, pair); });
  barrier();
  float* const part = p.sums + block.z * p.part_elements + static_cast<int64_t>(group) * p.rows * p.columns;
  for (int i = this_thread(); i < Tile::rows * across; i += Tile::threads) {
    const int at = i / across, beside = i % across * vector;
    if (first_row + at < p.rows && first_column + beside < p.columns)
      store(part + static_cast<int64_t>(first_row + at) * p.columns + first_column + beside,
            shared.read<vector>(at * Tile::sums_pitch + beside));
  }
}

constexpr int64_t least_steps = 4;  // of a part

int element_bytes(const Problem& p) { return static_cast<int>(dtype_bytes(p.dtype)); }
int64_t padded_channels(const Problem& p) { return round_up(p.channels_per_group(), vector_bytes / element_bytes(p)); }
int64_t column_tiles(const Problem& p) { return divide_up(p.taps() * padded_channels(p), SmallTile::columns); }
int64_t tiles(const Problem& p) { return column_tiles(p) * divide_up(p.filters_per_group(), SmallTile::rows); }
int64_t pixels_of(const Problem& p) { return p.n * p.out_pixels(); }

Parts parts_of(const Problem& p) {  // in steps
  return Parts::of(divide_up(pixels_of(p), row_bytes / element_bytes(p)), tiles(p) * p.groups, least_steps);
}

std::string refuses_geometry(const Problem& p) {
  if (pixels_of(p) > most_blocks - SmallTile::rows)
    return "It numbers output pixels in 32 bits, but there are " + std::to_string(pixels_of(p)) + ".";
  if (const int64_t columns = p.taps() * padded_channels(p); columns > most_blocks / 2)
    return "It numbers taps x channels in 32 bits, but there are " + std::to_string(columns) + ".";
  if (tiles(p) > most_blocks) return "It would start too many blocks: " + std::to_string(tiles(p)) + " a group.";
  if (p.groups > most_blocks_yz)
    return "It has a block layer for each group, but there are " + std::to_string(p.groups) + ".";
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
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
  return parts_of(p).count * p.k * p.taps() * padded_channels(p) * static_cast<int64_t>(sizeof(float));
}

template <class T, class Sums>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool nhwc = p.layout == Layout::nhwc;
  const Parts parts = parts_of(p);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  WgradParams<T> params{};
  params.dy = static_cast<const T*>(args.y), params.x = static_cast<const T*>(args.x);
  params.sums = static_cast<float*>(args.workspace);
  params.dy_image = p.k * p.out_pixels(), params.dy_pixel = nhwc ? p.k : 1,
  params.dy_channel = nhwc ? 1 : p.out_pixels();
  params.x_image = p.c * p.in_pixels(), params.x_pixel = nhwc ? p.c : 1, params.x_channel = nhwc ? 1 : p.in_pixels();
  params.rows = i(p.filters_per_group()), params.channels = i(p.channels_per_group());
  params.padded = i(padded_channels(p)), params.columns = i(p.taps() * padded_channels(p));
  params.part_elements = p.k * int64_t{params.columns};
  params.filter_width = i(p.w.window);
  params.pixels = i(pixels_of(p)), params.part_pixels = parts.units * Sums::Tile::depth;
  params.column_tiles = i(column_tiles(p));
  params.height = i(p.h.in), params.width = i(p.w.in);
  params.h = Walk::forward(p.h), params.w = Walk::forward(p.w);
  auto aligned = [](const T* base) { return reinterpret_cast<uintptr_t>(base) % vector_bytes == 0; };
  const bool chunks = nhwc && params.rows % wide<T> == 0 && params.channels % wide<T> == 0;
  const Grid grid{static_cast<unsigned>(tiles(p)), static_cast<unsigned>(p.groups), static_cast<unsigned>(parts.count)};
  auto start = [&](auto kernel) {
    launch(kernel, params, grid, Sums::Tile::threads, Sums::Tile::shared_bytes, stream);
  };
  if (chunks && aligned(params.dy) && aligned(params.x))
    start(wgrad_igemm<T, Sums, true>);
  else
    start(wgrad_igemm<T, Sums, false>);
  start_add<T>(p, args, parts.count, params.padded, stream);
}

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16, OuterMatrixSums<f16>>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16, OuterMatrixSums<bf16>>(p, args, stream);
  run_as<float, OuterMatrixSums<float>>(p, args, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float, OuterPlainSums>(p, args, stream); }

}  // namespace

extern const GpuKernelBody conv2d_wgrad_igemm_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody conv2d_wgrad_igemm_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
