// fprop and dgrad of groups of fewer than 16 channels, every stride, dilation and padding, either layout.
//
// Algorithm: a block makes 8 x 16 pixels of some neighbouring groups, 32 channels or fewer of either side. The source
// under the tile comes to shared memory once, 16 bytes at a time by cp.async where groups fill such chunks, else by
// elements; the padding is its zero fill. Each warp takes group after group (group.h): a group's depth is (tap,
// channel) without gaps, f16, bf16 and tf32 are multiplied by mma.sync (target sm80), f32 by multiply-adds (target
// simt). Strided gradients go by phases (conv2d/walk.h). Sums pass through shared memory to the epilogue. Bytes: source
// and result once, the rims of tiles from L2. Limit on H200 (copy 4.3 TB/s): n256c128h56w56_k128r3s3_p1_g32_bf16nhwc
// moves 411 MB, 96 us, and has 7.4 GFLOP; 150 us predicted, since half of each product's columns are empty with four
// filters a group, and a source element is read from shared memory once for each tap; three blocks of 128 threads a
// multiprocessor, 19 % occupancy; not measured. It loses where strides or dilations make the source of a tile large,
// with odd channels, which are gathered one by one, and with maps smaller than a tile.
#include "group.h"

#include <algorithm>

#include "cuda/conv2d/store.h"
#include "group_input.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int most_channels = 15;          // of a group, source and written
constexpr int few = 8, many = 16;          // columns of a product
constexpr int64_t most_shared = 99 << 10;  // two blocks fit on an SM of sm_80 to sm_100

template <class T>
struct GroupedParams {
  GroupInput<T> source;
  const T* filter;
  int64_t written_stride, source_stride, group_stride, r_stride, s_stride;  // of the filter
  int groups, slab, slabs;                                                  // in all; of a block
  int channels, columns;                                                    // of a group: source, written
  int written_width, images;
  int sums_pitch;                   // elements of a pixel in the tile of sums
  int filter_at, tile_at, sums_at;  // bytes in shared memory
  Walks h, w;
  Tail<T> tail;
  bool tail_takes_vectors;
};

template <class Product, class T>
FASTCONV_DEVICE void bring_table(const GroupedParams<T>& p, const Walk& h, const Walk& w, const Reach& down,
                                 const Reach& across, int depth, Shared<int> table) {
  constexpr int each = Product::of_entry;
  for (int i = this_thread(); i < depth / each; i += group_threads) {
    const int tap = i * each / p.channels, c = i * each % p.channels;
    const int y = down.before + tap / (w.taps > 0 ? w.taps : 1) * h.step,
              x = across.before + tap % (w.taps > 0 ? w.taps : 1) * w.step;
    table.put(i, tap < h.taps * w.taps ? (y * across.size + x) * p.source.pitch + c : nothing);
  }
}

// The filters of the block's groups, zeros where columns or the depth are padded.
template <class Product, class T>
FASTCONV_DEVICE void bring_filter(const GroupedParams<T>& p, const Walk& h, const Walk& w, int first_group, int groups,
                                  int depth, Shared<T> filter) {
  const int of_group = Product::columns * depth;
  for (int i = this_thread(); i < groups * of_group; i += group_threads) {
    const int group = i / of_group, column = i % of_group / depth, k = i % depth;
    const int tap = k / p.channels, c = k % p.channels;
    T value{};
    if (tap < h.taps * w.taps && column < p.columns)
      value = fetch(p.filter + (first_group + group) * p.group_stride + column * p.written_stride +
                    c * p.source_stride + (h.first_tap + tap / w.taps * h.tap_step) * p.r_stride +
                    (w.first_tap + tap % w.taps * w.tap_step) * p.s_stride);
    filter.put(group * Product::columns * Product::pitch(depth) + Product::filter_at(column, k, depth), value);
  }
}

