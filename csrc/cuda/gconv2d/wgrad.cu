// wgrad of groups of at most 32 channels, every stride, dilation and padding, either layout.
//
// Algorithm: a block takes some neighbouring groups, 32 channels or fewer of either side, and a part of the tiles of
// 8 x 16 output pixels: a tile's gradients and the source under it come to shared memory once (group_input.h) and are
// the depth of the products. A product is of 8 neighbouring channels under two taps and 8 neighbouring filters; those
// are made where the eights have a group in common, and of their sums those within a group are kept. So operands come
// to the registers as they lie, transposed by ldmatrix, whatever the size of a group. f16, bf16 and tf32 are multiplied
// by mma.sync (target sm80), f32 by multiply-adds (target simt). Parts go to the workspace in float, and are added in a
// fixed order (conv2d/parts.h): the same bits in every run. Bytes: x and dy once, the rims of tiles from L2, both again
// for every 36 products of a slab. Limit on H200 (copy 4.3 TB/s): n256c128h56w56_k128r3s3_p1_g32_bf16nhwc_wgrad moves
// 411 MB, 96 us, and has 7.4 GFLOP; 200 us predicted: 20 products a slab read 1.5 x 512 bytes of shared memory for 16
// pixels each, 100 us of it in all, and copies overlap it in other blocks alone; four blocks of 128 threads a
// multiprocessor, 25 % occupancy; not measured. It loses where strides or dilations make the source of a tile
// large, with maps smaller than a tile, and to wider products with larger groups, where several blocks read the same.
#include "cuda/common/matrix.h"
#include "cuda/conv2d/parts.h"
#include "group_input.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int eight = 8;                            // channels, or filters, of a product
constexpr int most_eights = slab_channels / eight;  // of a slab
constexpr int taps_of_product = 2, item_words = 4;  // a table's entry: two places of x, one of dy
constexpr int warps = group_threads / lanes_of_warp;
constexpr int few = 1, some = 5, many = 9;  // products of a warp
constexpr int nowhere = -1;
constexpr int64_t least_tiles = 4;         // of a part
constexpr int64_t most_shared = 99 << 10;  // two blocks fit on an SM of sm_80 to sm_100

// Products of a slab: those of eights with a group in common, for two taps each.
struct GroupProducts {
  unsigned char channels[most_eights * most_eights], filters[most_eights * most_eights];  // number of the eight
  int pairs, of_pair, count;

  static GroupProducts of(const Problem& p, int64_t groups) {
    const int64_t channels = p.channels_per_group(), filters = p.filters_per_group();
    GroupProducts made{};
    for (int64_t c = 0; c * eight < groups * channels; ++c)
      for (int64_t k = 0; k * eight < groups * filters; ++k) {
        auto first = [](int64_t at, int64_t size) { return at * eight / size; };
        auto last = [&](int64_t at, int64_t size) {
          return std::min(at * eight + eight - 1, groups * size - 1) / size;
        };
        if (last(c, channels) < first(k, filters) || last(k, filters) < first(c, channels)) continue;
        made.channels[made.pairs] = static_cast<unsigned char>(c);
        made.filters[made.pairs++] = static_cast<unsigned char>(k);
      }
    made.of_pair = static_cast<int>(divide_up(p.taps(), taps_of_product));
    made.count = made.pairs * made.of_pair;
    return made;
  }
};

template <class T>
struct GroupWgradParams {
  GroupInput<T> x, dy;
  float* sums;  // [part][filter][tap][channel of the group]
  GroupProducts products;
  Walk h, w;               // from output places to those of x
  int groups, slab;        // in all; of a block
  int channels, filters;   // of a group
  int taps, filter_width;  // R·S, S
  int tiles, tiles_down, tiles_across, part_tiles;
  int zeros_at, x_at, dy_at;  // bytes in shared memory
};

// A tile in shared memory.
template <class T>
struct GroupOperands {
  Shared<T> x, dy, zeros;
  int row, pixel, dy_pitch;  // elements of x from an output row's source to the next, and from a pixel's
  int rows, columns;         // of output pixels that are there

