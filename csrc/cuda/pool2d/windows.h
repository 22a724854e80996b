// What the pools share: where windows lie along an axis (torch's formulas, sliding and adaptive, and their inverse),
// and how the written elements are dealt out to threads.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/vectors.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int pool_threads = 128;
inline constexpr int64_t largest_axis = int64_t{1} << 29;  // sizes, windows and paddings: sums of them fit an int
inline constexpr int64_t most_u8_taps = 255;

// The part of one window that lies in the input: positions first, first + step, ... (count of them).
struct Span {
  int first, count;  // count 0: the window lies in the padding only
  int tap;           // number of the window's tap at `first`
  int extent;        // what this axis contributes to the divisor of an average
};

struct Windows {
  int in, out, window, stride, pad, pad_hi, step;
  bool adaptive, include_pad;

  static Windows of(const Problem& p, const Axis& a) {
    auto i = [](int64_t v) { return static_cast<int>(v); };
    const bool adaptive = p.op == Op::adaptivemax2d || p.op == Op::adaptiveavg2d;
    if (adaptive) return {i(a.in), i(a.out), 0, 1, 0, 0, 1, true, true};
    return {i(a.in),     i(a.out),      i(a.window), i(a.stride),        i(a.pad_lo),
            i(a.pad_hi), i(a.dilation), false,       p.count_include_pad};
  }

  FASTCONV_DEVICE Span at(int o) const {
    if (adaptive) {
      const int64_t size = in;
      const int first = static_cast<int>(o * size / out), end = static_cast<int>(((o + 1) * size + out - 1) / out);
      return {first, end - first, 0, end - first};
    }
    const int start = o * stride - pad;
    const int tap = start < 0 ? (-start + step - 1) / step : 0;
    const int first = start + tap * step;
    const int room = first >= in ? 0 : (in - 1 - first) / step + 1;
    const int inside = window - tap < room ? window - tap : room;
    const int count = inside > 0 ? inside : 0;
    const int end = start + window < in + pad_hi ? start + window : in + pad_hi;
    const int extent = include_pad ? end - start : count;
    return {first, count, tap, extent > 1 ? extent : 1};
  }

  // The output positions [first, last) whose window may hold input position i.
  struct Cover {
    int first, last;
  };
  FASTCONV_DEVICE Cover covering(int i) const {
    const int64_t at = i;
    if (adaptive) return {static_cast<int>(at * out / in), static_cast<int>(((at + 1) * out + in - 1) / in)};
    const int reach = step * (window - 1), shifted = i + pad;
    const int low = shifted <= reach ? 0 : (shifted - reach + stride - 1) / stride, high = shifted / stride + 1;
    return {low, high < out ? high : out};
  }

  // The tap of output position o that reads input position i, or -1 where none does.
  FASTCONV_DEVICE int tap(int o, int i) const {
    if (adaptive) {
      const Span span = at(o);
      return i >= span.first && i < span.first + span.count ? i - span.first : -1;
    }
    const int distance = i + pad - o * stride;
    return distance < 0 || distance % step || distance / step >= window ? -1 : distance / step;
  }
};

// Element offsets of an activation, or of a slice of a buffer's channels from `first` on.
struct PoolView {
  int64_t image, channel, pixel, first;

  static PoolView of(const Problem& p, int64_t channels, int64_t pixels, int64_t first_channel = 0) {
    const bool nhwc = p.layout == Layout::nhwc;
    return {channels * pixels, nhwc ? 1 : pixels, nhwc ? channels : 1, first_channel * (nhwc ? 1 : pixels)};
  }
  static PoolView input(const Problem& p) { return of(p, p.c, p.in_pixels()); }
  static PoolView output(const Problem& p) { return of(p, p.buffer_channels(), p.out_pixels(), p.epilogue.out_offset); }
  FASTCONV_DEVICE int64_t at(int64_t n, int64_t c, int64_t p) const {
    return n * image + c * channel + p * pixel + first;
  }
  // Whether n neighbouring channels may be moved at once.
  template <class T>
  bool takes(const void* base, int n) const {
    const bool aligned = (reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(first) * sizeof(T)) %
                             std::min<size_t>(vector_bytes, n * sizeof(T)) ==
                         0;
    return channel == 1 && aligned && pixel % n == 0 && image % n == 0;
  }
};

