// Depthwise wgrad: one filter a channel, every stride, dilation and padding, both layouts.
//
// Algorithm: a thread has one row of taps (3, 5 or 7 next to each other, stride 1 or 2; else one tap) of 16 bytes of
// neighbouring channels in channels_last, of one channel in NCHW. It takes four neighbouring output gradients and the
// input pixels under them, each once, and slides along them in registers. The threads of a block that have other tap
// rows of the same channels take the same gradients at the same time, from L1, and other lanes other places; their sums
// are added in shared memory in the order of lanes. Blocks take parts of the places, and a second kernel adds these in
// a fixed order (conv2d/parts.h): no atomics, the same bits in every run. Bytes: x and dy once from memory; x again for
// each tap row from L1 and L2. Limit on H200 (copy 4.3 TB/s): n256c144h56w56_k144r3s3_p1_g144_bf16nhwc_wgrad moves 462
// MB, 108 us predicted; not measured. It loses in NCHW, where a warp's loads are 8 bytes apart, with strides over rows
// that are wider than 4 x stride, and to one pass over all taps where these fit the registers.
#include "cuda/common/launch.h"
#include "cuda/common/refuses.h"
#include "cuda/conv2d/parts.h"
#include "cuda/conv2d/walk.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int threads = 128;
constexpr int columns = 4;       // output gradients of a row that a thread takes at once
constexpr int most_vectors = 8;  // channel vectors of a block
constexpr int most_sums = 32;    // of a thread where three blocks share a multiprocessor's registers

template <class T>
struct WgradParams {
  const T* dy;
  const T* x;
  float* sums;                                       // [part][channel][tap]
  int64_t dy_image, x_image, dy_channel, x_channel;  // strides in elements
  int64_t pixel;                                     // of both
  int64_t part_elements;
  int channels, vectors;                          // in all; channel vectors of a block
  int taps, filter_width, units, units_of_block;  // R·S, S; tap rows (or taps) in all; of a block
  int lanes;                                      // threads of a block that share a unit and channels
  int strips, part_strips;                        // of four gradients, in all; of a part
  int strips_of_row;
  int height, width;  // of x
  Walk h, w;          // from output places to those of x
};

