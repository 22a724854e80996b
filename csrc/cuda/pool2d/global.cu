// The average and the maximum of each whole map: adaptive pools to 1x1, and windows as large as an unpadded input.
// fprop, both layouts; the maximum with or without its place. Backwards an input pixel lies in one window, and the
// windowed kernels gather from it.
//
// Algorithm: channels_last: a block has up to 8 vectors of 16 bytes of channels of an image, and 32 threads for each,
// which take every 32nd pixel in turn, four loads in flight; NCHW: a warp has a plane, 16 bytes a lane. What the
// threads found is put together in shared memory, or in the warp: sums in an order that is always the same; of equal
// maxima the first, of several NaN the last, as in torch. Bytes: the input once. Limit on H200 (copy 4.3 TB/s):
// adaptiveavg2d_n256c2048h7w7_o1x1_bf16nhwc and the same maximum move 52 MB, 12 us, and have 26 MFLOP; 15 us predicted
// with 8,192 blocks of 256 threads, four to six of them a multiprocessor by registers, 50 to 75 % occupancy; not
// measured. It loses where images x channels are few and the map is large: one block then reads what several could.
#include <algorithm>
#include <cmath>

#include "cuda/common/shared.h"
#include "cuda/common/warp.h"
#include "windows.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int map_threads = 256, map_lanes = 32;
constexpr int map_vectors = map_threads / map_lanes;  // of a block
constexpr int in_flight = 4;                          // loads of a thread
constexpr int planes_of_block = pool_threads / lanes_of_warp;

template <class T>
struct Params {
  const T* from;
  T* to;
  void* index;                                    // of maxima: dense, [image][channel]
  int64_t image, to_image, to_channel, to_first;  // strides in elements; of the result's buffer, and its first element
  int64_t planes;                                 // NCHW: images x channels
  int channels, pixels;
  float divisor;
  bool bytes;  // an index has one byte, else eight
};

struct Sum {
  float value;

  FASTCONV_DEVICE static Sum nothing() { return {0}; }
  FASTCONV_DEVICE void take(float x, int) { value += x; }
  FASTCONV_DEVICE void merge(const Sum& other) { value += other.value; }
  FASTCONV_DEVICE Sum of_lane(int distance) const { return {shuffle_xor(value, distance)}; }
  template <class T>
  FASTCONV_DEVICE float finish(const Params<T>& p, int64_t) const {
    return value / p.divisor;
  }
};

struct Largest {
  float value;
  int pixel;

  // The first pixel is the place where all are infinitely small.
  FASTCONV_DEVICE static Largest nothing() { return {-INFINITY, 0}; }
  // In the order of pixels.
  FASTCONV_DEVICE void take(float x, int at) {
    if (x > value || x != x) value = x, pixel = at;
  }
  FASTCONV_DEVICE void merge(const Largest& other) {
    const bool nan = value != value, other_nan = other.value != other.value;
    const bool later = nan ? other_nan && other.pixel > pixel
                           : other_nan || other.value > value || (other.value == value && other.pixel < pixel);
    if (later) *this = other;
  }
  FASTCONV_DEVICE Largest of_lane(int distance) const {
    return {shuffle_xor(value, distance), shuffle_xor(pixel, distance)};
  }
  template <class T>
  FASTCONV_DEVICE float finish(const Params<T>& p, int64_t plane) const {
    if (p.index && p.bytes)
      store(static_cast<uint8_t*>(p.index) + plane, Pack<uint8_t, 1>{{static_cast<uint8_t>(pixel)}});
    else if (p.index)
      store(static_cast<int64_t*>(p.index) + plane, Pack<int64_t, 1>{{pixel}});
    return value;
  }
};

// channels_last: blocks of (channel vectors, images).
template <class T, class Found, int V>
FASTCONV_GLOBAL(map_threads, 2)
whole_maps(FASTCONV_PARAMS(Params<T>) p) {
  const int own = this_thread() % map_vectors, lane = this_thread() / map_vectors;
  const int channel = (static_cast<int>(this_block().x) * map_vectors + own) * V;
  const bool works = channel < p.channels;
  const T* const from = p.from + this_block().y * p.image + channel;
  Found found[V];
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) found[i] = Found::nothing();
  for (int first = works ? lane : p.pixels; first < p.pixels; first += in_flight * map_lanes) {
    Pack<T, V> pack[in_flight];
    FASTCONV_UNROLL
    for (int k = 0; k < in_flight; ++k) {
      const int pixel = first + k * map_lanes;
      pack[k] = pixel < p.pixels ? load<V>(from + static_cast<int64_t>(pixel) * p.channels) : Pack<T, V>{};
    }
    FASTCONV_UNROLL
    for (int k = 0; k < in_flight; ++k) {
      if (first + k * map_lanes >= p.pixels) continue;
      FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) found[i].take(widen(pack[k].v[i]), first + k * map_lanes);
    }
  }
  const Shared<Found> shared = Shared<Found>::at(0);  // [element of a vector][thread]
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) shared.put(i * map_threads + this_thread(), found[i]);
  barrier();
  if (lane > 0 || !works) return;
  Pack<T, V> result;
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) {
    for (int k = 1; k < map_lanes; ++k) found[i].merge(shared.get(i * map_threads + k * map_vectors + own));
    const int64_t plane = static_cast<int64_t>(this_block().y) * p.channels + channel + i;
    result.v[i] = narrow<T>(found[i].finish(p, plane));
  }
  store(p.to + p.to_first + this_block().y * p.to_image + channel * p.to_channel, result);
}