// Written elements in the order of memory: channels_last has an image a plane, NCHW an image and channel. A thread
// writes `vector` neighbouring channels of one pixel.
struct Deal {
  int planes_channels;         // channels that planes are numbered by: 1 in channels_last
  int pixels, width, vectors;  // of a plane; channel vectors of a pixel
  unsigned blocks_per_plane;
  int64_t planes;

  static Deal of(const Problem& p, int64_t height, int64_t width, int vector) {
    const bool nhwc = p.layout == Layout::nhwc;
    const int64_t pixels = height * width, vectors = nhwc ? p.c / vector : 1;
    return {nhwc ? 1 : static_cast<int>(p.c),
            static_cast<int>(pixels),
            static_cast<int>(width),
            static_cast<int>(vectors),
            static_cast<unsigned>(divide_up(pixels * vectors, pool_threads)),
            p.n * (nhwc ? 1 : p.c)};
  }
  int64_t blocks() const { return planes * blocks_per_plane; }
  Grid grid() const { return {static_cast<unsigned>(blocks())}; }

  struct Item {
    bool present;
    int n, c, row, column;  // c counts vectors
  };
  FASTCONV_DEVICE Item item() const {
    const unsigned block = this_block().x, plane = block / blocks_per_plane;
    const unsigned i = block % blocks_per_plane * pool_threads + static_cast<unsigned>(this_thread());
    const unsigned pixel = i / static_cast<unsigned>(vectors), wide = static_cast<unsigned>(width);
    return {pixel < static_cast<unsigned>(pixels), static_cast<int>(plane / static_cast<unsigned>(planes_channels)),
            static_cast<int>(plane % static_cast<unsigned>(planes_channels) + i % static_cast<unsigned>(vectors)),
            static_cast<int>(pixel / wide), static_cast<int>(pixel % wide)};
  }
};

inline std::string refuses_gpu_index(const Problem& p) {
  if (p.index != Index::u8) return {};
  if (p.op == Op::adaptivemax2d) return "Adaptive windows have no common tap numbers for u8.";
  if (p.taps() > most_u8_taps) return "R·S=" + std::to_string(p.taps()) + " taps do not fit a one-byte index.";
  return {};
}

inline std::string refuses_gpu_pool(const Problem& p) {
  if (p.epilogue.bias || p.epilogue.residual || p.epilogue.activation != Activation::none)
    return "A pool has no epilogue.";
  if (p.epilogue.out_channels && (p.pass != Pass::fprop || p.index != Index::none))
    return "It writes a channel slice of a larger buffer forwards only, and without an index beside it.";
  for (const Axis* a : {&p.h, &p.w})
    for (int64_t size : {a->in, a->out, a->reach(), a->stride, a->pad_lo, a->pad_hi})
      if (size > largest_axis)
        return "Its places are 32-bit numbers, but a size, window, stride or padding is " + std::to_string(size) + ".";
  const int64_t plane = (p.layout == Layout::nhwc ? p.c : 1) * std::max(p.in_pixels(), p.out_pixels());
  if (plane > most_blocks)
    return "It numbers the elements of a plane in 32 bits, but there are " + std::to_string(plane) + ".";
  const int64_t planes = p.n * (p.layout == Layout::nhwc ? 1 : p.c);
  if (const int64_t blocks = planes * divide_up(plane, pool_threads); blocks > most_blocks)
    return "It would start " + std::to_string(blocks) + " blocks.";
  return {};
}

// Calls f with a null pointer of the storage type.
template <class F>
void with_gpu_dtype(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f(static_cast<f16*>(nullptr));
  if (dtype == Dtype::bf16) return f(static_cast<bf16*>(nullptr));
  f(static_cast<float*>(nullptr));
}

}  // namespace fastconv::FASTCONV_GPU
