// fprop as an explicit matrix of columns and a product: every stride, dilation, group count and padding, either layout.
//
// Algorithm: a kernel writes a row for each output pixel into the workspace, [group][tap][channel] without gaps and
// zeros up to 16 bytes, padding included; the product of igemm.cu then takes it for the input of a 1x1 convolution.
// Images go through so many at a time that their columns stay in L2, 32 MiB; the workspace is that, or the columns of
// one image where they are more (up to 1 GiB, else refused), and the filters. f16, bf16 and tf32 are multiplied by
// mma.sync (target sm80), f32 by multiply-adds (target simt). Bytes: the source and the result once from memory; R·S
// times the source written to L2, and read from there for each 64 or 128 filters. Limit on H200 (790 TFLOP/s of bf16,
// of which mma.sync reaches some 60 %; L2 some 5.5 TB/s): n256c256h14w14_k256r3s3_p1_bf16nhwc writes 231 MB of columns,
// 42 us, then has 59 GFLOP, 125 us, and 16 starts of some 2 us: 200 us predicted; not measured; all threads of the
// columns' kernel are resident. It loses to the implicit product, 125 us there, wherever that loads 16 bytes at a time.
// It wins where that loads elements (NCHW, odd channels, sources off alignment) for several tiles of filters: here each
// is loaded once for each tap; and where few channels are padded tap by tap (C=5 of bf16: 45 deep for 3x3, not 72).
#include "cuda/common/refuses.h"
#include "igemm.h"
#include "pack.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int threads = 256;
constexpr int64_t most_of_image = int64_t{1} << 30;  // bytes

template <class T>
struct ColumnsParams {
  const T* source;  // the first image of these
  T* columns;
  int64_t image, pixel, channel;  // strides of the source, in elements
  int height, width;              // of the source
  int channels, taps;             // of a group; R·S
  int filter_width;               // S
  int group_chunks, chunks;       // of 16 bytes: of one group's part of a row, and of a row
  int across, tiles;              // chunks that a block takes beside each other, and blocks for a row
  Walk h, w;
};

// A block writes 16 bytes of `across` chunks for every pixel of an output row. Wide: a chunk is one aligned access of
// neighbouring channels. Else its elements are loaded one by one.
template <class T, bool Wide>
FASTCONV_GLOBAL(threads, 4)
columns(FASTCONV_PARAMS(ColumnsParams<T>) p) {
  constexpr int elements = wide<T>, loads = Wide ? 1 : elements;
  const int tile = static_cast<int>(this_block().x) % p.tiles, line = static_cast<int>(this_block().x) / p.tiles;
  const int row = line % p.h.count, n = line / p.h.count;
  const int chunk = tile * p.across + this_thread() % p.across;
  if (chunk >= p.chunks) return;

  const int group = chunk / p.group_chunks, first = chunk % p.group_chunks * elements;
  const T* from[loads];  // the source's row at the element's channel; null: a zero
  int left[loads];
  FASTCONV_UNROLL
  for (int i = 0; i < loads; ++i) {
    const int tap = (first + i) / p.channels, c = (first + i) % p.channels;
    const int y = row * p.h.stride + p.h.first + tap / p.filter_width * p.h.step;
    left[i] = p.w.first + tap % p.filter_width * p.w.step;
    from[i] = nullptr;
    if (tap < p.taps && static_cast<unsigned>(y) < static_cast<unsigned>(p.height))
      from[i] = p.source + n * p.image + static_cast<int64_t>(y) * p.width * p.pixel +
                (static_cast<int64_t>(group) * p.channels + c) * p.channel;
  }
  T* const to = p.columns + (static_cast<int64_t>(line) * p.w.count * p.chunks + chunk) * elements;
  for (int q = this_thread() / p.across; q < p.w.count; q += threads / p.across) {
    Pack<T, elements> pack{};
    FASTCONV_UNROLL
    for (int i = 0; i < loads; ++i) {
      const int x = q * p.w.stride + left[i];
      if (!from[i] || static_cast<unsigned>(x) >= static_cast<unsigned>(p.width)) continue;
      if constexpr (Wide)
        pack = load<elements>(from[i] + x * p.pixel);
      else
        pack.v[i] = fetch(from[i] + x * p.pixel);
    }
    store(to + static_cast<int64_t>(q) * p.chunks * elements, pack);
  }
}

// How a problem's images are cut.
template <class T>
struct Cut {
  int64_t row, image_bytes, images;  // elements of a row; bytes of an image's columns; images at a time

  static Cut of(const Problem& p) {
    const int64_t row = p.groups * PackedFilter<T>::row_elements(p, PaddedTo::row);
    const int64_t image_bytes = p.out_pixels() * row * static_cast<int64_t>(sizeof(T));
    const int64_t most = std::clamp<int64_t>(kept_in_l2 / image_bytes, 1, p.n);
    return {row, image_bytes, divide_up(p.n, divide_up(p.n, most))};
  }
  int64_t bytes() const { return round_up(images * image_bytes, 256); }
};

