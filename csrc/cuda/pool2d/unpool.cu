// Max unpooling and its gradient, both layouts.
//
// Algorithm: forwards one kernel clears y, 16 bytes a thread, and a second one stores: a thread owns a whole plane,
// walks over its inputs in order and puts each where its index says, so that of equal indices the last wins in every
// run, where PyTorch's scatter is a race. Backwards each input asks for dy at its index: a thread has 16 bytes of
// neighbouring channels in channels_last, one element in NCHW. Bytes: forwards y twice, since a store of one element is
// half a sector at best, x and the index once; backwards dy and dx once and the index, which is most of it. Limit on
// H200 (copy 4.3 TB/s): unpool2d_n64c64h112w112_o224x224 in bf16 moves 1.3 GB, 310 us predicted at best; not measured.
// Forwards it loses by far where N·C is small, since a plane is one thread's work, and in NCHW, whose planes lie far
// apart.
#include "windows.h"

namespace fastconv::FASTCONV_GPU {

namespace {

template <class T>
struct ClearParams {
  T* to;
  int64_t elements;
};

template <class T, int V>
FASTCONV_GLOBAL(pool_threads, 1)
clear(FASTCONV_PARAMS(ClearParams<T>) p) {
  const int64_t i = (static_cast<int64_t>(this_block().x) * pool_threads + this_thread()) * V;
  if (i < p.elements) store(p.to + i, Pack<T, V>{});
}

template <class T>
struct Params {
  const T* from;
  T* to;
  const int64_t* index;  // dense like the unpooled input
  PoolView small, large;
  int64_t planes;                // N·C
  int channels, inputs, places;  // pixels of a small and of a large plane
  Deal deal;                     // backwards
};

template <class T>
FASTCONV_GLOBAL(pool_threads, 1)
unpool_scatter(FASTCONV_PARAMS(Params<T>) p) {
  const int64_t plane = static_cast<int64_t>(this_block().x) * pool_threads + this_thread();
  if (plane >= p.planes) return;
  const int64_t n = plane / p.channels, c = plane % p.channels;
  for (int i = 0; i < p.inputs; ++i) {
    const int64_t at = p.small.at(n, c, i), place = fetch(p.index + at);
    if (place >= 0 && place < p.places) store(p.to + p.large.at(n, c, place), Pack<T, 1>{{fetch(p.from + at)}});
  }
}

template <class T, int V>
FASTCONV_GLOBAL(pool_threads, 1)
unpool_gather(FASTCONV_PARAMS(Params<T>) p) {
  const Deal::Item item = p.deal.item();
  if (!item.present) return;
  const int64_t c = static_cast<int64_t>(item.c) * V;
  const int64_t at = p.small.at(item.n, c, static_cast<int64_t>(item.row) * p.deal.width + item.column);
  constexpr int width = V < wide<int64_t> ? V : wide<int64_t>;
  Pack<T, V> result{};
  FASTCONV_UNROLL
  for (int i = 0; i < V; i += width) {
    const Pack<int64_t, width> found = load<width>(p.index + at + i);
    FASTCONV_UNROLL
    for (int k = 0; k < width; ++k)
      if (found.v[k] >= 0 && found.v[k] < p.places)
        result.v[i + k] = fetch(p.from + p.large.at(item.n, c + i + k, found.v[k]));
  }
  store(p.to + at, result);
}

std::string refuses(const Problem& p) {
  if (p.index != Index::i64) return "It reads places as int64.";
  if (p.epilogue.out_channels)
    return "It writes dense results, not " + std::to_string(p.c) + " of a buffer's " +
           std::to_string(p.epilogue.out_channels) + " channels.";
  return refuses_gpu_pool(p);
}

template <class T>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool forward = p.pass == Pass::fprop;
  constexpr int V = wide<T>;
  auto i = [](int64_t v) { return static_cast<int>(v); };
  Params<T> params{static_cast<const T*>(forward ? args.x : args.y),
                   static_cast<T*>(args.out),
                   static_cast<const int64_t*>(args.index),
                   PoolView::of(p, p.c, p.in_pixels()),
                   PoolView::of(p, p.c, p.out_pixels()),
                   p.n * p.c,
                   i(p.c),
                   i(p.in_pixels()),
                   i(p.out_pixels()),
                   {}};
  auto blocks = [](int64_t threads) { return Grid{static_cast<unsigned>(divide_up(threads, pool_threads))}; };
  if (forward) {
    const ClearParams<T> all{params.to, p.y_elements()};
    if (all.elements % V == 0 && reinterpret_cast<uintptr_t>(all.to) % vector_bytes == 0)
      launch(clear<T, V>, all, blocks(all.elements / V), pool_threads, 0, stream);
    else
      launch(clear<T, 1>, all, blocks(all.elements), pool_threads, 0, stream);
    return launch(unpool_scatter<T>, params, blocks(params.planes), pool_threads, 0, stream);
  }
  auto start = [&](auto kernel, int vector) {
    params.deal = Deal::of(p, p.h.in, p.w.in, vector);
    launch(kernel, params, params.deal.grid(), pool_threads, 0, stream);
  };
  const bool vectors = p.c % V == 0 && params.small.template takes<T>(params.to, V) &&
                       params.small.template takes<int64_t>(params.index, V);
  vectors ? start(unpool_gather<T, V>, V) : start(unpool_gather<T, 1>, 1);
}

void run(const Problem& p, const Args& args, Stream stream) {
  with_gpu_dtype(p.dtype, [&](auto* t) { run_as<std::remove_pointer_t<decltype(t)>>(p, args, stream); });
}

}  // namespace

extern const GpuKernelBody unpool2d_fprop_direct_simt{refuses, no_gpu_workspace, run};
extern const GpuKernelBody unpool2d_dgrad_direct_simt{refuses, no_gpu_workspace, run};

}  // namespace fastconv::FASTCONV_GPU