  // The eight channels of x under a tap at output pixel (y, column); zeros where there is no tap or pixel, since an
  // infinite input times no gradient would be NaN.
  FASTCONV_DEVICE Shared<T> source(int y, int column, int tap) const {
    return tap != nowhere && y < rows && column < columns ? x + (y * row + column * pixel + tap) : zeros;
  }
  FASTCONV_DEVICE Shared<T> gradients(int y, int column, int filter) const {
    return dy + ((y * group_width + column) * dy_pitch + filter);
  }
};

// Each product adds a tile's pixels to sum (channel, or behind eight of them channel under the second tap; filter),
// which lies in the lanes as mma.sync has it. item: a table's entry.
template <class T>
struct GroupOuterMatrix {
  FASTCONV_DEVICE static void multiply(float (&sum)[4], const GroupOperands<T>& in, const Pack<int, item_words>& item) {
    const int lane = this_thread() % lanes_of_warp;
    if constexpr (sizeof(T) == 2) {  // a row of pixels is a step's depth
      const int octet = lane / 8, line = lane % 8, tap = octet % 2 ? item.v[1] : item.v[0];
      for (int y = 0; y < in.rows; y += 2) {
        uint32_t a[2][4], b[4];
        load_transposed(b, in.gradients(y + octet / 2, octet % 2 * 8 + line, item.v[2]));
        FASTCONV_UNROLL
        for (int i = 0; i < 2; ++i) load_transposed(a[i], in.source(y + i, octet / 2 * 8 + line, tap));
        FASTCONV_UNROLL
        for (int i = 0; i < 2; ++i) MatrixOf<T>::multiply(sum, a[i], b[2 * i], b[2 * i + 1]);
      }
    } else {
      constexpr int step = mma_depth_bytes / static_cast<int>(sizeof(T));
      const int place = lane / 4, share = lane % 4;
      for (int y = 0; y < in.rows; ++y) FASTCONV_UNROLL
      for (int column = share; column < group_width; column += step) {
        uint32_t a[4], b[2];
        FASTCONV_UNROLL
        for (int e = 0; e < 4; ++e) a[e] = bits(in.source(y, column + e / 2 * 4, item.v[e % 2]), place);
        FASTCONV_UNROLL
        for (int e = 0; e < 2; ++e) b[e] = bits(in.gradients(y, column + e * 4, item.v[2]), place);
        MatrixOf<T>::multiply(sum, a, b[0], b[1]);
      }
    }
  }

 private:
  FASTCONV_DEVICE static uint32_t bits(Shared<T> row, int at) {
    return to_tf32(Shared<uint32_t>{reinterpret_cast<uint32_t*>(row.data)}.get(at));
  }
};

struct GroupOuterPlain {
  FASTCONV_DEVICE static void multiply(float (&sum)[4], const GroupOperands<float>& in,
                                       const Pack<int, item_words>& item) {
    const int lane = this_thread() % lanes_of_warp, place = lane / 4, beside = lane % 4 * 2;
    for (int y = 0; y < in.rows; ++y)
      for (int column = 0; column < in.columns; ++column) {
        const Pack<float, 2> b = in.gradients(y, column, item.v[2]).template read<2>(beside);
        FASTCONV_UNROLL
        for (int tap = 0; tap < taps_of_product; ++tap) {
          const float a = in.source(y, column, item.v[tap]).get(place);
          sum[2 * tap] += a * b.v[0], sum[2 * tap + 1] += a * b.v[1];
        }
      }
  }
};

