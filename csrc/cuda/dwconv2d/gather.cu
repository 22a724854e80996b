// Depthwise fprop and dgrad: one filter a channel, every stride, dilation and padding, both layouts.
//
// Algorithm: a thread makes four neighbouring pixels of a row, for 16 bytes of neighbouring channels in channels_last
// and for one channel in NCHW. Where the taps of a row are next to each other (3, 5 or 7 of them, stride 1 or 2) it
// loads each source pixel of the row once and slides along it in registers; else it loads a pixel for each tap. The
// filter of the block's channels lies in shared memory, in float, by taps. Gradients of strided convolutions go by
// phases (conv2d/walk.h), so each dx is one sum in one thread. Bytes: source and result once from memory; rows are read
// again for each tap row, from L1 and L2. Limit on H200 (copy 4.3 TB/s): n256c144h56w56_k144r3s3_p1_g144_bf16nhwc moves
// 462 MB, 108 us predicted; not measured. It loses in NCHW, where a warp's loads are 8 bytes apart, and to tensor cores
// for windows from about 11x11 on.
#include "cuda/common/epilogue.h"
#include "cuda/common/launch.h"
#include "cuda/common/refuses.h"
#include "cuda/common/shared.h"
#include "cuda/conv2d/walk.h"
#include "rows.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int threads = 128;
constexpr int columns = 4;       // pixels of a thread
constexpr int most_vectors = 8;  // channel vectors of a block
constexpr int64_t most_shared = 48 << 10;

template <class T>
struct Params {
  const T* source;
  const T* filter;
  int64_t image, pixel, channel;  // strides of the source, in elements
  int64_t filter_channel, filter_row, filter_column;
  int images, height, width, channels;  // of the source
  int taps, filter_width;               // R·S and S
  int written_width;
  int vectors;  // channel vectors of a block
  int channel_blocks;
  Walks h, w;
  Tail<T> tail;
};

// S: taps of a row, next to each other, with a stride of U between outputs; 0: any, one by one.
template <class T, int V, int S, int U>
FASTCONV_GLOBAL(threads, 3)
depthwise(FASTCONV_PARAMS(Params<T>) p) {
  const Grid block = this_block();
  const Walk &h = p.h.phase[block.y / static_cast<unsigned>(p.w.count)],
             &w = p.w.phase[block.y % static_cast<unsigned>(p.w.count)];
  const int first_channel = static_cast<int>(block.x) % p.channel_blocks * p.vectors * V;

  const int held = p.vectors * V;  // channels whose taps the block keeps
  const Shared<float> taps = Shared<float>::at(0);
  for (int i = this_thread(); i < p.taps * held; i += threads) {
    const int tap = i / held, c = first_channel + i % held;
    float value = 0;
    if (c < p.channels)
      value = widen(fetch(p.filter + c * p.filter_channel + tap / p.filter_width * p.filter_row +
                          tap % p.filter_width * p.filter_column));
    taps.put(i, value);
  }
  barrier();

  const int across = (w.count + columns - 1) / columns;
  const int own = this_thread() % p.vectors * V, channel = first_channel + own;
  const int64_t item = static_cast<int64_t>(block.x / static_cast<unsigned>(p.channel_blocks)) * (threads / p.vectors) +
                       this_thread() / p.vectors;
  const int column = static_cast<int>(item % across) * columns;
  const int row = static_cast<int>(item / across % h.count), n = static_cast<int>(item / across / h.count);
  if (n >= p.images || channel >= p.channels) return;

  float sum[columns][V] = {};
  const T* const image = p.source + n * p.image + channel * p.channel;
  for (int r = 0; r < h.taps; ++r) {
    const int y = row * h.stride + h.first + r * h.step;
    if (static_cast<unsigned>(y) >= static_cast<unsigned>(p.height)) continue;
    const T* const line = image + static_cast<int64_t>(y) * p.width * p.pixel;
    const int tap_row = (h.first_tap + r * h.tap_step) * p.filter_width;
    auto weights = [&](float (&to)[V], int tap) {
      taps.read_all(to, static_cast<int64_t>(tap_row + tap) * held + own);
    };
    auto pixel = [&](int x) {
      return static_cast<unsigned>(x) < static_cast<unsigned>(p.width) ? load<V>(line + x * p.pixel) : Pack<T, V>{};
    };
    if constexpr (S > 0) {
      // From the left; a gradient's taps run the other way.
      const int left = column * U + w.first + (w.step < 0 ? 1 - S : 0);
      add_sliding<S, U, T>(
          sum, [&](int i) { return pixel(left + i); },
          [&](float (&to)[V], int s) { weights(to, w.step < 0 ? S - 1 - s : s); });
    } else {
      add_taps<T>(
          sum, w.taps, [&](int q, int s) { return pixel((column + q) * w.stride + w.first + s * w.step); },
          [&](float (&to)[V], int s) { weights(to, w.first_tap + s * w.tap_step); });
    }
  }
  const int64_t y = static_cast<int64_t>(row) * h.out_step + h.out_first;
  FASTCONV_UNROLL
  for (int q = 0; q < columns; ++q)
    if (column + q < w.count)
      p.tail.put(n, y * p.written_width + (column + q) * w.out_step + w.out_first, channel, sum[q]);
}