template <class T>
std::string refuses_size(const Problem& p) {
  if (std::string sentence = refuses_product(p); !sentence.empty()) return sentence;
  const int64_t row_bytes =
      p.groups * PackedFilter<T>::row_elements(p, PaddedTo::row) * static_cast<int64_t>(sizeof(T));
  if (row_bytes > most_of_image / p.out_pixels())
    return "It writes the columns of an image at once, up to " + std::to_string(most_of_image) +
           " bytes, but here are " + std::to_string(p.out_pixels()) + " pixels with " + std::to_string(row_bytes) +
           " each.";
  return {};
}

std::string refuses_matrix(const Problem& p) {
  if (std::string sentence = refuses_for_matrix(p.dtype); !sentence.empty()) return sentence;
  return dtype_bytes(p.dtype) == 2 ? refuses_size<f16>(p) : refuses_size<float>(p);
}

std::string refuses_plain(const Problem& p) {
  const std::string sentence = refuses_for_plain(p.dtype);
  return sentence.empty() ? refuses_size<float>(p) : sentence;
}

template <class T>
int64_t workspace_of(const Problem& p) {
  return Cut<T>::of(p).bytes() + PackedFilter<T>::elements(p, PaddedTo::row) * static_cast<int64_t>(sizeof(T));
}

int64_t workspace(const Problem& p) {
  return dtype_bytes(p.dtype) == 2 ? workspace_of<f16>(p) : workspace_of<float>(p);
}

// The product's parameters, for columns in place of a source.
template <class T>
IgemmParams<T> product_of(const Problem& p, const PackedFilter<T>& filter, const T* columns, int64_t row) {
  auto i = [](int64_t v) { return static_cast<int>(v); };
  auto pixel_by_pixel = [](const Axis& a) {
    Walks walks;
    walks.phase[0] = Walk::forward({a.out, 1, 1, 0, 0, 1, a.out});
    return walks;
  };
  IgemmParams<T> params{};
  params.source = columns, params.filter = filter.data;
  params.image = row * p.out_pixels(), params.pixel = row, params.channel = 1;
  params.filter_row = filter.row, params.filter_group = filter.group;
  params.height = i(p.h.out), params.width = params.written_width = i(p.w.out);
  params.channels = params.padded = i(row / p.groups), params.columns = filter.columns;
  params.filter_width = 1;
  params.h = pixel_by_pixel(p.h), params.w = pixel_by_pixel(p.w);
  return params;
}

template <class T, class Product>
void run_as(const Problem& p, const Args& args, Stream stream, Product&& product) {
  const bool nhwc = p.layout == Layout::nhwc;
  const Cut<T> cut = Cut<T>::of(p);
  T* const matrix = static_cast<T*>(args.workspace);
  Args behind = args;
  behind.workspace = static_cast<char*>(args.workspace) + cut.bytes();
  const PackedFilter<T> filter = PackedFilter<T>::of(p, behind, stream, PaddedTo::row);
  auto i = [](int64_t v) { return static_cast<int>(v); };

  ColumnsParams<T> params{};
  params.columns = matrix;
  params.image = p.c * p.in_pixels(), params.pixel = nhwc ? p.c : 1, params.channel = nhwc ? 1 : p.in_pixels();
  params.height = i(p.h.in), params.width = i(p.w.in);
  params.channels = i(p.channels_per_group()), params.taps = i(p.taps()), params.filter_width = i(p.w.window);
  params.chunks = i(cut.row / wide<T>), params.group_chunks = i(params.chunks / p.groups);
  params.across = 1;
  while (params.across < threads && params.across < params.chunks) params.across *= 2;
  params.tiles = i(divide_up(params.chunks, params.across));
  params.h = Walk::forward(p.h), params.w = Walk::forward(p.w);
  const bool aligned =
      nhwc && params.channels % wide<T> == 0 && reinterpret_cast<uintptr_t>(args.x) % vector_bytes == 0;

  const Tail<T> tail = Tail<T>::of(p, args);
  IgemmParams<T> product_params = product_of<T>(p, filter, matrix, cut.row);
  product_params.tail_takes_vectors = filter.columns % wide<T> == 0 && tail.takes(wide<T>);
  for (int64_t first = 0; first < p.n; first += cut.images) {
    const int64_t images = std::min(cut.images, p.n - first);
    params.source = static_cast<const T*>(args.x) + first * params.image;
    const Grid grid{static_cast<unsigned>(images * p.h.out * params.tiles)};
    if (aligned)
      launch(columns<T, true>, params, grid, threads, 0, stream);
    else
      launch(columns<T, false>, params, grid, threads, 0, stream);
    product_params.images = i(images), product_params.tail = tail.from(first);
    product(product_params, p.groups, stream);
  }
}

void run_matrix(const Problem& p, const Args& args, Stream stream) {
  if (p.dtype == Dtype::f16) return run_as<f16>(p, args, stream, start_matrix<f16>);
  if (p.dtype == Dtype::bf16) return run_as<bf16>(p, args, stream, start_matrix<bf16>);
  run_as<float>(p, args, stream, start_matrix<float>);
}

void run_plain(const Problem& p, const Args& args, Stream stream) { run_as<float>(p, args, stream, start_plain); }

}  // namespace

extern const GpuKernelBody conv2d_fprop_im2col_sm80{refuses_matrix, workspace, run_matrix};
extern const GpuKernelBody conv2d_fprop_im2col_simt{refuses_plain, workspace, run_plain};

}  // namespace fastconv::FASTCONV_GPU
