// fprop and dgrad without packing, workspace or threads where they would not pay: grouped convolutions with few
// channels a group, and problems so small that everything else is overhead.
//
// Each result is a sum over its own taps, with no value shared: planes are vectorised along the pixels of a row,
// channels_last, where a few channels do not fill a register, only while the problem is tiny, one sum at a time.
// Bytes moved: x once a filter of the group, from cache. Loses to the matrix products from about 8 channels a group on,
// and to the depthwise kernels where every group is one channel.
#include "cpu/epilogue.h"
#include "simd/load_between.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t most_channels = 8;     // summed per group, beyond which packing pays
constexpr double tiny_products = 4096;   // of a whole problem: less than a matrix product needs to start
constexpr double task_products = 65536;  // less is not worth a thread

// Strides of one pass: sources are summed over, results are written.
template <class T>
struct Direct {
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int registers = 4;  // of one row, kept through the sum

  const Problem& p;
  const bool dgrad, nhwc;
  const T *source, *w;
  int64_t sources, results;  // channels of a group
  int64_t all, plane;        // source channels, pixels of a source plane
  int64_t w_result, w_source, w_group, w_r, w_s;
  Tail<T> tail;

  Direct(const Problem& problem, const Args& args)
      : p(problem),
        dgrad(p.pass == Pass::dgrad),
        nhwc(p.layout == Layout::nhwc),
        source(static_cast<const T*>(dgrad ? args.y : args.x)),
        w(static_cast<const T*>(args.w)),
        sources(dgrad ? p.filters_per_group() : p.channels_per_group()),
        results(dgrad ? p.channels_per_group() : p.filters_per_group()),
        all(sources * p.groups),
        plane(dgrad ? p.out_pixels() : p.in_pixels()),
        w_result(args.w_stride[dgrad ? 1 : 0]),
        w_source(args.w_stride[dgrad ? 0 : 1]),
        w_group(p.filters_per_group() * args.w_stride[0]),
        w_r(args.w_stride[2]),
        w_s(args.w_stride[3]),
        tail(problem, args) {}

  Walk walk(const Axis& a, int64_t phase) const { return dgrad ? dgrad_walk(a, phase) : fprop_walk(a); }

  // Row i of result channel k of image n, for one phase of the width.
  void row(int64_t n, int64_t k, const Walk& h, int64_t i, const Walk& v) const {
    const int64_t g = k / results;
    const T* filter = w + g * w_group + k % results * w_result;
    const int64_t base = (h.start + i * h.step) * (dgrad ? p.w.in : p.w.out);
    const bool vector = !nhwc && v.stride == 1 && v.step == 1;
    const T* from = source + (nhwc ? n * plane * all + g * sources : (n * all + g * sources) * plane);
    for (int64_t j = 0; j < v.count;) {
      if (vector) {
        const int64_t length = std::min<int64_t>(v.count - j, registers * V::lanes);
        pixels(from, filter, h, i, v, j, length, n, k, base);
        j += length;
        continue;
      }
      tail.put(n, k, base + v.start + j * v.step, one(from, filter, h, i, v, j));
      ++j;
    }
  }

  A one(const T* from, const T* filter, const Walk& h, int64_t i, const Walk& v, int64_t j) const {
    const int64_t pixel_step = nhwc ? all : 1, channel_step = nhwc ? 1 : plane;
    A sum = 0;
    for (int64_t tr = 0; tr < h.taps; ++tr) {
      const int64_t y = h.source(i, tr);
      if (y < 0 || y >= h.size) continue;
      for (int64_t ts = 0; ts < v.taps; ++ts) {
        const int64_t z = v.source(j, ts);
        if (z < 0 || z >= v.size) continue;
        const T* x = from + (y * v.size + z) * pixel_step;
        const T* tap = filter + h.tap(tr) * w_r + v.tap(ts) * w_s;
        for (int64_t c = 0; c < sources; ++c) sum += widen(x[c * channel_step]) * widen(tap[c * w_source]);
      }
    }
    return sum;
  }