template <class T, class Product>
FASTCONV_GLOBAL(group_threads, 2)
grouped(FASTCONV_PARAMS(GroupedParams<T>) p) {
  const Grid block = this_block();
  const Walk &h = p.h.phase[block.y / static_cast<unsigned>(p.w.count)],
             &w = p.w.phase[block.y % static_cast<unsigned>(p.w.count)];
  const int tiles_across = (w.count + group_width - 1) / group_width,
            tiles_down = (h.count + group_height - 1) / group_height;
  const int slab = static_cast<int>(block.x) % p.slabs, tile_number = static_cast<int>(block.x) / p.slabs;
  const int column = tile_number % tiles_across * group_width,
            row = tile_number / tiles_across % tiles_down * group_height;
  const int n = tile_number / tiles_across / tiles_down;
  if (n >= p.images) return;  // phases differ in size; the whole block goes
  const int first_group = slab * p.slab, left_groups = p.groups - first_group;
  const int groups = left_groups < p.slab ? left_groups : p.slab;

  constexpr int step = mma_depth_bytes / static_cast<int>(sizeof(T));
  const int depth = (h.taps * w.taps * p.channels + step - 1) / step * step;

  const Shared<int> table = Shared<int>::at(0);
  const Shared<T> filter = Shared<T>::at(p.filter_at), tile = Shared<T>::at(p.tile_at);
  const Reach down = Reach::of(h, group_height), across = Reach::of(w, group_width);
  p.source.bring(n, row * h.stride + h.first - down.before, column * w.stride + w.first - across.before, down.size,
                 across.size, first_group * p.channels, groups * p.channels, tile);
  bring_table<Product>(p, h, w, down, across, depth, table);
  bring_filter<Product>(p, h, w, first_group, groups, depth, filter);
  wait_groups<0>();
  barrier();

  const Shared<float> sums = Shared<float>::at(p.sums_at);
  for (int group = this_thread() / lanes_of_warp; group < groups; group += group_threads / lanes_of_warp) {
    Product product;
    product.multiply(
        {table, tile + group * p.channels, h.stride * across.size * p.source.pitch, w.stride * p.source.pitch},
        filter + group * Product::columns * Product::pitch(depth), depth);
    product.each([&](int pixel, int j, Pack<float, 2> pair) {
      for (int e = 0; e < 2; ++e)
        if (j + e < p.columns) sums.put(pixel * p.sums_pitch + group * p.columns + j + e, pair.v[e]);
    });
  }
  barrier();

  const int columns = groups * p.columns;
  store_shared(p.tail, p.tail_takes_vectors, sums, p.sums_pitch, group_pixels, columns, columns,
               static_cast<int64_t>(first_group) * p.columns, group_threads, [&](int pixel) {
                 const int y = row + pixel / group_width, x = column + pixel % group_width;
                 const int64_t to_y = static_cast<int64_t>(y) * h.out_step + h.out_first,
                               to_x = static_cast<int64_t>(x) * w.out_step + w.out_first;
                 return Written{y < h.count && x < w.count, n, to_y * p.written_width + to_x};
               });
}

// What a block takes, and where it lies in its shared memory.
struct GroupedShape {
  int64_t channels, columns, groups, depth, pitch, sums_pitch, filter_at, tile_at, sums_at, bytes;

  static GroupedShape of(const Problem& p) {
    const bool forward = p.pass == Pass::fprop;
    const int64_t element = dtype_bytes(p.dtype), chunk = vector_bytes / element;
    GroupedShape s{};
    s.channels = forward ? p.channels_per_group() : p.filters_per_group();
    s.columns = forward ? p.filters_per_group() : p.channels_per_group();
    s.groups = groups_of_slab(p);
    s.depth = round_up(p.taps() * s.channels, mma_depth_bytes / element);
    s.pitch = round_up(s.groups * s.channels, chunk) + chunk;
    s.sums_pitch = round_up(s.groups * s.columns, chunk) + chunk;
    const int64_t padded = s.columns <= few ? few : many;
    s.filter_at = round_up(s.depth * int64_t{sizeof(int)}, vector_bytes);
    s.tile_at = s.filter_at + round_up(s.groups * padded * (s.depth + chunk) * element, vector_bytes);
    s.sums_at = s.tile_at + largest_tile(p) * s.pitch * element;
    s.bytes = s.sums_at + group_pixels * s.sums_pitch * static_cast<int64_t>(sizeof(float));
    return s;
  }
  // Source pixels under the tile of any phase: those of a gradient's phases differ by a tap.
  static int64_t largest_tile(const Problem& p) {
    auto reach = [&](const Axis& a, int64_t written) {
      if (p.pass == Pass::fprop) return (written - 1) * a.stride + a.reach();
      return written + divide_up(a.reach(), a.stride);
    };
    return reach(p.h, group_height) * reach(p.w, group_width);
  }
};

