// fprop and dgrad as one implicit matrix product on sm_90's copy engine and warpgroup products. Has not run on hardware
// yet.
//
// Algorithm: a persistent grid; a block's producer thread brings 128 bytes of source channels of 128 pixels of one tap
// with one im2col copy (one tiled copy for 1x1) and as many of 128 filters with another, five stages deep; two
// warpgroups multiply tiles of 128 x 128 in turns (group_tile.h), one storing while the other multiplies. The padding
// is the copies' zero fill. Strided gradients go by phases (walk.h), each with a map of its own, all in one grid.
// Without a residual, and with an activation that bounds at most, warps write elements to shared memory and the copy
// engine stores boxes of 16 pixels x 128 bytes; else sums pass through shared memory to threads that store 16 bytes,
// eight a line. Written channels up to 64 change sides: 64 filters x 256 pixels, whose products read 80 cycles of
// shared memory in 128 where two of 64 columns read 128. Up to 32 they do not: half of the 64 rows would be padding.
//
// Blocks work in teams, clusters of up to four that take two tiles of pixels by two of channels: each brings half of
// what it shares with either neighbour and the copy engine hands it to both (multicast), so that a block reads 16 KiB
// from L2 a step where it would read 32. A stage is free when the warps of all who share it have read it.
//
// Predicted for n256c256h14w14_k256r3s3_p1_bf16nhwc on H200 (790 TFLOP/s of bf16, copy 4.3 TB/s): 59.2 GFLOP, 53 MB,
// limit 75 us; 784 tiles on 132 blocks are 5.94 a block, 1 % lost to the last; one block a multiprocessor (384 threads,
// 168 registers, 200 KiB), 19 % occupancy. From L2 come 462 MB, 6.2 TB/s if they are to take no longer than the
// products; 925 MB without teams. It loses: where K or C are no multiples of 128 or 64, to the padding of the tiles; C
// < 64 to kernels that join taps in a stage; to teams, the multiprocessors that fill no cluster. An address off 16
// bytes, which the copy engine cannot start at, goes the way of igemm.cu (sm80). To check on hardware: the notes of
// tensor_map.h and emulator/tensor.cpp; what L2 delivers, and with it how large teams should be; whether boxes beat the
// threads' stores.
#include "group_tile.h"

#include "cuda/common/epilogue.h"
#include "cuda/common/launch.h"
#include "pack.h"
#include "walk.h"

namespace fastconv::FASTCONV_GPU {

extern const GpuKernelBody conv2d_fprop_igemm_sm80, conv2d_dgrad_igemm_sm80;

namespace {

constexpr int most_maps = 16;  // phases that fit a kernel's parameters

// Pixels are the product's rows and written channels its columns, or the other way round (swapped).
template <int Pixels, int Channels, bool Swapped>
struct ConvTile : GroupTile<Swapped ? Channels : Pixels, Swapped ? Pixels : Channels> {
  static constexpr int pixels = Pixels, channels = Channels;
  static constexpr bool swapped = Swapped, teams = !Swapped && Channels >= Pixels;
};

template <class T>
struct GroupParams {
  TensorMap source[most_maps];  // of each phase
  TensorMap filter;             // [written channel][tap][source channel]
  TensorMap written;            // [pixel][group][channel], where the copy engine stores
  Tail<T> tail;
  Walks h, w;
  Team team;
  int first_tile[most_maps + 1];  // tiles of the team, of each phase; behind the last, all
  int phases, teams;
  int images, groups;
  int channels, columns;  // source and written channels of a group
  int filter_width, written_width;
  int column_tiles;  // of the team
  bool tiled;        // 1x1: source[0] is a matrix of pixels
  bool tail_takes_vectors, stores_boxes;
  Bounds bounds;  // the activation of boxes
};

template <class T, class Tile>
FASTCONV_DEVICE Team own_team(const GroupParams<T>& p) {
  if constexpr (Tile::teams)
    return p.team;
  else
    return {};
}

// A block's tile of a team's: which part of which phase.
template <class T, class Tile>
struct Place {
  const Walk &h, &w;
  int phase, group, first_pixel, first_channel, pixels, steps;

