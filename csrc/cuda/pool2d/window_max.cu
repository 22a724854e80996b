// Max pools, sliding and adaptive, forwards and backwards; both layouts, with or without the places of the maxima.
//
// Algorithm: a thread takes the maximum of one pixel's window, of 16 bytes of neighbouring channels in channels_last
// and of one channel in NCHW; of equal values the first, of several NaN the last, as in torch. Backwards it gathers:
// each input pixel asks the windows over it whether their place is its own, and adds in their order. Bytes: the larger
// tensor once, the smaller once, and one byte (or eight) of place for each maximum. Limit on H200 (copy 4.3 TB/s):
// n256c64h112w112 r3s3 u2 p1 in bf16 with bytes moves 565 MB, 131 us predicted; not measured yet. It loses for one
// window over a large map, which one thread walks alone, to global.cu.
#include <algorithm>
#include <cmath>

#include "windows.h"

namespace fastconv::FASTCONV_GPU {

namespace {

template <class T>
struct Params {
  const T* from;
  T* to;
  void* index;  // written forwards, read backwards; dense like the pool's output
  PoolView from_view, to_view, index_view;
  Windows h, w;
  Deal deal;
  int number_row;  // a place is row * number_row + column, of the window's taps or of the input
};

// I: the places' type, or void.
template <class I>
inline constexpr bool is_taps = std::is_same_v<I, uint8_t>;

template <class I, int V>
inline constexpr int index_pack = std::min<int>(V, vector_bytes / static_cast<int>(sizeof(I)));

template <class T, class I, int V>
FASTCONV_GLOBAL(pool_threads, 1)
fprop_max(FASTCONV_PARAMS(Params<T>) p) {
  const Deal::Item item = p.deal.item();
  if (!item.present) return;
  const Span rows = p.h.at(item.row), columns = p.w.at(item.column);
  const int64_t channel = static_cast<int64_t>(item.c) * V;
  auto place = [&](int r, int s) {
    return is_taps<I> ? static_cast<int64_t>(rows.tap + r) * p.number_row + columns.tap + s
                      : static_cast<int64_t>(rows.first + r * p.h.step) * p.number_row + columns.first + s * p.w.step;
  };
  float best[V];
  int64_t number[V];
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) {
    best[i] = -INFINITY;
    number[i] = rows.count > 0 && columns.count > 0 ? place(0, 0) : 0;
  }
  for (int r = 0; r < rows.count; ++r)
    for (int s = 0; s < columns.count; ++s) {
      const int64_t pixel = static_cast<int64_t>(rows.first + r * p.h.step) * p.w.in + columns.first + s * p.w.step;
      const Pack<T, V> x = load<V>(p.from + p.from_view.at(item.n, channel, pixel));
      FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) {
        const float value = widen(x.v[i]);
        if (value > best[i] || value != value) {
          best[i] = value;
          if constexpr (!std::is_void_v<I>) number[i] = place(r, s);
        }
      }
    }
  const int64_t pixel = static_cast<int64_t>(item.row) * p.w.out + item.column;
  Pack<T, V> result;
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) result.v[i] = narrow<T>(best[i]);
  store(p.to + p.to_view.at(item.n, channel, pixel), result);
  if constexpr (!std::is_void_v<I>) {
    constexpr int width = index_pack<I, V>;
    I* to = static_cast<I*>(p.index) + p.index_view.at(item.n, channel, pixel);
    FASTCONV_UNROLL
    for (int i = 0; i < V; i += width) {
      Pack<I, width> places;
      FASTCONV_UNROLL
      for (int k = 0; k < width; ++k) places.v[k] = static_cast<I>(number[i + k]);
      store(to + i, places);
    }
  }
}