std::string refuses_geometry(const Problem& p) {
  const bool forward = p.pass == Pass::fprop;
  if (std::string sentence = refuses_groups(p, most_channels); !sentence.empty()) return sentence;
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
  for (const Axis* a : {&p.h, &p.w}) {
    if (!forward && a->stride > most_phases)
      return "It takes the gradient by at most " + std::to_string(most_phases) + " phases an axis, but the stride is " +
             std::to_string(a->stride) + ".";
    if (a->reach() > most_shared || a->stride > most_shared)
      return "It keeps the source of 8 x 16 pixels in shared memory, but a window reaches " +
             std::to_string(a->reach()) + " with a stride of " + std::to_string(a->stride) + ".";
  }
  const GroupedShape shape = GroupedShape::of(p);
  if (shape.bytes > most_shared)
    return "It keeps filters, source and sums of 8 x 16 pixels in shared memory, which take " +
           std::to_string(shape.bytes) + " bytes.";
  const int64_t height = forward ? p.h.out : p.h.in, width = forward ? p.w.out : p.w.in;
  const int64_t blocks =
      p.n * divide_up(height, group_height) * divide_up(width, group_width) * divide_up(p.groups, shape.groups);
  if (blocks > most_blocks) return "It would start too many blocks: " + std::to_string(blocks) + ".";
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

template <class T, bool Matrix>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool forward = p.pass == Pass::fprop;
  const GroupedShape shape = GroupedShape::of(p);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  GroupedParams<T> params{};
  params.source = forward ? GroupInput<T>::of(p, args.x, p.c, p.h.in, p.w.in, shape.groups, shape.pitch)
                          : GroupInput<T>::of(p, args.y, p.k, p.h.out, p.w.out, shape.groups, shape.pitch);
  params.filter = static_cast<const T*>(args.w);
  params.written_stride = args.w_stride[forward ? 0 : 1], params.source_stride = args.w_stride[forward ? 1 : 0];
  params.group_stride = p.filters_per_group() * args.w_stride[0];
  params.r_stride = args.w_stride[2], params.s_stride = args.w_stride[3];
  params.groups = i(p.groups), params.slab = i(shape.groups), params.slabs = i(divide_up(p.groups, shape.groups));
  params.channels = i(shape.channels), params.columns = i(shape.columns);
  params.written_width = i(forward ? p.w.out : p.w.in), params.images = i(p.n);
  params.sums_pitch = i(shape.sums_pitch);
  params.filter_at = i(shape.filter_at), params.tile_at = i(shape.tile_at), params.sums_at = i(shape.sums_at);
  params.h = Walks::of(p, p.h), params.w = Walks::of(p, p.w);
  params.tail = Tail<T>::of(p, args);
  params.tail_takes_vectors =
      shape.groups * shape.columns % wide<T> == 0 && (forward ? p.k : p.c) % wide<T> == 0 && params.tail.takes(wide<T>);
  int64_t most_tiles = 0;
  for (int a = 0; a < params.h.count; ++a)
    for (int b = 0; b < params.w.count; ++b)
      most_tiles = std::max(most_tiles, p.n * divide_up(params.h.phase[a].count, group_height) *
                                            divide_up(params.w.phase[b].count, group_width));
  const Grid grid{static_cast<unsigned>(most_tiles * params.slabs),
                  static_cast<unsigned>(params.h.count * params.w.count)};
  auto start = [&](auto kernel) { launch(kernel, params, grid, group_threads, shape.bytes, stream); };
  if constexpr (!Matrix) {
    shape.columns <= few ? start(grouped<T, GroupPlain<few>>) : start(grouped<T, GroupPlain<many>>);
  } else if (shape.channels % of_pair<T> == 0) {
    shape.columns <= few ? start(grouped<T, GroupMatrix<T, few, true>>) : start(grouped<T, GroupMatrix<T, many, true>>);
  } else {
    shape.columns <= few ? start(grouped<T, GroupMatrix<T, few, false>>)
                         : start(grouped<T, GroupMatrix<T, many, false>>);
  }
}

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16, true>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16, true>(p, args, stream);
  run_as<float, true>(p, args, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float, false>(p, args, stream); }

}  // namespace

extern const GpuKernelBody gconv2d_fprop_grouped_sm80{refuses_matrix, no_gpu_workspace, run_matrix};
extern const GpuKernelBody gconv2d_dgrad_grouped_sm80{refuses_matrix, no_gpu_workspace, run_matrix};
extern const GpuKernelBody gconv2d_fprop_grouped_simt{refuses_plain, no_gpu_workspace, run_plain};
extern const GpuKernelBody gconv2d_dgrad_grouped_simt{refuses_plain, no_gpu_workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