// Own: products of a warp.
template <class T, class Product, int Own>
FASTCONV_GLOBAL(group_threads, 3)
grouped_wgrad(FASTCONV_PARAMS(GroupWgradParams<T>) p) {
  const Grid block = this_block();
  const int first_group = static_cast<int>(block.x) * p.slab, left_groups = p.groups - first_group;
  const int groups = left_groups < p.slab ? left_groups : p.slab;
  const int first_item = static_cast<int>(block.z) * warps * Own;
  const Reach down = Reach::of(p.h, group_height), across = Reach::of(p.w, group_width);

  const Shared<int> table = Shared<int>::at(0);
  const Shared<T> zeros = Shared<T>::at(p.zeros_at), x = Shared<T>::at(p.x_at), dy = Shared<T>::at(p.dy_at);
  if (this_thread() < warps * Own) {
    const int item = first_item + this_thread();
    Pack<int, item_words> entry{{nowhere, nowhere, nowhere, 0}};
    if (item < p.products.count) {
      const int pair = item / p.products.of_pair;
      FASTCONV_UNROLL
      for (int i = 0; i < taps_of_product; ++i) {
        const int tap = item % p.products.of_pair * taps_of_product + i;
        const int place = tap / p.filter_width * p.h.step * across.size + tap % p.filter_width * p.w.step;
        if (tap < p.taps) entry.v[i] = place * p.x.pitch + p.products.channels[pair] * eight;
      }
      entry.v[2] = p.products.filters[pair] * eight;
    }
    table.write(this_thread() * item_words, entry);
  }
  if (this_thread() < eight) zeros.put(this_thread(), T{});

  float sum[Own][4] = {};
  const int own_first = this_thread() / lanes_of_warp * Own;
  const int first_tile = static_cast<int>(block.y) * p.part_tiles, left = p.tiles - first_tile;
  for (int i = 0; i < (left < p.part_tiles ? left : p.part_tiles); ++i) {
    const int tile = first_tile + i, column = tile % p.tiles_across * group_width,
              row = tile / p.tiles_across % p.tiles_down * group_height, n = tile / p.tiles_across / p.tiles_down;
    p.dy.bring(n, row, column, group_height, group_width, first_group * p.filters, groups * p.filters, dy);
    p.x.bring(n, row * p.h.stride + p.h.first, column * p.w.stride + p.w.first, down.size, across.size,
              first_group * p.channels, groups * p.channels, x);
    wait_groups<0>();
    barrier();
    const int rows = p.h.count - row, columns = p.w.count - column;
    const GroupOperands<T> operands{x,
                                    dy,
                                    zeros,
                                    p.h.stride * across.size * p.x.pitch,
                                    p.w.stride * p.x.pitch,
                                    p.dy.pitch,
                                    rows < group_height ? rows : group_height,
                                    columns < group_width ? columns : group_width};
    FASTCONV_UNROLL
    for (int j = 0; j < Own; ++j) {
      const Pack<int, item_words> entry = table.read<item_words>((own_first + j) * item_words);
      if (entry.v[0] != nowhere) Product::multiply(sum[j], operands, entry);
    }
    barrier();  // the tile has been read
  }

  const int lane = this_thread() % lanes_of_warp;
  const int64_t first_filter =
      (static_cast<int64_t>(block.y) * p.groups + first_group) * p.filters;  // of the part's sums
  FASTCONV_UNROLL
  for (int j = 0; j < Own; ++j) {
    const int item = first_item + own_first + j, pair = item / p.products.of_pair;
    if (item >= p.products.count) break;
    FASTCONV_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int c = p.products.channels[pair] * eight + lane / 4,
                k = p.products.filters[pair] * eight + lane % 4 * 2 + e % 2;
      const int tap = item % p.products.of_pair * taps_of_product + e / 2, group = c / p.channels;
      if (group < groups && group == k / p.filters && tap < p.taps)
        store(p.sums + ((first_filter + k) * p.taps + tap) * p.channels + c % p.channels, Pack<float, 1>{{sum[j][e]}});
    }
  }
}

// How a launch shares the work, and where it lies in shared memory; the order of sums follows from it.
struct GroupWgradShares {
  GroupProducts products;
  int64_t groups, slabs, own, layers, tiles;
  int64_t x_pitch, dy_pitch, zeros_at, x_at, dy_at, bytes;
  Parts parts;