template <class T, class I, int V>
FASTCONV_GLOBAL(pool_threads, 1)
dgrad_max(FASTCONV_PARAMS(Params<T>) p) {
  const Deal::Item item = p.deal.item();
  if (!item.present) return;
  const Windows::Cover rows = p.h.covering(item.row), columns = p.w.covering(item.column);
  const int64_t channel = static_cast<int64_t>(item.c) * V;
  constexpr int width = index_pack<I, V>;
  float sum[V] = {};
  for (int r = rows.first; r < rows.last; ++r) {
    const int tap_row = p.h.tap(r, item.row);
    if (tap_row < 0) continue;
    for (int s = columns.first; s < columns.last; ++s) {
      const int tap_column = p.w.tap(s, item.column);
      if (tap_column < 0) continue;
      const int64_t own = is_taps<I> ? static_cast<int64_t>(tap_row) * p.number_row + tap_column
                                     : static_cast<int64_t>(item.row) * p.number_row + item.column;
      const int64_t pixel = static_cast<int64_t>(r) * p.w.out + s;
      const Pack<T, V> dy = load<V>(p.from + p.from_view.at(item.n, channel, pixel));
      const I* places = static_cast<const I*>(p.index) + p.index_view.at(item.n, channel, pixel);
      FASTCONV_UNROLL
      for (int i = 0; i < V; i += width) {
        const Pack<I, width> found = load<width>(places + i);
        FASTCONV_UNROLL
        for (int k = 0; k < width; ++k)
          if (static_cast<int64_t>(found.v[k]) == own) sum[i + k] += widen(dy.v[i + k]);
      }
    }
  }
  Pack<T, V> result;
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) result.v[i] = narrow<T>(sum[i]);
  store(p.to + p.to_view.at(item.n, channel, static_cast<int64_t>(item.row) * p.w.in + item.column), result);
}

std::string refuses(const Problem& p) {
  if (std::string sentence = refuses_gpu_index(p); !sentence.empty()) return sentence;
  if (p.pass == Pass::dgrad && p.index == Index::none) return "The gradient of a max pool needs an index.";
  return refuses_gpu_pool(p);
}

template <class T, class I>
void run_with(const Problem& p, const Args& args, Stream stream) {
  const bool forward = p.pass == Pass::fprop;
  const PoolView dense = PoolView::of(p, p.k, p.out_pixels());
  Params<T> params{static_cast<const T*>(forward ? args.x : args.y),
                   static_cast<T*>(args.out),
                   args.index,
                   forward ? PoolView::input(p) : dense,
                   forward ? PoolView::output(p) : PoolView::input(p),
                   dense,
                   Windows::of(p, p.h),
                   Windows::of(p, p.w),
                   {},
                   static_cast<int>(is_taps<I> ? p.w.window : p.w.in)};
  auto start = [&](auto kernel, int vector) {
    params.deal = Deal::of(p, forward ? p.h.out : p.h.in, forward ? p.w.out : p.w.in, vector);
    launch(kernel, params, params.deal.grid(), pool_threads, 0, stream);
  };
  constexpr int V = wide<T>;
  bool vectors = p.c % V == 0 && params.from_view.template takes<T>(params.from, V) &&
                 params.to_view.template takes<T>(params.to, V);
  if constexpr (!std::is_void_v<I>) vectors = vectors && dense.template takes<I>(params.index, V);
  if (forward) return vectors ? start(fprop_max<T, I, V>, V) : start(fprop_max<T, I, 1>, 1);
  if constexpr (!std::is_void_v<I>) vectors ? start(dgrad_max<T, I, V>, V) : start(dgrad_max<T, I, 1>, 1);
}

void run(const Problem& p, const Args& args, Stream stream) {
  with_gpu_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (p.index == Index::u8) return run_with<T, uint8_t>(p, args, stream);
    if (p.index == Index::i64) return run_with<T, int64_t>(p, args, stream);
    run_with<T, void>(p, args, stream);
  });
}

}  // namespace

extern const GpuKernelBody maxpool2d_fprop_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody maxpool2d_dgrad_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody adaptivemax2d_fprop_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody adaptivemax2d_dgrad_window_simt{refuses, no_gpu_workspace, run};

}  // namespace fastconv::FASTCONV_GPU
