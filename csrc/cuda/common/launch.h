// Starting a kernel: on a stream of the device, or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "target.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int64_t most_blocks = 0x7fffffff;  // along x
inline constexpr int64_t most_blocks_yz = 65535;

// Of the current device: the blocks of a persistent grid. The emulated one is small, so that blocks take several tiles
// of small problems.
#if defined(__CUDACC__)
inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}
#else
inline int multiprocessors() { return 3; }
#endif

#if defined(__CUDACC__)

template <class Params>
void launch(void (*kernel)(Params), const Params& params, Grid grid, int threads, int64_t shared_bytes, Stream stream) {
  constexpr int64_t granted = 48 << 10;  // more must be asked for
  auto checked = [](cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // said once
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error) + ".");
  };
  checked(cudaSetDevice(stream.device));  // the caller's runtime is not this one, and may know another as current
  if (shared_bytes > granted)
    checked(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<dim3(grid.x, grid.y, grid.z), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes),
           reinterpret_cast<cudaStream_t>(stream.handle)>>>(params);
  checked(cudaGetLastError());
}

#else

template <class Params>
void launch(void (*kernel)(Params), const Params& params, Grid grid, int threads, int64_t shared_bytes, Stream stream) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } call{kernel, params};
  auto thread = [](void* context) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(c.params);
  };
  run_grid(grid, threads, shared_bytes, stream.handle, thread, &call);
}

#endif

}  // namespace fastconv::FASTCONV_GPU
