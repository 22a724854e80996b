// wgrad as an implicit matrix product over pixels on sm_90's copy engine and warpgroup products, f16 and bf16. Has not
// run on hardware yet.
//
// Algorithm: as igemm_sm90.cu, with depth = pixels: a stage holds 64 pixels of dy (128 filters, two boxes) and the
// pixels of x that one tap meets them with (64 or 128 channels, im2col copies). Both lie as in memory, so the depth
// runs across the lines, which wgmma transposes for elements of two bytes. A tile is filters x channels of one tap over
// one part of the pixels; parts go to the workspace in float and are added in a fixed order (parts.h): no atomics, the
// same bits in every run. Groups need no edges of their own: what a box brings of the next group is never stored.
// Predicted for n256c256h14w14_k256r3s3_p1_bf16nhwc_wgrad on H200 (790 TFLOP/s of bf16, copy 4.3 TB/s): 59.2 GFLOP, 53
// MB of operands and result, limit 75 us; 36 tiles in 14 parts write and read 66 MB of sums, 15 us at best beside it;
// one block a multiprocessor (384 threads, 168 registers, 197 KiB), 19 % occupancy. It loses: few filters or channels
// to the padding of its tiles; tf32 goes to sm80, since wgmma cannot transpose it; so does an address off 16 bytes.
#include "group_tile.h"

#include "cuda/common/launch.h"
#include "parts.h"
#include "walk.h"

namespace fastconv::FASTCONV_GPU {

extern const GpuKernelBody conv2d_wgrad_igemm_sm80;

namespace {

constexpr int pixels_of_step = line_bytes / 2, box_columns = line_bytes / 2;

template <class T>
struct GroupWgradParams {
  TensorMap dy, x;  // pixels x filters; columns of pixels
  float* sums;      // [part][group][filter][tap][channel]
  int64_t part_elements;
  Walk h, w;           // from output places to those of x
  int rows, channels;  // of a group
  int groups, row_tiles, channel_tiles;
  int steps, part_steps;  // of all pixels; of a part but the last
  int tiles, blocks;
};

template <class T, class Tile>
struct WgradPlace {
  int part, group, r, s, first_row, first_channel, first_step, steps;