// S: taps of a thread, next to each other, with a stride of U between outputs.
template <class T, int V, int S, int U>
FASTCONV_GLOBAL(threads, S* V > most_sums ? 2 : 3)
depthwise_wgrad(FASTCONV_PARAMS(WgradParams<T>) p) {
  const Grid block = this_block();
  const int first_channel = static_cast<int>(block.x) * p.vectors * V;
  const int first_unit = static_cast<int>(block.y) * p.units_of_block;
  const int own = this_thread() % p.vectors * V, channel = first_channel + own;
  const int slot = this_thread() / p.vectors;
  const int unit = first_unit + slot % p.units_of_block, lane = slot / p.units_of_block;
  const int first_tap = unit * S, stride = S > 1 ? U : p.w.stride;
  const int down = first_tap / p.filter_width * p.h.step + p.h.first;
  const int right = first_tap % p.filter_width * p.w.step + p.w.first;

  float sum[S][V] = {};
  const int first_strip = static_cast<int>(block.z) * p.part_strips;
  const int left_strips = p.strips - first_strip;
  const int own_strips = left_strips < p.part_strips ? left_strips : p.part_strips;
  const bool works = lane < p.lanes && unit < p.units && channel < p.channels;
  for (int strip = works ? lane : own_strips; strip < own_strips; strip += p.lanes) {
    const int at = first_strip + strip, column = at % p.strips_of_row * columns;
    const int row = at / p.strips_of_row % p.h.count, n = at / p.strips_of_row / p.h.count;
    const int source_row = row * p.h.stride + down;
    if (static_cast<unsigned>(source_row) >= static_cast<unsigned>(p.height)) continue;
    const T* const dy =
        p.dy + n * p.dy_image + channel * p.dy_channel + static_cast<int64_t>(row) * p.w.count * p.pixel;
    const T* const x =
        p.x + n * p.x_image + channel * p.x_channel + static_cast<int64_t>(source_row) * p.width * p.pixel;
    // The input pixels under four gradients: all between them too where taps are next to each other.
    constexpr int seen = S > 1 ? (columns - 1) * U + S : columns;
    const int left = column * stride + right, step = S > 1 ? 1 : stride;
    Pack<T, V> source[seen], gradient[columns];
    FASTCONV_UNROLL
    for (int i = 0; i < seen; ++i) {
      const int place = left + i * step;
      source[i] =
          static_cast<unsigned>(place) < static_cast<unsigned>(p.width) ? load<V>(x + place * p.pixel) : Pack<T, V>{};
    }
    FASTCONV_UNROLL
    for (int q = 0; q < columns; ++q)
      gradient[q] = column + q < p.w.count ? load<V>(dy + (column + q) * p.pixel) : Pack<T, V>{};
    FASTCONV_UNROLL
    for (int q = 0; q < columns; ++q) {
      if (column + q >= p.w.count) continue;  // an infinite input times no gradient would be NaN
      FASTCONV_UNROLL
      for (int s = 0; s < S; ++s) FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) sum[s][i] += widen(gradient[q].v[i]) * widen(source[S > 1 ? q * U + s : q].v[i]);
    }
  }

  const Shared<float> shared = Shared<float>::at(0);
  FASTCONV_UNROLL
  for (int s = 0; s < S; ++s) FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) shared.put((s * V + i) * threads + this_thread(), sum[s][i]);
  barrier();
  const int taps = p.units_of_block * S, held = p.vectors * V;
  for (int i = this_thread(); i < held * taps; i += threads) {
    const int c = i / taps, tap = i % taps;
    if (first_channel + c >= p.channels || first_unit * S + tap >= p.taps) continue;
    float total = 0;
    for (int k = 0; k < p.lanes; ++k)
      total += shared.get((tap % S * V + c % V) * threads + (k * p.units_of_block + tap / S) * p.vectors + c / V);
    store(p.sums + block.z * p.part_elements + static_cast<int64_t>(first_channel + c) * p.taps + first_unit * S + tap,
          Pack<float, 1>{{total}});
  }
}

// Taps of a thread where it may slide along a row of them; else 1.
int taps_of_thread(const Problem& p) {
  constexpr int three = 3, five = 5, seven = 7;
  if (p.layout != Layout::nhwc || p.w.dilation != 1) return 1;
  for (int taps : {three, five, seven})
    if (p.w.window == taps && (p.w.stride == 1 || (p.w.stride == 2 && taps < seven))) return taps;
  return 1;
}

// How a launch shares the work; the order of sums follows from it.
struct Shares {
  int vectors, channel_blocks, units, units_of_block, unit_blocks, lanes;
  int64_t strips;
  Parts parts;
  int vector, taps;  // elements of a channel vector; taps of a thread

  // by_vectors: the operands are aligned to 16 bytes.
  static Shares of(const Problem& p, bool by_vectors) {
    const int wide_vector = vector_bytes / static_cast<int>(dtype_bytes(p.dtype));
    const bool nhwc = p.layout == Layout::nhwc;
    auto i = [](int64_t v) { return static_cast<int>(v); };
    Shares s{};
    s.vector = by_vectors && nhwc && p.c % wide_vector == 0 ? wide_vector : 1;
    s.taps = s.vector > 1 ? taps_of_thread(p) : 1;
    s.vectors = 1;
    while (nhwc && s.vectors < most_vectors && s.vectors * s.vector < p.c) s.vectors *= 2;
    s.channel_blocks = i(divide_up(p.c, int64_t{s.vectors} * s.vector));
    const int slots = threads / s.vectors;
    s.units = i(p.taps() / s.taps), s.units_of_block = std::min(s.units, slots);
    s.unit_blocks = i(divide_up(s.units, s.units_of_block)), s.lanes = slots / s.units_of_block;
    s.strips = p.n * p.h.out * divide_up(p.w.out, columns);
    constexpr int64_t least_turns = 4;  // of a lane
    s.parts = Parts::of(s.strips, int64_t{s.channel_blocks} * s.unit_blocks, least_turns * s.lanes);
    return s;
  }
};