  FASTCONV_DEVICE static int phase_of(const GroupParams<T>& p, int tile) {
    int phase = 0;
    while (tile >= p.first_tile[phase + 1]) ++phase;
    return phase;
  }
  FASTCONV_DEVICE Place(const GroupParams<T>& p, int tile) : Place(p, tile, phase_of(p, tile)) {}
  FASTCONV_DEVICE Place(const GroupParams<T>& p, int tile, int in)
      : h(p.h.phase[in / p.w.count]), w(p.w.phase[in % p.w.count]), phase(in) {
    constexpr int depth = line_bytes / static_cast<int>(sizeof(T));
    const int own = tile - p.first_tile[in];
    pixels = p.images * h.count * w.count;
    const Team team = own_team<T, Tile>(p);
    first_channel = (own % p.column_tiles * team.channels + team.along_channels()) * Tile::channels;
    group = own / p.column_tiles % p.groups;
    first_pixel = (own / p.column_tiles / p.groups * team.pixels + team.along_pixels()) * Tile::pixels;
    steps = h.taps * w.taps * ((p.channels + depth - 1) / depth);
  }
};

// Where a walk's taps begin: the least place that tap 0 of position 0 or the last tap has.
FASTCONV_BOTH int least_place(const Walk& walk) {
  return walk.first + (walk.step < 0 && walk.taps > 0 ? (walk.taps - 1) * walk.step : 0);
}

FASTCONV_DEVICE int first_tile_of(const Team& team) { return static_cast<int>(this_block().x) / team.size(); }

template <class T, class Tile>
FASTCONV_DEVICE void bring_tiles(const GroupParams<T>& p, Pipeline<Tile> pipeline, int tiles) {
  constexpr int depth = line_bytes / static_cast<int>(sizeof(T));
  const Team team = pipeline.team;
  const int slices = (p.channels + depth - 1) / depth;
  // This block's part of what its neighbours need as well.
  const int first_pixel = Tile::pixels / team.channels * team.along_channels();
  const int first_filter = Tile::channels / team.pixels * team.along_pixels();
  const uint32_t pixels_to = team.sharing_pixels(), filters_to = team.sharing_filters();
  for (int tile = first_tile_of(team); tile < tiles; tile += p.teams) {
    const Place<T, Tile> at(p, tile);
    const Walk &h = at.h, &w = at.w;
    const int pixel = at.first_pixel + first_pixel, filter = at.group * p.columns + at.first_channel + first_filter;
    const int plane = h.count * w.count, image = pixel / plane, within = pixel % plane;
    const int low_y = least_place(h), low_x = least_place(w);
    const int y = within / w.count * h.stride + low_y, x = within % w.count * w.stride + low_x;
    pipeline.produce(at.steps, [&](int step, char* left, char* right, Mbarrier done) {
      char* const pixels = (Tile::swapped ? right : left) + first_pixel * line_bytes;
      char* const filters = (Tile::swapped ? left : right) + first_filter * line_bytes;
      const int tap = step / slices, c = step % slices * depth, r = tap / w.taps, s = tap % w.taps;
      const int channel = at.group * p.channels + c, s_offset = w.first + s * w.step - low_x;
      const int r_offset = h.first + r * h.step - low_y;
      const int filter_tap = (h.first_tap + r * h.tap_step) * p.filter_width + w.first_tap + s * w.tap_step;
      if (team.size() == 1) {
        if (p.tiled)
          load_box(p.source[0], pixels, done, channel, pixel);
        else
          load_column(p.source[at.phase], pixels, done, channel, x, y, image, s_offset, r_offset);
        load_box(p.filter, filters, done, c, filter_tap, filter);
      } else {
        if (p.tiled)
          share_box(p.source[0], pixels, done, pixels_to, channel, pixel);
        else
          share_column(p.source[at.phase], pixels, done, pixels_to, channel, x, y, image, s_offset, r_offset);
        share_box(p.filter, filters, done, filters_to, c, filter_tap, filter);
      }
    });
  }
}

template <class T, class Tile, class Sums>
FASTCONV_DEVICE void store_tile(const GroupParams<T>& p, const Place<T, Tile>& at, const Sums& sums) {
  const Walk &h = at.h, &w = at.w;
  const int64_t first = static_cast<int64_t>(at.group) * p.columns + at.first_channel;
  auto put = [&](int pixel, int channel, auto& value) {
    if (at.first_pixel + pixel >= at.pixels || at.first_channel + channel >= p.columns) return;
    const int plane = h.count * w.count, n = (at.first_pixel + pixel) / plane,
              within = (at.first_pixel + pixel) % plane;
    const int64_t y = within / w.count * h.out_step + h.out_first, x = within % w.count * w.out_step + w.out_first;
    p.tail.put(n, y * p.written_width + x, first + channel, value);
  };
  if constexpr (Tile::swapped) {
    auto put_down = [&](int channel, int pixel, auto& value) { put(pixel, channel, value); };
    if (p.tail_takes_vectors)
      sums.template each_down<wide<T>>(put_down);
    else
      sums.template each_down<1>(put_down);
  } else if (p.stores_boxes) {
    auto finish = [&](int channel, const float (&pair)[2]) {
      Pack<T, 2> bias{};
      if (p.tail.bias && at.first_channel + channel < p.columns) bias = load<2>(p.tail.bias + first + channel);
      return Pack<T, 2>{
          {narrow<T>(p.bounds(pair[0] + widen(bias.v[0]))), narrow<T>(p.bounds(pair[1] + widen(bias.v[1])))}};
    };
    sums.each_box(finish, [&](int pixel, int channel, const char* box) {
      store_box(p.written, box, at.first_channel + channel, at.group, at.first_pixel + pixel);
    });
  } else if (p.tail_takes_vectors) {
    sums.template each<wide<T>>(put);
  } else {
    sums.template each<1>(put);
  }
}

template <class T, class Tile>
FASTCONV_DEVICE void make_tiles(const GroupParams<T>& p, Pipeline<Tile> pipeline, int tiles) {
  const int own = this_thread() / threads_of_group - 1;
  int turn = 0;
  for (int tile = first_tile_of(pipeline.team); tile < tiles; tile += p.teams, turn ^= 1) {
    const Place<T, Tile> at(p, tile);
    if (turn != own) {
      pipeline.step += static_cast<unsigned>(at.steps);
      continue;
    }
    GroupSums<T, Tile, Lies::along> sums;
    sums.consume(pipeline, at.steps, tile < p.teams, tile + p.teams >= tiles);
    store_tile(p, at, sums);
  }
  if (p.stores_boxes && this_thread() % lanes_of_warp == 0) wait_boxes<0>();
}

// SharedBytes is what a launch asks for; it stands in the kernel's name, where fastconv/testing/cubin.py reads it.
template <class T, class Tile, int SharedBytes = Tile::shared_bytes>
FASTCONV_GLOBAL(Tile::threads, 1)
group_igemm(FASTCONV_PARAMS(GroupParams<T>) p) {
#if FASTCONV_SM90A
  const Pipeline<Tile> pipeline{own_team<T, Tile>(p)};
  pipeline.open();
  const int tiles = p.first_tile[p.phases];
  if (this_thread() < threads_of_group) {
    fewer_registers<producer_registers>();
    if (this_thread() == 0) bring_tiles<T, Tile>(p, pipeline, tiles);
  } else {
    more_registers<consumer_registers>();
    make_tiles<T, Tile>(p, pipeline, tiles);
  }
  pipeline.close();
#endif
}

// --- host ------------------------------------------------------------------------------------------------------------
int element_bytes(const Problem& p) { return static_cast<int>(dtype_bytes(p.dtype)); }
bool forward(const Problem& p) { return p.pass == Pass::fprop; }
int64_t source_channels(const Problem& p) { return forward(p) ? p.channels_per_group() : p.filters_per_group(); }
const Axis& axis_of(const Problem& p, bool vertical) { return vertical ? p.h : p.w; }
int64_t source_size(const Problem& p, const Axis& a) { return forward(p) ? a.in : a.out; }

std::string refuses_axis(const Problem& p, const Axis& a, const char* name) {
  constexpr int64_t largest_offset = 255, corner = 128, largest_step = 8, largest_place = int64_t{1} << 29;
  const std::string axis = std::string(" of axis ") + name;
  for (int64_t size : {a.in, a.out, a.reach(), a.pad_lo, a.stride})
    if (size > largest_place)
      return "Its places are 32-bit numbers, but a size, window, stride or padding is " + std::to_string(size) + ".";
  if (a.reach() - 1 > largest_offset)
    return "The copy engine reaches 255 pixels from the first tap, but the window" + axis + " reaches " +
           std::to_string(a.reach() - 1) + ".";
  if (a.stride > largest_step)
    return "The copy engine steps over at most 8 pixels, but the stride" + axis + " is " + std::to_string(a.stride) +
           ".";
  const Walks walks = Walks::of(p, a);
  for (int i = 0; i < walks.count; ++i) {
    const Walk& walk = walks.phase[i];
    const int64_t lower = least_place(walk);
    const int64_t upper = lower + int64_t{walk.count - 1} * walk.stride - (source_size(p, a) - 1);
    for (int64_t at : {lower, upper})
      if (walk.taps && (at < -corner || at >= corner))
        return "The copy engine starts at most 128 pixels outside the image, but a corner" + axis + " is " +
               std::to_string(at) + ".";
  }
  return {};
}

std::string refuses(const Problem& p) {
  constexpr int64_t line = line_bytes;
  if (p.dtype == Dtype::f32)
    return "Tensor cores take f16, bf16 and tf32; in f32 they would drop 13 of 23 mantissa bits.";
  if (p.layout != Layout::nhwc) return "It reads channels_last tensors, where a pixel's channels are neighbours.";
  const int64_t channels = source_channels(p), bytes = element_bytes(p), in_step = line / bytes;
  if (channels * bytes % vector_bytes)
    return "Copies take channels by 16 bytes, but a group has " + std::to_string(channels) + " of " +
           std::to_string(bytes) + " bytes.";
  if (p.groups > 1 && channels % in_step)
    return "Copies of " + std::to_string(in_step) + " channels would reach into the next group: each has " +
           std::to_string(channels) + ".";
  for (bool vertical : {true, false})
    if (std::string why = refuses_axis(p, axis_of(p, vertical), vertical ? "h" : "w"); !why.empty()) return why;
  if (!forward(p)) {
    const int64_t phases = std::min(p.h.stride, p.h.in) * std::min(p.w.stride, p.w.in);
    if (phases > most_maps)
      return "It has a tensor map for each of at most 16 phases, but the strides make " + std::to_string(phases) + ".";
  }
  const int64_t rows = p.n * (forward(p) ? p.out_pixels() : p.in_pixels());
  if (const int64_t tiles = divide_up(rows, 128) * divide_up(forward(p) ? p.k : p.c, 32) * p.groups;
      rows > most_blocks - 512 || tiles > most_blocks / 2)
    return "It numbers written pixels and tiles in 32 bits, but there are " + std::to_string(rows) + " and " +
           std::to_string(tiles) + ".";
  return {};
}

int64_t workspace(const Problem& p) {
  return element_bytes(p) == 2 ? PackedFilter<f16>::elements(p) * 2 : PackedFilter<float>::elements(p) * 4;
}

template <class T>
TensorMap source_map(const Problem& p, const void* source, const Walk& h, const Walk& w, int rows) {
  const int64_t bytes = sizeof(T), channels = source_channels(p) * p.groups;
  const int64_t width = source_size(p, p.w), height = source_size(p, p.h);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  auto upper = [&](const Walk& walk, int64_t size) {
    return i(least_place(walk) + int64_t{walk.count - 1} * walk.stride - (size - 1));
  };
  return im2col_map<T>({source,
                        {channels, width, height, p.n},
                        {channels * bytes, width * channels * bytes, height * width * channels * bytes},
                        line_bytes},
                       {{least_place(w), least_place(h)},
                        {upper(w, width), upper(h, height)},
                        {w.stride, h.stride},
                        i(line_bytes / bytes),
                        rows});
}

// Who shares: two blocks the filters, two the pixels, where there are as many tiles. A block alone reads 32 KiB from L2
// for 128 x 128 x 64 products of 16 bits; so do four together for four times as many.
template <class T, class Tile>
Team team_of(int64_t rows, int64_t columns) {
  if (!Tile::teams) return {};
  const bool two_of_channels = divide_up(columns, Tile::channels) % 2 == 0;
  const Team team{rows > Tile::pixels ? 2 : 1, two_of_channels ? 2 : 1};
  const Start shape{{static_cast<unsigned>(team.size())}, Tile::threads, Tile::shared_bytes, team.size()};
  return resident_clusters(group_igemm<T, Tile>, shape) > 0 ? team : Team{};
}

template <class T, class Tile>
void start(const Problem& p, const Args& args, Stream stream) {
  const PackedFilter<T> filter = PackedFilter<T>::of(p, args, stream);
  const void* source = forward(p) ? args.x : args.y;
  constexpr int64_t bytes = sizeof(T);
  constexpr int depth = line_bytes / bytes;
  auto i = [](int64_t v) { return static_cast<int>(v); };
  GroupParams<T> params{};
  params.h = Walks::of(p, p.h), params.w = Walks::of(p, p.w);
  params.phases = params.h.count * params.w.count;
  params.images = i(p.n), params.groups = i(p.groups);
  params.channels = filter.channels, params.columns = filter.columns;
  params.filter_width = i(p.w.window), params.written_width = i(forward(p) ? p.w.out : p.w.in);
  const Team team = params.team =
      team_of<T, Tile>(p.n * params.h.phase[0].count * params.w.phase[0].count, filter.columns);
  params.column_tiles = i(divide_up(filter.columns, Tile::channels * team.channels));
  params.tail = Tail<T>::of(p, args);
  params.tail_takes_vectors = filter.columns % wide<T> == 0 && params.tail.takes(wide<T>);
  // Without a residual, and where written pixels follow each other.
  const std::optional<Bounds> bounds = Bounds::of(p.epilogue.activation);
  params.stores_boxes =
      !Tile::swapped && params.phases == 1 && params.tail_takes_vectors && !params.tail.residual && bounds;
  if (bounds) params.bounds = *bounds;

  const int64_t written = int64_t{filter.columns} * p.groups, taps = p.taps();
  const int64_t row = written > 1 ? filter.row : taps * filter.padded;  // of one row the stride may be anything
  params.filter =
      tiled_map<T, 3>({filter.data, {filter.padded, taps, written}, {filter.padded * bytes, row * bytes}, line_bytes},
                      {depth, 1, Tile::channels / team.pixels});
  params.tiled = p.is_pointwise() && p.h.stride == 1 && p.w.stride == 1 && p.in_pixels() == p.out_pixels();
  const int64_t channels = source_channels(p) * p.groups;
  const int copied_pixels = Tile::pixels / team.channels;
  for (int phase = 0; phase < params.phases; ++phase) {
    const Walk &h = params.h.phase[phase / params.w.count], &w = params.w.phase[phase % params.w.count];
    const int64_t rows = p.n * h.count * w.count;
    params.first_tile[phase + 1] =
        params.first_tile[phase] + i(divide_up(rows, Tile::pixels * team.pixels) * params.column_tiles * p.groups);
    if (params.tiled)
      params.source[0] =
          tiled_map<T, 2>({source, {channels, rows}, {channels * bytes}, line_bytes}, {depth, copied_pixels});
    else if (h.taps && w.taps)
      params.source[phase] = source_map<T>(p, source, h, w, copied_pixels);
  }
  if (params.stores_boxes) {
    using Sums = GroupSums<T, Tile, Lies::along>;
    const Tail<T>& tail = params.tail;
    params.written = tiled_map<T, 3>({tail.out + tail.out_first,
                                      {filter.columns, p.groups, p.n * tail.pixels},
                                      {filter.columns * bytes, tail.out_pixel * bytes},
                                      Sums::box_line},
                                     {Sums::box_columns, 1, Tile::part_rows}, Moves::out);
  }
  const int tiles = params.first_tile[params.phases];
  Start shape{{}, Tile::threads, Tile::shared_bytes, team.size()};
  const int most = team.size() > 1 ? resident_clusters(group_igemm<T, Tile>, shape) : multiprocessors();
  params.teams = std::min(tiles, most);
  shape.grid.x = static_cast<unsigned>(params.teams * team.size());
  launch(group_igemm<T, Tile>, params, shape, stream);
}

void run(const Problem& p, const Args& args, Stream stream) {
  const void* source = forward(p) ? args.x : args.y;
  if (reinterpret_cast<uintptr_t>(source) % vector_bytes)
    return (forward(p) ? conv2d_fprop_igemm_sm80 : conv2d_dgrad_igemm_sm80).run(p, args, stream);
  auto with = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int least = 32, narrow = 64, broad = 128, many = 256;  // channels; pixels
    const int64_t columns = forward(p) ? p.filters_per_group() : p.channels_per_group();
    if (columns <= least) return start<T, ConvTile<broad, least, false>>(p, args, stream);
    if (columns <= narrow) return start<T, ConvTile<many, narrow, true>>(p, args, stream);
    start<T, ConvTile<broad, broad, false>>(p, args, stream);
  };
  if (p.dtype == Dtype::f16) return with(static_cast<f16*>(nullptr));
  if (p.dtype == Dtype::bf16) return with(static_cast<bf16*>(nullptr));
  with(static_cast<float*>(nullptr));
}

}  // namespace

extern const GpuKernelBody conv2d_fprop_igemm_sm90a{refuses, workspace, run};
extern const GpuKernelBody conv2d_dgrad_igemm_sm90a{refuses, workspace, run};

}  // namespace fastconv::FASTCONV_GPU
