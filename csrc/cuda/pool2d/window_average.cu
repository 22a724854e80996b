// Average pools, sliding and adaptive, forwards and backwards; both layouts.
//
// Algorithm: a thread makes the average of one pixel's window, of 16 bytes of neighbouring channels in channels_last
// and of one channel in NCHW. Backwards it gathers: each input pixel adds what the windows over it owe it, in their
// order, so no sum depends on who came first. Bytes: the larger tensor once and the smaller once; overlapping windows
// are read again from L1 and L2. Limit on H200 (copy 4.3 TB/s): n256c192h35w35 r3s3 p1 in bf16 moves 241 MB, 56 us
// predicted; not measured yet. It loses for one window over a large map, which one thread walks alone, to
// global.cu.
#include <algorithm>

#include "windows.h"

namespace fastconv::FASTCONV_GPU {

namespace {

template <class T>
struct Params {
  const T* from;
  T* to;
  PoolView from_view, to_view;
  Windows h, w;
  Deal deal;
  float divisor;  // 0: the window's own
};

template <int V, class T>
FASTCONV_DEVICE void add(float (&sum)[V], const Pack<T, V>& pack, float divisor) {
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) sum[i] += divisor == 1 ? widen(pack.v[i]) : widen(pack.v[i]) / divisor;
}

template <int V, class T>
FASTCONV_DEVICE void put(const Params<T>& p, const Deal::Item& item, const float (&value)[V]) {
  Pack<T, V> result;
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) result.v[i] = narrow<T>(value[i]);
  const int64_t pixel = static_cast<int64_t>(item.row) * p.deal.width + item.column;
  store(p.to + p.to_view.at(item.n, static_cast<int64_t>(item.c) * V, pixel), result);
}

template <class T, int V>
FASTCONV_GLOBAL(pool_threads, 1)
fprop_average(FASTCONV_PARAMS(Params<T>) p) {
  const Deal::Item item = p.deal.item();
  if (!item.present) return;
  const Span rows = p.h.at(item.row), columns = p.w.at(item.column);
  float sum[V] = {};
  for (int r = 0; r < rows.count; ++r)
    for (int s = 0; s < columns.count; ++s) {
      const int64_t pixel = static_cast<int64_t>(rows.first + r * p.h.step) * p.w.in + columns.first + s * p.w.step;
      add(sum, load<V>(p.from + p.from_view.at(item.n, static_cast<int64_t>(item.c) * V, pixel)), 1.0f);
    }
  const float divisor =
      p.divisor != 0 ? p.divisor : static_cast<float>(rows.extent) * static_cast<float>(columns.extent);
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) sum[i] /= divisor;
  put(p, item, sum);
}

template <class T, int V>
FASTCONV_GLOBAL(pool_threads, 1)
dgrad_average(FASTCONV_PARAMS(Params<T>) p) {
  const Deal::Item item = p.deal.item();
  if (!item.present) return;
  const Windows::Cover rows = p.h.covering(item.row), columns = p.w.covering(item.column);
  float sum[V] = {};
  for (int r = rows.first; r < rows.last; ++r) {
    if (p.h.tap(r, item.row) < 0) continue;
    const float high = static_cast<float>(p.h.at(r).extent);
    for (int s = columns.first; s < columns.last; ++s) {
      if (p.w.tap(s, item.column) < 0) continue;
      const float divisor = p.divisor != 0 ? p.divisor : high * static_cast<float>(p.w.at(s).extent);
      const int64_t pixel = static_cast<int64_t>(r) * p.w.out + s;
      add(sum, load<V>(p.from + p.from_view.at(item.n, static_cast<int64_t>(item.c) * V, pixel)), divisor);
    }
  }
  put(p, item, sum);
}

std::string refuses(const Problem& p) { return refuses_gpu_pool(p); }

void run(const Problem& p, const Args& args, Stream stream) {
  with_gpu_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool forward = p.pass == Pass::fprop;
    Params<T> params{static_cast<const T*>(forward ? args.x : args.y),
                     static_cast<T*>(args.out),
                     forward ? PoolView::input(p) : PoolView::output(p),
                     forward ? PoolView::output(p) : PoolView::input(p),
                     Windows::of(p, p.h),
                     Windows::of(p, p.w),
                     {},
                     static_cast<float>(p.divisor_override)};
    auto start = [&](auto kernel, int vector) {
      params.deal = Deal::of(p, forward ? p.h.out : p.h.in, forward ? p.w.out : p.w.in, vector);
      launch(kernel, params, params.deal.grid(), pool_threads, 0, stream);
    };
    constexpr int V = wide<T>;
    const bool vectors = p.c % V == 0 && params.from_view.template takes<T>(params.from, V) &&
                         params.to_view.template takes<T>(params.to, V);
    if (forward)
      vectors ? start(fprop_average<T, V>, V) : start(fprop_average<T, 1>, 1);
    else
      vectors ? start(dgrad_average<T, V>, V) : start(dgrad_average<T, 1>, 1);
  });
}

}  // namespace

extern const GpuKernelBody avgpool2d_fprop_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody avgpool2d_dgrad_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody adaptiveavg2d_fprop_window_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody adaptiveavg2d_dgrad_window_simt{refuses, no_gpu_workspace, run};

}  // namespace fastconv::FASTCONV_GPU