  void pixels(const T* from, const T* filter, const Walk& h, int64_t i, const Walk& v, int64_t j, int64_t length,
              int64_t n, int64_t k, int64_t base) const {
    V sums[registers];
    for (V& sum : sums) sum = V::zero();
    for (int64_t tr = 0; tr < h.taps; ++tr) {
      const int64_t y = h.source(i, tr);
      if (y < 0 || y >= h.size) continue;
      for (int64_t ts = 0; ts < v.taps; ++ts) {
        int64_t first, last;
        v.inside(ts, j, j + length, first, last);
        const T* x = from + y * v.size + v.source(j, ts);
        const T* tap = filter + h.tap(tr) * w_r + v.tap(ts) * w_s;
        const bool whole = last - first == registers * V::lanes;
        for (int64_t c = 0; c < sources; ++c, x += plane, tap += w_source) {
          const V weight = V::broadcast(widen(*tap));
          for (int q = 0; q < registers; ++q) {
            const int64_t at = j + q * V::lanes;
            if (whole) {
              sums[q] = fma(load(x + q * V::lanes), weight, sums[q]);
              continue;
            }
            const int64_t begin = std::clamp<int64_t>(first - at, 0, V::lanes);
            const int64_t end = std::clamp<int64_t>(last - at, begin, V::lanes);
            if (begin < end)
              sums[q] =
                  fma(load_between(x + q * V::lanes, static_cast<int>(begin), static_cast<int>(end)), weight, sums[q]);
          }
        }
      }
    }
    for (int q = 0; q < registers && q * V::lanes < length; ++q)
      tail.put_pixels(n, k, base + j + q * V::lanes, sums[q],
                      static_cast<int>(std::min<int64_t>(V::lanes, length - q * V::lanes)));
  }

  // Every result channel i % channels of image i / channels.
  void channel(int64_t i) const {
    const int64_t channels = results * p.groups;
    const int64_t phases_h = dgrad ? std::min(p.h.stride, p.h.in) : 1,
                  phases_w = dgrad ? std::min(p.w.stride, p.w.in) : 1;
    for (int64_t a = 0; a < phases_h; ++a) {
      const Walk h = walk(p.h, a);
      for (int64_t b = 0; b < phases_w; ++b) {
        const Walk v = walk(p.w, b);
        for (int64_t y = 0; y < h.count; ++y) row(i / channels, i % channels, h, y, v);
      }
    }
  }

  void run(const Parallel& parallel) const {
    const int64_t tasks = p.n * results * p.groups;
    if (p.flops() < 2 * task_products) {
      for (int64_t i = 0; i < tasks; ++i) channel(i);
      return;
    }
    parallel(tasks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) channel(i);
    });
  }
};

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.flops() <= 2 * tiny_products) return {};
  const int64_t summed = p.pass == Pass::dgrad ? p.filters_per_group() : p.channels_per_group();
  if (summed > most_channels)
    return "A group sums over " + std::to_string(summed) + " channels: beyond " + std::to_string(most_channels) +
           " packing pays.";
  if (p.layout == Layout::nhwc) return "The layout is nhwc, where a few channels do not fill a register.";
  if (p.pass == Pass::fprop && p.w.stride != 1)
    return "The stride along W is " + std::to_string(p.w.stride) + ", and rows are read a register at a time.";
  if (p.pass == Pass::dgrad && p.w.stride != 1)
    return "The stride along W is " + std::to_string(p.w.stride) + ", and rows are written a register at a time.";
  if (p.groups == 1) return "There is one group: every filter would read all of x again.";
  return {};
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Direct<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace

extern const KernelBody conv2d_fprop_direct{refuses, no_workspace, run};
extern const KernelBody conv2d_dgrad_direct{refuses, no_workspace, run};

}  // namespace fastconv::FASTCONV_ISA
