// Tensors as the copy engine of sm_90 (TMA) sees them, and the copies. A TensorMap is made on the host, from addresses
// and sizes, and lies among a kernel's parameters; making one touches neither the stream nor the device, so that a
// launch can be captured.
//
// On a device it is the driver's CUtensorMap, made by cuTensorMapEncode*, which the runtime looks up: nothing is
// linked. In the emulator it is a struct of the same fields. To check on hardware: that a box may be wider than its
// tensor; that TFLOAT32 maps round floats to the nearest (Triton relies on it for round_f32_to_tf32); that corners are
// in the order W, H (as CUTLASS passes them; the manual's text names them D, H, W).
#pragma once

#include <array>
#include <string>

#include "barriers.h"

#if defined(__CUDACC__)
#include <cuda.h>
#include <cuda_runtime.h>

#include <stdexcept>
#endif

namespace fastconv::FASTCONV_GPU {

// What a map is made from: dimension 0 is the innermost, strides are in bytes and leave out that of dimension 0.
template <int Rank>
struct TensorView {
  const void* base;
  std::array<int64_t, Rank> size;
  std::array<int64_t, Rank - 1> stride;
  int swizzle;  // bytes of a span: 0, 32, 64, 128
};
template <int Rank>
using Box = std::array<int, Rank>;

// Maps for loads round floats to tf32 on the way; those for stores leave them.
enum class Moves { in, out };

// im2col of [N][H][W][C]: pixels from the lower corner to the last pixel + upper corner, in steps; each of W, H.
struct Columns {
  std::array<int, 2> lower, upper, step;
  int channels, pixels;  // of a copy
};

#if defined(__CUDACC__)

struct TensorMap {
  CUtensorMap map;  // aligned as the copy engine wants it
};

namespace detail {

template <class T>
CUtensorMapDataType map_type(Moves moves) {
  if constexpr (std::is_same_v<T, f16>)
    return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  else if constexpr (std::is_same_v<T, bf16>)
    return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  else
    return moves == Moves::in ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

inline CUtensorMapSwizzle map_swizzle(int bytes) {
  constexpr int narrow = 32, middle = 64;
  if (bytes == 0) return CU_TENSOR_MAP_SWIZZLE_NONE;
  return bytes == narrow   ? CU_TENSOR_MAP_SWIZZLE_32B
         : bytes == middle ? CU_TENSOR_MAP_SWIZZLE_64B
                           : CU_TENSOR_MAP_SWIZZLE_128B;
}

// The driver's function of that name.
template <class Function>
Function* driver_function(const char* name) {
  constexpr unsigned version = 12000;  // the first that has it
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess)
    throw std::runtime_error(std::string("CUDA: the driver has no ") + name + ".");
  return reinterpret_cast<Function*>(found);
}

inline void made(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string("CUDA: ") + what + " failed with error " + std::to_string(result) + ".");
}

}  // namespace detail

template <class T, int Rank>
TensorMap tiled_map(const TensorView<Rank>& view, const Box<Rank>& box, Moves moves = Moves::in) {
  static auto* const encode = detail::driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  TensorMap out;
  cuuint64_t size[Rank], stride[Rank];
  cuuint32_t extent[Rank], step[Rank];
  for (int d = 0; d < Rank; ++d) {
    size[d] = static_cast<cuuint64_t>(view.size[d]), extent[d] = static_cast<cuuint32_t>(box[d]), step[d] = 1;
    if (d) stride[d - 1] = static_cast<cuuint64_t>(view.stride[d - 1]);
  }
  detail::made(encode(&out.map, detail::map_type<T>(moves), Rank, const_cast<void*>(view.base), size, stride, extent,
                      step, CU_TENSOR_MAP_INTERLEAVE_NONE, detail::map_swizzle(view.swizzle),
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
  return out;
}

template <class T>
TensorMap im2col_map(const TensorView<4>& view, const Columns& columns) {
  static auto* const encode = detail::driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  TensorMap out;
  cuuint64_t size[4], stride[3];
  const cuuint32_t step[4] = {1, static_cast<cuuint32_t>(columns.step[0]), static_cast<cuuint32_t>(columns.step[1]), 1};
  for (int d = 0; d < 4; ++d) size[d] = static_cast<cuuint64_t>(view.size[d]);
  for (int d = 0; d < 3; ++d) stride[d] = static_cast<cuuint64_t>(view.stride[d]);
  detail::made(
      encode(&out.map, detail::map_type<T>(Moves::in), 4, const_cast<void*>(view.base), size, stride,
             columns.lower.data(), columns.upper.data(), static_cast<cuuint32_t>(columns.channels),
             static_cast<cuuint32_t>(columns.pixels), step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             detail::map_swizzle(view.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeIm2col");
  // Drivers up to 13.1 make maps of tensors under 128 KiB wrongly; CUTLASS clears the same bit
  // (copy_traits_sm90_im2col.hpp).
  constexpr int last_wrong = 13010, small = 128 << 10, word = 1, bit = 21;
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver <= last_wrong && view.size[3] * view.stride[2] < small) out.map.opaque[word] &= ~(cuuint64_t{1} << bit);
  return out;
}

namespace detail {

FASTCONV_DEVICE uint64_t address(const TensorMap& map) { return reinterpret_cast<uint64_t>(&map); }

}  // namespace detail

// The box at these coordinates, to `to`, a multiple of 128 bytes (of eight spans, where swizzled); its bytes count for
// the barrier, those outside the tensor too, which are zeros.
FASTCONV_DEVICE void load_box(const TensorMap& map, void* to, Mbarrier barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(c0), "r"(c1)
      : "memory");
}
FASTCONV_DEVICE void load_box(const TensorMap& map, void* to, Mbarrier barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
// A column of pixels from (x, y) of image n on, each read (right, down) further on.
FASTCONV_DEVICE void load_column(const TensorMap& map, void* to, Mbarrier barrier, int channel, int x, int y, int n,
                                 int right, int down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(channel), "r"(x), "r"(y), "r"(n),
      "h"(static_cast<uint16_t>(right)), "h"(static_cast<uint16_t>(down))
      : "memory");
}
// The same for several blocks of the cluster, a bit of `ranks` each: to this place of each, counted by its barrier of
// this place.
FASTCONV_DEVICE void share_box(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(c0), "r"(c1), "h"(static_cast<uint16_t>(ranks))
      : "memory");
}
FASTCONV_DEVICE void share_box(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int c0, int c1,
                               int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(c0), "r"(c1), "r"(c2),
      "h"(static_cast<uint16_t>(ranks))
      : "memory");
}
FASTCONV_DEVICE void share_column(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int channel, int x,
                                  int y, int n, int right, int down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(shared_address(to)),
      "l"(detail::address(map)), "r"(shared_address(barrier.data)), "r"(channel), "r"(x), "r"(y), "r"(n),
      "h"(static_cast<uint16_t>(right)), "h"(static_cast<uint16_t>(down)), "h"(static_cast<uint16_t>(ranks))
      : "memory");
}
// What of the box lies in the tensor. The shared memory may be written again after wait_stores, by this thread.
FASTCONV_DEVICE void store_box(const TensorMap& map, const void* from, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(detail::address(map)),
      "r"(shared_address(from)), "r"(c0), "r"(c1)
      : "memory");
}
FASTCONV_DEVICE void store_box(const TensorMap& map, const void* from, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(detail::address(map)),
      "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
FASTCONV_DEVICE void commit_boxes() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int Left>
FASTCONV_DEVICE void wait_boxes() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Left) : "memory");
}