// NCHW: a warp for each plane.
template <class T, class Found, int V>
FASTCONV_GLOBAL(pool_threads, 4)
whole_planes(FASTCONV_PARAMS(Params<T>) p) {
  const int lane = this_thread() % lanes_of_warp;
  const int64_t plane = static_cast<int64_t>(this_block().x) * planes_of_block + this_thread() / lanes_of_warp;
  if (plane >= p.planes) return;  // the whole warp goes
  const T* const from = p.from + plane * p.pixels;
  Found found = Found::nothing();
  for (int pixel = lane * V; pixel < p.pixels; pixel += lanes_of_warp * V) {
    const Pack<T, V> pack = load<V>(from + pixel);
    FASTCONV_UNROLL
    for (int i = 0; i < V; ++i) found.take(widen(pack.v[i]), pixel + i);
  }
  FASTCONV_UNROLL
  for (int distance = lanes_of_warp / 2; distance > 0; distance /= 2) found.merge(found.of_lane(distance));
  if (lane > 0) return;
  const int64_t n = plane / p.channels, c = plane % p.channels;
  store(p.to + p.to_first + n * p.to_image + c * p.to_channel, Pack<T, 1>{{narrow<T>(found.finish(p, plane))}});
}

std::string refuses(const Problem& p) {
  const bool adaptive = p.op == Op::adaptiveavg2d || p.op == Op::adaptivemax2d;
  for (const Axis* a : {&p.h, &p.w}) {
    const bool whole = adaptive || (a->window == a->in && a->pad_lo == 0 && a->pad_hi == 0);
    if (a->out != 1 || !whole)
      return "It takes whole maps of " + std::to_string(p.h.in) + "x" + std::to_string(p.w.in) +
             ", but there are windows of " + std::to_string(a->window) + " over " + std::to_string(a->in) + ", " +
             std::to_string(a->out) + " of them.";
  }
  if (p.n > most_blocks_yz && p.layout == Layout::nhwc)
    return "It has a block layer for each image, but there are " + std::to_string(p.n) + ".";
  if (std::string sentence = refuses_gpu_index(p); !sentence.empty()) return sentence;
  return refuses_gpu_pool(p);
}

template <class Found>
void run(const Problem& p, const Args& args, Stream stream) {
  with_gpu_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int V = wide<T>;
    const PoolView to = PoolView::output(p);
    const double divisor = p.divisor_override ? static_cast<double>(p.divisor_override)
                                              : static_cast<double>(p.h.in) * static_cast<double>(p.w.in);
    const Params<T> params{static_cast<const T*>(args.x),
                           static_cast<T*>(args.out),
                           p.index == Index::none ? nullptr : args.index,
                           p.c * p.in_pixels(),
                           to.image,
                           to.channel,
                           to.first,
                           p.n * p.c,
                           static_cast<int>(p.c),
                           static_cast<int>(p.in_pixels()),
                           static_cast<float>(divisor),
                           p.index == Index::u8};
    const bool aligned = reinterpret_cast<uintptr_t>(args.x) % vector_bytes == 0;
    if (p.layout == Layout::nhwc) {
      auto start = [&](auto kernel, int vector) {
        const Grid grid{static_cast<unsigned>(divide_up(p.c, int64_t{vector} * map_vectors)),
                        static_cast<unsigned>(p.n)};
        launch(kernel, params, grid, map_threads, int64_t{map_threads} * vector * static_cast<int64_t>(sizeof(Found)),
               stream);
      };
      const bool vectors = aligned && p.c % V == 0 && to.template takes<T>(args.out, V);
      vectors ? start(whole_maps<T, Found, V>, V) : start(whole_maps<T, Found, 1>, 1);
    } else {
      const Grid grid{static_cast<unsigned>(divide_up(params.planes, planes_of_block))};
      const bool vectors = aligned && p.in_pixels() % V == 0;
      launch(vectors ? whole_planes<T, Found, V> : whole_planes<T, Found, 1>, params, grid, pool_threads, 0, stream);
    }
  });
}

}  // namespace

extern const GpuKernelBody maxpool2d_fprop_global_simt{refuses, no_gpu_workspace, run<Largest>};
extern const GpuKernelBody adaptivemax2d_fprop_global_simt{refuses, no_gpu_workspace, run<Largest>};
extern const GpuKernelBody adaptiveavg2d_fprop_global_simt{refuses, no_gpu_workspace, run<Sum>};
extern const GpuKernelBody avgpool2d_fprop_global_simt{refuses, no_gpu_workspace, run<Sum>};

}  // namespace fastconv::FASTCONV_GPU