  static GroupWgradShares of(const Problem& p) {
    const int64_t element = dtype_bytes(p.dtype);
    GroupWgradShares s{};
    s.groups = groups_of_slab(p), s.slabs = divide_up(p.groups, s.groups);
    s.products = GroupProducts::of(p, s.groups);
    s.own = s.products.count <= few * warps ? few : s.products.count <= some * warps ? some : many;
    s.layers = divide_up(s.products.count, s.own * warps);
    s.tiles = p.n * divide_up(p.h.out, group_height) * divide_up(p.w.out, group_width);
    s.parts = Parts::of(s.tiles, s.slabs * s.layers, least_tiles);
    // An odd number of eights: what neighbouring pixels have lies in other banks.
    auto pitch = [](int64_t channels) { return (divide_up(channels, eight) | 1) * eight; };
    s.x_pitch = pitch(s.groups * p.channels_per_group()), s.dy_pitch = pitch(s.groups * p.filters_per_group());
    auto reach = [](const Axis& a, int64_t written) { return (written - 1) * a.stride + a.reach(); };
    s.zeros_at = many * warps * item_words * static_cast<int64_t>(sizeof(int)), s.x_at = s.zeros_at + eight * element;
    s.dy_at = s.x_at + reach(p.h, group_height) * reach(p.w, group_width) * s.x_pitch * element;
    s.bytes = s.dy_at + group_pixels * s.dy_pitch * element;
    return s;
  }
};

std::string refuses_geometry(const Problem& p) {
  if (std::string sentence = refuses_groups(p, slab_channels); !sentence.empty()) return sentence;
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
  for (const Axis* a : {&p.h, &p.w})
    if (a->reach() > most_shared || a->stride > most_shared)
      return "It keeps the source of 8 x 16 pixels in shared memory, but a window reaches " +
             std::to_string(a->reach()) + " with a stride of " + std::to_string(a->stride) + ".";
  const GroupWgradShares shares = GroupWgradShares::of(p);
  if (shares.bytes > most_shared)
    return "It keeps the source and the gradients of 8 x 16 pixels in shared memory, which take " +
           std::to_string(shares.bytes) + " bytes.";
  if (shares.tiles > most_blocks / 2)
    return "It numbers tiles in 32 bits, but there are " + std::to_string(shares.tiles) + ".";
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
  return GroupWgradShares::of(p).parts.count * p.w_elements() * static_cast<int64_t>(sizeof(float));
}

template <class T, class Product>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const GroupWgradShares shares = GroupWgradShares::of(p);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  GroupWgradParams<T> params{};
  params.x = GroupInput<T>::of(p, args.x, p.c, p.h.in, p.w.in, shares.groups, shares.x_pitch);
  params.dy = GroupInput<T>::of(p, args.y, p.k, p.h.out, p.w.out, shares.groups, shares.dy_pitch);
  params.sums = static_cast<float*>(args.workspace), params.products = shares.products;
  params.h = Walk::forward(p.h), params.w = Walk::forward(p.w);
  params.groups = i(p.groups), params.slab = i(shares.groups);
  params.channels = i(p.channels_per_group()), params.filters = i(p.filters_per_group());
  params.taps = i(p.taps()), params.filter_width = i(p.w.window);
  params.tiles = i(shares.tiles), params.part_tiles = shares.parts.units;
  params.tiles_down = i(divide_up(p.h.out, group_height)), params.tiles_across = i(divide_up(p.w.out, group_width));
  params.zeros_at = i(shares.zeros_at), params.x_at = i(shares.x_at), params.dy_at = i(shares.dy_at);
  const Grid grid{static_cast<unsigned>(shares.slabs), static_cast<unsigned>(shares.parts.count),
                  static_cast<unsigned>(shares.layers)};
  auto start = [&](auto kernel) { launch(kernel, params, grid, group_threads, shares.bytes, stream); };
  if (shares.own == few)
    start(grouped_wgrad<T, Product, few>);
  else if (shares.own == some)
    start(grouped_wgrad<T, Product, some>);
  else
    start(grouped_wgrad<T, Product, many>);
  start_add<T>(p, args, shares.parts.count, p.channels_per_group(), stream);
}

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16, GroupOuterMatrix<f16>>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16, GroupOuterMatrix<bf16>>(p, args, stream);
  run_as<float, GroupOuterMatrix<float>>(p, args, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float, GroupOuterPlain>(p, args, stream); }

}  // namespace

extern const GpuKernelBody gconv2d_wgrad_grouped_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody gconv2d_wgrad_grouped_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
