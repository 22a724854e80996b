// fprop and dgrad as one implicit matrix product, for every stride, dilation, group count, padding and either layout.
//
// Algorithm: a block makes 64 x 64 (or 128 x 128) sums of written pixels x channels of one group, depth = taps x source
// channels in steps of 64 bytes, three steps in flight by cp.async; the padding is the zero fill of the copies. f16,
// bf16 and tf32 are multiplied by mma.sync (target sm80), f32 by multiply-adds (target simt). Strided gradients are
// walked by phases (walk.h): no zeros are multiplied, no sum is shared between blocks. Sums pass through shared memory
// to the epilogue, which stores 16 bytes of neighbouring channels a thread. Bytes: the written tensor once; the source
// once for each 64 or 128 written channels, its taps from L2. Limit on H200 (790 TFLOP/s of bf16 by wgmma, of which
// mma.sync reaches some 60 %; copy 4.3 TB/s): n256c256h14w14_k256r3s3_p1_bf16nhwc has 59 GFLOP and moves 53 MB, 125 us
// predicted; not measured yet. It loses: filters that do not lie as [tap][channel] cost a packing pass; sources off
// alignment, in NCHW or with channels that are no multiple of 16 bytes are loaded an element at a time; few channels
// pay for their padding (C=3: 8 of bf16); depthwise problems use a column of each tile; dense layers on Hopper lose to
// wgmma.
#include "igemm.h"

#include "cuda/common/refuses.h"
#include "pack.h"

namespace fastconv::FASTCONV_GPU {

std::string refuses_product(const Problem& p) {
  const bool forward = p.pass == Pass::fprop;
  const int64_t rows = p.n * (forward ? p.out_pixels() : p.in_pixels());
  if (rows > most_blocks - LargeTile::rows)
    return "It numbers written pixels in 32 bits, but there are " + std::to_string(rows) + ".";
  const int64_t depth = p.taps() * round_up(forward ? p.channels_per_group() : p.filters_per_group(), wide<f16>);
  if (depth > most_blocks / 2)
    return "It numbers taps x channels in 32 bits, but there are " + std::to_string(depth) + ".";
  if (p.groups > most_blocks_yz)
    return "It has a block layer for each group, but there are " + std::to_string(p.groups) + ".";
  if (std::string sentence = refuses_places(p); !sentence.empty()) return sentence;
  for (const Axis* a : {&p.h, &p.w}) {
    if (!forward && a->stride > most_phases)
      return "It takes the gradient by at most " + std::to_string(most_phases) + " phases an axis, but the stride is " +
             std::to_string(a->stride) + ".";
  }
  return {};
}

namespace {

std::string refuses_matrix(const Problem& p) {
  const std::string sentence = refuses_for_matrix(p.dtype);
  return sentence.empty() ? refuses_product(p) : sentence;
}

std::string refuses_plain(const Problem& p) {
  const std::string sentence = refuses_for_plain(p.dtype);
  return sentence.empty() ? refuses_product(p) : sentence;
}

int64_t workspace(const Problem& p) {
  return dtype_bytes(p.dtype) == 2 ? PackedFilter<f16>::elements(p) * 2 : PackedFilter<float>::elements(p) * 4;
}

template <class T, class Tile, class Sums>
void start(IgemmParams<T>& params, int64_t groups, Stream stream) {
  int64_t most_rows = 0;
  for (int i = 0; i < params.h.count; ++i)
    for (int j = 0; j < params.w.count; ++j)
      most_rows = std::max(most_rows, int64_t{params.h.phase[i].count} * params.w.phase[j].count);
  params.column_tiles = static_cast<int>(divide_up(params.columns, Tile::columns));
  const Grid grid{static_cast<unsigned>(divide_up(params.images * most_rows, Tile::rows) * params.column_tiles),
                  static_cast<unsigned>(params.h.count * params.w.count), static_cast<unsigned>(groups)};
  const bool aligned = params.channel == 1 && params.channels == params.padded && params.pixel % wide<T> == 0 &&
                       params.image % wide<T> == 0 && reinterpret_cast<uintptr_t>(params.source) % vector_bytes == 0;
  if (aligned)
    launch(igemm<T, Tile, Sums, true>, params, grid, Tile::threads, Tile::shared_bytes, stream);
  else
    launch(igemm<T, Tile, Sums, false>, params, grid, Tile::threads, Tile::shared_bytes, stream);
}

template <class T>
IgemmParams<T> params_of(const Problem& p, const Args& args, Stream stream) {
  const bool forward = p.pass == Pass::fprop, nhwc = p.layout == Layout::nhwc;
  const PackedFilter<T> filter = PackedFilter<T>::of(p, args, stream);
  const int64_t channels = forward ? p.c : p.k, pixels = forward ? p.in_pixels() : p.out_pixels();
  auto i = [](int64_t v) { return static_cast<int>(v); };
  IgemmParams<T> params{};
  params.source = static_cast<const T*>(forward ? args.x : args.y);
  params.filter = filter.data;
  params.image = channels * pixels, params.pixel = nhwc ? channels : 1, params.channel = nhwc ? 1 : pixels;
  params.filter_row = filter.row, params.filter_group = filter.group;
  params.images = i(p.n), params.height = i(forward ? p.h.in : p.h.out), params.width = i(forward ? p.w.in : p.w.out);
  params.channels = filter.channels, params.padded = filter.padded, params.columns = filter.columns;
  params.filter_width = i(p.w.window), params.written_width = i(forward ? p.w.out : p.w.in);
  params.h = Walks::of(p, p.h), params.w = Walks::of(p, p.w);
  params.tail = Tail<T>::of(p, args);
  params.tail_takes_vectors = filter.columns % wide<T> == 0 && params.tail.takes(wide<T>);
  return params;
}

// Small tiles until large ones would keep most of a chip busy.
constexpr int64_t large_columns = 96, large_rows = 2048;

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return start_matrix(params_of<f16>(p, args, stream), p.groups, stream);
  if (p.dtype == Dtype::bf16) return start_matrix(params_of<bf16>(p, args, stream), p.groups, stream);
  start_matrix(params_of<float>(p, args, stream), p.groups, stream);
}

void run_plain(const Problem& p, const Args& args, Stream stream) {
  start_plain(params_of<float>(p, args, stream), p.groups, stream);
}

}  // namespace

template <class T>
void start_matrix(IgemmParams<T> params, int64_t groups, Stream stream) {
  if (params.columns >= large_columns && params.images * params.tail.pixels >= large_rows)
    start<T, LargeTile, MatrixSums<T, LargeTile>>(params, groups, stream);
  else
    start<T, SmallTile, MatrixSums<T, SmallTile>>(params, groups, stream);
}
template void start_matrix(IgemmParams<f16>, int64_t, Stream);
template void start_matrix(IgemmParams<bf16>, int64_t, Stream);
template void start_matrix(IgemmParams<float>, int64_t, Stream);

void start_plain(IgemmParams<float> params, int64_t groups, Stream stream) {
  start<float, SmallTile, PlainSums<SmallTile>>(params, groups, stream);
}

extern const GpuKernelBody conv2d_fprop_igemm_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody conv2d_dgrad_igemm_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody conv2d_fprop_igemm_simt{refuses_plain, workspace, run_plain};
extern const GpuKernelBody conv2d_dgrad_igemm_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