  FASTCONV_DEVICE WgradPlace(const GroupWgradParams<T>& p, int tile) {
    auto next = [&tile](int count) {
      const int digit = tile % count;
      tile /= count;
      return digit;
    };
    first_channel = next(p.channel_tiles) * Tile::columns;
    first_row = next(p.row_tiles) * Tile::rows;
    s = next(p.w.taps), r = next(p.h.taps), group = next(p.groups), part = tile;
    first_step = part * p.part_steps;
    steps = p.steps - first_step < p.part_steps ? p.steps - first_step : p.part_steps;
  }
};

// SharedBytes is what a launch asks for; it stands in the kernel's name, where fastconv/testing/cubin.py reads it.
template <class T, class Tile, int SharedBytes = Tile::shared_bytes>
FASTCONV_GLOBAL(Tile::threads, 1)
group_wgrad(FASTCONV_PARAMS(GroupWgradParams<T>) p) {
#if FASTCONV_SM90A
  using Place = WgradPlace<T, Tile>;
  constexpr int box_bytes = pixels_of_step * line_bytes;
  Pipeline<Tile> pipeline;
  pipeline.open();
  const int first = static_cast<int>(this_block().x);
  if (this_thread() < threads_of_group) {
    fewer_registers<producer_registers>();
    if (this_thread() > 0) return;
    for (int tile = first; tile < p.tiles; tile += p.blocks) {
      const Place at(p, tile);
      pipeline.produce(at.steps, [&](int step, char* left, char* right, Mbarrier done) {
        const int pixel = (at.first_step + step) * pixels_of_step, plane = p.h.count * p.w.count;
        const int image = pixel / plane, within = pixel % plane;
        const int y = within / p.w.count * p.h.stride + p.h.first, x = within % p.w.count * p.w.stride + p.w.first;
        FASTCONV_UNROLL
        for (int i = 0; i < Tile::rows / box_columns; ++i)
          load_box(p.dy, left + i * box_bytes, done, at.group * p.rows + at.first_row + i * box_columns, pixel);
        FASTCONV_UNROLL
        for (int i = 0; i < Tile::columns / box_columns; ++i)
          load_column(p.x, right + i * box_bytes, done, at.group * p.channels + at.first_channel + i * box_columns, x,
                      y, image, at.s * p.w.step, at.r * p.h.step);
      });
    }
  } else {
    more_registers<consumer_registers>();
    const int own = this_thread() / threads_of_group - 1;
    int turn = 0;
    for (int tile = first; tile < p.tiles; tile += p.blocks, turn ^= 1) {
      const Place at(p, tile);
      if (turn != own) {
        pipeline.step += static_cast<unsigned>(at.steps);
        continue;
      }
      GroupSums<T, Tile, Lies::across> sums;
      sums.consume(pipeline, at.steps, tile < p.blocks, tile + p.blocks >= p.tiles);
      const int taps = p.h.taps * p.w.taps, tap = at.r * p.w.taps + at.s;
      float* const part = p.sums + at.part * p.part_elements;
      sums.template each<wide<float>>([&](int row, int column, float (&value)[wide<float>]) {
        const int filter = at.first_row + row, channel = at.first_channel + column;
        if (filter >= p.rows || channel >= p.channels) return;
        Pack<float, wide<float>> pack;
        FASTCONV_UNROLL
        for (int i = 0; i < wide<float>; ++i) pack.v[i] = value[i];
        store(part + ((static_cast<int64_t>(at.group) * p.rows + filter) * taps + tap) * p.channels + channel, pack);
      });
    }
  }
#endif
}

// --- host ------------------------------------------------------------------------------------------------------------
constexpr int narrow_tile = 64, broad_tile = 128, tile_rows = 128;
constexpr int64_t least_steps = 4;  // of a part

int columns_of(const Problem& p) { return p.channels_per_group() > narrow_tile ? broad_tile : narrow_tile; }
int64_t tiles_of_part(const Problem& p) {
  return divide_up(p.filters_per_group(), tile_rows) * divide_up(p.channels_per_group(), columns_of(p)) * p.taps() *
         p.groups;
}
Parts parts_of(const Problem& p) {  // in steps
  return Parts::of(divide_up(p.n * p.out_pixels(), pixels_of_step), tiles_of_part(p), least_steps);
}
int64_t upper_corner(const Axis& a) { return (a.out - 1) * a.stride - a.pad_lo - (a.in - 1); }

std::string refuses(const Problem& p) {
  constexpr int64_t largest_offset = 255, corner = 128, largest_step = 8, bytes = 2;
  if (dtype_bytes(p.dtype) != bytes)
    return "wgmma transposes elements of two bytes alone, but the problem is in " + std::string(name_of(p.dtype)) + ".";
  if (p.layout != Layout::nhwc) return "It reads channels_last tensors, where a pixel's channels are neighbours.";
  for (int64_t channels : {p.channels_per_group(), p.filters_per_group()})
    if (channels * bytes % vector_bytes)
      return "Copies take channels by 16 bytes, but a group has " + std::to_string(channels) + " of 2 bytes.";
  for (const Axis* a : {&p.h, &p.w}) {
    if (a->reach() - 1 > largest_offset)
      return "The copy engine reaches 255 pixels from the first tap, but a window reaches " +
             std::to_string(a->reach() - 1) + ".";
    if (a->stride > largest_step)
      return "The copy engine steps over at most 8 pixels, but a stride is " + std::to_string(a->stride) + ".";
    for (int64_t at : {-a->pad_lo, upper_corner(*a)})
      if (at < -corner || at >= corner)
        return "The copy engine starts at most 128 pixels outside the image, but a corner is " + std::to_string(at) +
               ".";
  }
  if (const int64_t pixels = p.n * p.out_pixels(); pixels > most_blocks - box_columns)
    return "It numbers output pixels in 32 bits, but there are " + std::to_string(pixels) + ".";
  if (const int64_t tiles = tiles_of_part(p); tiles > most_blocks / (int64_t{1} << 10))
    return "It numbers tiles of all parts in 32 bits, but a part has " + std::to_string(tiles) + ".";
  return {};
}

int64_t workspace(const Problem& p) {
  const int64_t own = parts_of(p).count * p.w_elements() * static_cast<int64_t>(sizeof(float));
  return std::max(own, conv2d_wgrad_igemm_sm80.workspace(p));
}

template <class T, class Tile>
void start(const Problem& p, const Args& args, Stream stream) {
  constexpr int64_t bytes = sizeof(T);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  const Parts parts = parts_of(p);
  GroupWgradParams<T> params{};
  params.dy =
      tiled_map<T, 2>({args.y, {p.k, p.n * p.out_pixels()}, {p.k * bytes}, line_bytes}, {box_columns, pixels_of_step});
  params.x = im2col_map<T>({args.x,
                            {p.c, p.w.in, p.h.in, p.n},
                            {p.c * bytes, p.w.in * p.c * bytes, p.in_pixels() * p.c * bytes},
                            line_bytes},
                           {{i(-p.w.pad_lo), i(-p.h.pad_lo)},
                            {i(upper_corner(p.w)), i(upper_corner(p.h))},
                            {i(p.w.stride), i(p.h.stride)},
                            box_columns,
                            pixels_of_step});
  params.sums = static_cast<float*>(args.workspace), params.part_elements = p.w_elements();
  params.h = Walk::forward(p.h), params.w = Walk::forward(p.w);
  params.rows = i(p.filters_per_group()), params.channels = i(p.channels_per_group()), params.groups = i(p.groups);
  params.row_tiles = i(divide_up(params.rows, Tile::rows));
  params.channel_tiles = i(divide_up(params.channels, Tile::columns));
  params.steps = i(divide_up(p.n * p.out_pixels(), pixels_of_step)), params.part_steps = parts.units;
  params.tiles = i(tiles_of_part(p)) * parts.count;
  params.blocks = std::min(params.tiles, multiprocessors());
  launch(group_wgrad<T, Tile>, params, {static_cast<unsigned>(params.blocks)}, Tile::threads, Tile::shared_bytes,
         stream);
  start_add<T>(p, args, parts.count, params.channels, stream);
}

void run(const Problem& p, const Args& args, Stream stream) {
  for (const void* operand : {args.x, args.y})
    if (reinterpret_cast<uintptr_t>(operand) % vector_bytes) return conv2d_wgrad_igemm_sm80.run(p, args, stream);
  auto with = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (columns_of(p) == broad_tile)
      start<T, GroupTile<tile_rows, broad_tile>>(p, args, stream);
    else
      start<T, GroupTile<tile_rows, narrow_tile>>(p, args, stream);
  };
  if (p.dtype == Dtype::f16) return with(static_cast<f16*>(nullptr));
  with(static_cast<bf16*>(nullptr));
}

}  // namespace

extern const GpuKernelBody conv2d_wgrad_igemm_sm90a{refuses, workspace, run};

}  // namespace fastconv::FASTCONV_GPU