std::string refuses(const Problem& p) {
  if (!p.is_depthwise())
    return "It takes depthwise problems, not C=" + std::to_string(p.c) + " in " + std::to_string(p.groups) + " groups.";
  if (p.k != p.c)
    return "It has one filter a channel, but the problem has " + std::to_string(p.filters_per_group()) + ".";
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
  constexpr int64_t most_taps = 1 << 20;
  if (p.taps() > most_taps)
    return "It has a block layer for some taps, but there are " + std::to_string(p.taps()) + ".";
  constexpr int64_t most_strips = 1 << 30;
  if (const int64_t strips = p.n * p.h.out * divide_up(p.w.out, columns); strips > most_strips || p.c > most_strips)
    return "It numbers channels and places in 32 bits, but there are " + std::to_string(p.c) + " and " +
           std::to_string(strips) + ".";
  return {};
}

int64_t workspace(const Problem& p) {
  return std::max(Shares::of(p, true).parts.count, Shares::of(p, false).parts.count) * p.c * p.taps() *
         static_cast<int64_t>(sizeof(float));
}

template <class T>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool nhwc = p.layout == Layout::nhwc;
  auto aligned = [](const void* base) { return reinterpret_cast<uintptr_t>(base) % vector_bytes == 0; };
  const Shares shares = Shares::of(p, aligned(args.x) && aligned(args.y));
  auto i = [](int64_t v) { return static_cast<int>(v); };
  WgradParams<T> params{};
  params.dy = static_cast<const T*>(args.y), params.x = static_cast<const T*>(args.x);
  params.sums = static_cast<float*>(args.workspace);
  params.dy_image = p.c * p.out_pixels(), params.x_image = p.c * p.in_pixels();
  params.dy_channel = nhwc ? 1 : p.out_pixels(), params.x_channel = nhwc ? 1 : p.in_pixels();
  params.pixel = nhwc ? p.c : 1;
  params.part_elements = p.c * p.taps();
  params.channels = i(p.c), params.vectors = shares.vectors;
  params.taps = i(p.taps()), params.filter_width = i(p.w.window);
  params.units = shares.units, params.units_of_block = shares.units_of_block, params.lanes = shares.lanes;
  params.strips = i(shares.strips), params.part_strips = shares.parts.units;
  params.strips_of_row = i(divide_up(p.w.out, columns));
  params.height = i(p.h.in), params.width = i(p.w.in);
  params.h = Walk::forward(p.h), params.w = Walk::forward(p.w);
  const Grid grid{static_cast<unsigned>(shares.channel_blocks), static_cast<unsigned>(shares.unit_blocks),
                  static_cast<unsigned>(shares.parts.count)};
  auto start = [&](auto kernel) {
    const int64_t shared = int64_t{threads} * shares.taps * shares.vector * static_cast<int64_t>(sizeof(float));
    launch(kernel, params, grid, threads, shared, stream);
  };
  constexpr int V = wide<T>, three = 3, five = 5, seven = 7;
  const int stride = i(p.w.stride);
  if (shares.vector == 1)
    start(depthwise_wgrad<T, 1, 1, 1>);
  else if (shares.taps == three)
    start(stride == 1 ? depthwise_wgrad<T, V, three, 1> : depthwise_wgrad<T, V, three, 2>);
  else if (shares.taps == five)
    start(stride == 1 ? depthwise_wgrad<T, V, five, 1> : depthwise_wgrad<T, V, five, 2>);
  else if (shares.taps == seven)
    start(depthwise_wgrad<T, V, seven, 1>);
  else
    start(depthwise_wgrad<T, V, 1, 1>);
  start_add<T>(p, args, shares.parts.count, /*padded=*/1, stream);
}

void run(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16>(p, args, stream);
  if (p.dtype == Dtype::bf16) return run_as<bf16>(p, args, stream);
  run_as<float>(p, args, stream);
}

}  // namespace

extern const GpuKernelBody dwconv2d_wgrad_depthwise_simt{refuses, workspace, run};

}  // namespace fastconv::FASTCONV_GPU