std::string refuses(const Problem& p) {
  if (!p.is_depthwise())
    return "It takes depthwise problems, not C=" + std::to_string(p.c) + " in " + std::to_string(p.groups) + " groups.";
  if (p.k != p.c)
    return "It has one filter a channel, but the problem has " + std::to_string(p.filters_per_group()) + ".";
  const int64_t held = p.taps() * most_vectors * vector_bytes / 2 * sizeof(float);
  if (held > most_shared)
    return "It keeps the taps of 64 channels in shared memory, but R·S=" + std::to_string(p.taps()) + " take " +
           std::to_string(held) + " bytes.";
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
  for (const Axis* a : {&p.h, &p.w}) {
    if (p.pass == Pass::dgrad && a->stride > most_phases)
      return "It takes the gradient by at most " + std::to_string(most_phases) + " phases an axis, but the stride is " +
             std::to_string(a->stride) + ".";
  }
  if (const int64_t elements = std::max(p.x_elements(), p.y_elements()); elements / threads > most_blocks)
    return "It would start too many blocks for " + std::to_string(elements) + " elements.";
  return {};
}

template <class T>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool forward = p.pass == Pass::fprop, nhwc = p.layout == Layout::nhwc;
  const int64_t pixels = forward ? p.in_pixels() : p.out_pixels();
  auto i = [](int64_t v) { return static_cast<int>(v); };
  Params<T> params{};
  params.source = static_cast<const T*>(forward ? args.x : args.y), params.filter = static_cast<const T*>(args.w);
  params.image = p.c * pixels, params.pixel = nhwc ? p.c : 1, params.channel = nhwc ? 1 : pixels;
  params.filter_channel = args.w_stride[0], params.filter_row = args.w_stride[2],
  params.filter_column = args.w_stride[3];
  params.images = i(p.n), params.channels = i(p.c);
  params.height = i(forward ? p.h.in : p.h.out), params.width = i(forward ? p.w.in : p.w.out);
  params.taps = i(p.taps()), params.filter_width = i(p.w.window);
  params.written_width = i(forward ? p.w.out : p.w.in);
  params.h = Walks::of(p, p.h), params.w = Walks::of(p, p.w);
  params.tail = Tail<T>::of(p, args);
  auto start = [&](auto kernel, int vector) {
    int64_t most_items = 0;
    for (int a = 0; a < params.h.count; ++a)
      for (int b = 0; b < params.w.count; ++b)
        most_items = std::max(most_items, p.n * params.h.phase[a].count * divide_up(params.w.phase[b].count, columns));
    params.vectors = 1;
    while (nhwc && params.vectors < most_vectors && params.vectors * vector < p.c) params.vectors *= 2;
    params.channel_blocks = i(divide_up(p.c, int64_t{params.vectors} * vector));
    const Grid grid{static_cast<unsigned>(divide_up(most_items, threads / params.vectors) * params.channel_blocks),
                    static_cast<unsigned>(params.h.count * params.w.count)};
    launch(kernel, params, grid, threads, p.taps() * params.vectors * vector * sizeof(float), stream);
  };
  constexpr int V = wide<T>;
  const bool vectors = params.channel == 1 && p.c % V == 0 && params.tail.takes(V) &&
                       reinterpret_cast<uintptr_t>(params.source) % vector_bytes == 0;
  if (!vectors) return start(depthwise<T, 1, 0, 1>, 1);
  // Sliding: all taps of a row, next to each other.
  const Walk& row = params.w.phase[0];
  const bool slides = params.w.count == 1 && (row.step == 1 || row.step == -1) && row.taps == p.w.window;
  constexpr int three = 3, five = 5, seven = 7;
  if (slides && row.stride == 1) {
    if (row.taps == three) return start(depthwise<T, V, three, 1>, V);
    if (row.taps == five) return start(depthwise<T, V, five, 1>, V);
    if (row.taps == seven) return start(depthwise<T, V, seven, 1>, V);
  }
  if (slides && row.stride == 2) {
    if (row.taps == three) return start(depthwise<T, V, three, 2>, V);
    if (row.taps == five) return start(depthwise<T, V, five, 2>, V);
  }
  start(depthwise<T, V, 0, 1>, V);
}

void run(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16>(p, args, stream);
  run_as<float>(p, args, stream);
}

}  // namespace

extern const GpuKernelBody dwconv2d_fprop_depthwise_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody dwconv2d_dgrad_depthwise_simt{refuses, no_gpu_workspace, run};

}  // namespace fastconv::FASTCONV_GPU