#else

template <class T, int Rank>
TensorMap tiled_map(const TensorView<Rank>& view, const Box<Rank>& box, Moves moves = Moves::in) {
  TensorMap map;
  map.base = static_cast<const char*>(view.base), map.element_bytes = sizeof(T), map.rank = Rank;
  map.round_tf32 = std::is_same_v<T, float> && moves == Moves::in, map.swizzle = view.swizzle;
  for (int d = 0; d < Rank; ++d) {
    const auto i = static_cast<size_t>(d);
    map.size[d] = view.size[i], map.box[d] = box[i], map.stride[d] = d ? view.stride[i - 1] : map.element_bytes;
  }
  if (const std::string why = map.refused(); !why.empty()) throw Failure("A tensor map cannot be made. " + why);
  return map;
}

template <class T>
TensorMap im2col_map(const TensorView<4>& view, const Columns& columns) {
  TensorMap map;
  map.base = static_cast<const char*>(view.base), map.element_bytes = sizeof(T), map.rank = 4, map.im2col = true;
  map.round_tf32 = std::is_same_v<T, float>, map.swizzle = view.swizzle;
  for (int d = 0; d < 4; ++d) {
    const auto i = static_cast<size_t>(d);
    map.size[d] = view.size[i], map.stride[d] = d ? view.stride[i - 1] : map.element_bytes;
  }
  for (size_t i = 0; i < 2; ++i)
    map.lower[i + 1] = columns.lower[i], map.upper[i + 1] = columns.upper[i], map.step[i + 1] = columns.step[i];
  map.box[0] = columns.channels, map.pixels = columns.pixels;
  if (const std::string why = map.refused(); !why.empty()) throw Failure("A tensor map cannot be made. " + why);
  return map;
}

inline void load_box(const TensorMap& map, void* to, Mbarrier barrier, int c0, int c1) {
  const int at[] = {c0, c1};
  load_tensor(map, to, barrier.data, at, nullptr);
}
inline void load_box(const TensorMap& map, void* to, Mbarrier barrier, int c0, int c1, int c2) {
  const int at[] = {c0, c1, c2};
  load_tensor(map, to, barrier.data, at, nullptr);
}
inline void load_column(const TensorMap& map, void* to, Mbarrier barrier, int channel, int x, int y, int n, int right,
                        int down) {
  const int at[] = {channel, x, y, n}, offsets[] = {right, down};
  load_tensor(map, to, barrier.data, at, offsets);
}
inline void share_box(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int c0, int c1) {
  const int at[] = {c0, c1};
  load_tensor(map, to, barrier.data, at, nullptr, ranks);
}
inline void share_box(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int c0, int c1, int c2) {
  const int at[] = {c0, c1, c2};
  load_tensor(map, to, barrier.data, at, nullptr, ranks);
}
inline void share_column(const TensorMap& map, void* to, Mbarrier barrier, uint32_t ranks, int channel, int x, int y,
                         int n, int right, int down) {
  const int at[] = {channel, x, y, n}, offsets[] = {right, down};
  load_tensor(map, to, barrier.data, at, offsets, ranks);
}
inline void store_box(const TensorMap& map, const void* from, int c0, int c1) {
  const int at[] = {c0, c1};
  store_tensor(map, from, at);
}
inline void store_box(const TensorMap& map, const void* from, int c0, int c1, int c2) {
  const int at[] = {c0, c1, c2};
  store_tensor(map, from, at);
}
inline void commit_boxes() { commit_stores(); }
template <int Left>
void wait_boxes() {
  wait_for_stores(Left);
}

#endif

// Where a byte of a box lies whose lines are `span` bytes long and swizzled; the box starts at a multiple of 1024.
FASTCONV_DEVICE int swizzled_at(int byte, int span) {
  constexpr int chunk = 16, line_bits = 3;
  return byte ^ (byte >> line_bits & (span / chunk - 1) * chunk);
}

}  // namespace fastconv::FASTCONV_GPU
