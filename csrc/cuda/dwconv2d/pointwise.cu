// A depthwise fprop and the 1x1 convolution of its result, for inference: every filter, stride, dilation and padding of
// the former, several filters a channel, both layouts; bias and activation of both, residual and slice of the latter.
//
// Algorithm: a block makes 128 x 64 (or 64 x 128) sums of pixels x filters of the 1x1, depth = channels in steps of 128
// bytes. In each step its threads make the depthwise results of its pixels for these channels in registers, two
// neighbours of a row and four channels each, loading a source pixel of a row once where the filter is 3 wide (else
// once a tap), a line at a time; start from the bias, apply the activation, round to the storage type and put them into
// shared memory, where the product takes them for its left operand. They are never stored. The 1x1 filters come there
// by cp.async, the depthwise ones in float; two buffers of each, so that one barrier a step is enough and some warps
// multiply while others make the next step. f16, bf16 and tf32 are multiplied by mma.sync (target sm80), f32 by
// multiply-adds (target simt). Bytes: the source and the result once; the 2 N·P·Q·C between them not at all. Limit on
// H200 (copy 4.3 TB/s): n256c384h14w14_k384r3s3_p1_g384_bf16nhwc_bias_relu6 and 64 filters of 1x1 move 45 MB, 10.5 us,
// where one after the other moves 122 MB, 28 us. Rows of 14 pixels take 16; each of 22 M depthwise results costs some
// 16 instructions, 12 us at 132 x 128 a cycle, and the 2.9 GFLOP of the product 6 us of the tensor cores, in part
// beside them: 18 us predicted, two blocks of 256 threads a multiprocessor, 25 % occupancy; not measured. It loses
// where K is many times 128 (64 for f32) and the filter is large, since each block of columns makes the depthwise
// results anew; to wgmma where C and K are many hundreds; and in NCHW, off alignment and with channels that are no
// multiple of four, where elements are loaded one by one.
#include <limits>

#include "cuda/common/refuses.h"
#include "pointwise_step.h"

namespace fastconv::FASTCONV_GPU {

namespace {

// S: taps of a row, next to each other, with a stride of U between outputs; 0: any, one by one. Wide: four channels are
// one aligned access; else elements are loaded by themselves, and S is 0.
template <class T, class Tile, class Sums, int S, int U, bool Wide>
FASTCONV_GLOBAL(Tile::threads, 2)
depthwise_pointwise(FASTCONV_PARAMS(PointwiseParams<T>) p) {
  const int first_run = static_cast<int>(this_block().x) / p.column_tiles * Tile::runs;
  const int first_column = static_cast<int>(this_block().x) % p.column_tiles * Tile::columns;
  const int steps = (p.depth + Tile::template channels<T> - 1) / Tile::template channels<T>;

  Sums sums;
  find_places<Tile>(p, first_run);
  bring_taps<Tile>(p, 0);
  bring_filter<Tile>(p, 0, first_column);
  commit_group();
  barrier();  // places and taps are there
  for (int step = 0; step < steps; ++step) {
    FASTCONV_UNROLL_BY(1)
    for (int part = 0; part < Tile::runs / Depthwise<Tile, T>::lines; ++part) {
      const Depthwise<Tile, T> own(p, step, part);
      if constexpr (Wide)
        own.template make<S, U>();
      else
        own.make_by_elements();
    }
    if (step + 1 < steps) bring_taps<Tile>(p, step + 1);
    wait_groups<0>();
    barrier();  // both operands and the next taps are there, and the last step's have been read
    if (step + 1 < steps) bring_filter<Tile>(p, step + 1, first_column);
    commit_group();
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) sums.multiply(Tile::left(step, half), Tile::right(step, half));
  }

  store_tile<Tile>(p.tail, p.tail_takes_vectors, sums, Shared<float>::at(0), p.columns - first_column, first_column,
                   [&](int row) {
                     const int run = first_run + row / Tile::run, line = run / p.across;
                     const int q = run % p.across * Tile::run + row % Tile::run;
                     return Written{run < p.runs && q < p.w.count, line / p.h.count,
                                    static_cast<int64_t>(line % p.h.count) * p.w.count + q};
                   });
}

using Narrow = StepTile<128, 64>;
using Broad = StepTile<64, 128>;

constexpr int64_t most_shared = 99 << 10;  // two blocks fit on an SM of sm_80 to sm_100

template <class T>
std::string refuses_sizes(const Problem& first, const Problem& second) {
  if (const int64_t bytes = Narrow::shared_bytes_of<T>(first.taps()); bytes > most_shared)
    return "It keeps the taps of " + std::to_string(Narrow::channels<T>) +
           " channels twice in shared memory, which R·S=" + std::to_string(first.taps()) + " bring to " +
           std::to_string(bytes) + " of " + std::to_string(most_shared) + " bytes.";
  const int64_t runs = second.n * second.h.out * divide_up(second.w.out, Broad::run);
  if (const int64_t blocks = divide_up(runs, Broad::runs) * divide_up(second.k, Narrow::columns);
      runs > most_blocks / 2 || blocks > most_blocks)
    return "It numbers pairs of pixels, and blocks, in 32 bits, but there are " + std::to_string(runs) + " and " +
           std::to_string(blocks) + ".";
  if (second.c > most_blocks / 2)
    return "It numbers channels in 32 bits, but there are " + std::to_string(second.c) + ".";
  return refuses_places(first);
}

template <class T>
std::string refuses_pair(const Problem& first, const Problem& second) {
  if (!first.is_depthwise())
    return "It takes one channel a group, but C=" + std::to_string(first.c) + " are in " +
           std::to_string(first.groups) + " groups.";
  if (!second.is_pointwise() || second.groups > 1 || second.h.stride > 1 || second.w.stride > 1)
    return "The second convolution is 1x1 of stride 1 without padding and groups, but this one is " +
           std::to_string(second.h.window) + "x" + std::to_string(second.w.window) + " of stride " +
           std::to_string(second.h.stride) + "x" + std::to_string(second.w.stride) + " in " +
           std::to_string(second.groups) + " groups and pads " + std::to_string(second.h.pad_lo) + "x" +
           std::to_string(second.w.pad_lo) + ".";
  return refuses_sizes<T>(first, second);
}

std::string refuses_matrix(const Problem& first, const Problem& second) {
  if (std::string sentence = refuses_for_matrix(first.dtype); !sentence.empty()) return sentence;
  return dtype_bytes(first.dtype) == 2 ? refuses_pair<f16>(first, second) : refuses_pair<float>(first, second);
}

std::string refuses_plain(const Problem& first, const Problem& second) {
  const std::string sentence = refuses_for_plain(first.dtype);
  return sentence.empty() ? refuses_pair<float>(first, second) : sentence;
}

int64_t workspace(const Problem&, const Problem& second) {
  return dtype_bytes(second.dtype) == 2 ? PackedFilter<f16>::elements(second) * 2
                                        : PackedFilter<float>::elements(second) * 4;
}

template <class T>
PointwiseParams<T> params_of(const Problem& first, const Problem& second, const PairArgs& args, Stream stream) {
  const bool nhwc = first.layout == Layout::nhwc;
  const PackedFilter<T> filter = PackedFilter<T>::of(second, args.second, stream);
  auto i = [](int64_t v) { return static_cast<int>(v); };
  PointwiseParams<T> params{};
  params.source = static_cast<const T*>(args.first.x), params.taps_from = static_cast<const T*>(args.first.w);
  params.bias = first.epilogue.bias ? static_cast<const T*>(args.first.bias) : nullptr;
  params.filter = filter.data, params.filter_row = filter.row;
  params.image = first.c * first.in_pixels(), params.pixel = nhwc ? first.c : 1;
  params.channel = nhwc ? 1 : first.in_pixels();
  params.taps_channel = args.first.w_stride[0], params.taps_row = args.first.w_stride[2],
  params.taps_column = args.first.w_stride[3];
  params.height = i(first.h.in), params.width = i(first.w.in);
  params.depth = i(second.c), params.padded = filter.padded, params.columns = filter.columns;
  params.multiplier = i(first.filters_per_group());
  params.taps = i(first.taps()), params.filter_width = i(first.w.window);
  params.h = Walk::forward(first.h), params.w = Walk::forward(first.w);
  params.hidden = HiddenActivation::of(first.epilogue);
  params.tail = Tail<T>::of(second, args.second);
  params.tail_takes_vectors = filter.columns % wide<T> == 0 && params.tail.takes(wide<T>);
  return params;
}

template <class T, class Tile, class Sums>
void start(const Problem& p, PointwiseParams<T>& params, Stream stream) {
  params.across = static_cast<int>(divide_up(p.w.out, Tile::run));
  params.runs = static_cast<int>(p.n * p.h.out * params.across);
  params.column_tiles = static_cast<int>(divide_up(params.columns, Tile::columns));
  const Grid grid{static_cast<unsigned>(divide_up(params.runs, Tile::runs) * params.column_tiles)};
  auto with = [&](auto kernel) {
    launch(kernel, params, grid, Tile::threads, Tile::template shared_bytes_of<T>(p.taps()), stream);
  };
  constexpr int V = Depthwise<Tile, T>::V;
  auto aligned = [](const T* t) { return reinterpret_cast<uintptr_t>(t) % (V * sizeof(T)) == 0; };
  const bool vectors = params.channel == 1 && params.multiplier == 1 && params.depth % V == 0 &&
                       aligned(params.source) && aligned(params.bias);
  constexpr int three = 3;
  const bool slides = params.filter_width == three && params.w.step == 1;
  if (!vectors) return with(depthwise_pointwise<T, Tile, Sums, 0, 1, false>);
  if (slides && params.w.stride == 1) return with(depthwise_pointwise<T, Tile, Sums, three, 1, true>);
  if (slides && params.w.stride == 2) return with(depthwise_pointwise<T, Tile, Sums, three, 2, true>);
  with(depthwise_pointwise<T, Tile, Sums, 0, 1, true>);
}

void run_matrix(const Problem& first, const Problem& second, const PairArgs& args, Stream stream) {
  auto with = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    PointwiseParams<T> params = params_of<T>(first, second, args, stream);
    if (params.columns > Narrow::columns)
      start<T, Broad, MatrixSums<T, Broad>>(first, params, stream);
    else
      start<T, Narrow, MatrixSums<T, Narrow>>(first, params, stream);
  };
  if (first.dtype == Dtype::f16) return with(static_cast<f16*>(nullptr));
  if (first.dtype == Dtype::bf16) return with(static_cast<bf16*>(nullptr));
  with(static_cast<float*>(nullptr));
}

void run_plain(const Problem& first, const Problem& second, const PairArgs& args, Stream stream) {
  PointwiseParams<float> params = params_of<float>(first, second, args, stream);
  start<float, Narrow, PlainSums<Narrow>>(first, params, stream);
}

}  // namespace

extern const GpuPairBody dwconv2d_fprop_gemm1x1_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuPairBody dwconv2d_fprop_gemm1x1_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
