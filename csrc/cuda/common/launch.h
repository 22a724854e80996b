// Starting a kernel: on a stream of the device, or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "target.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int64_t most_blocks = 0x7fffffff;  // along x
inline constexpr int64_t most_blocks_yz = 65535;

// Of the current device: the blocks of a persistent grid. The emulated one is small, so that blocks take several tiles
// of small problems, and kernels that go in pieces through L2 take several of these.
#if defined(__CUDACC__)
inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}
inline constexpr int64_t kept_in_l2 = 32 << 20;  // bytes that the next kernel still finds there, of 40 MB on sm_80
#else
inline int multiprocessors() { return 3; }
inline constexpr int64_t kept_in_l2 = 8 << 10;
#endif

// How a kernel is started: blocks along x in clusters of so many.
struct Start {
  Grid grid;
  int threads;
  int64_t shared_bytes;
  int cluster = 1;
};

#if defined(__CUDACC__)

namespace detail {

inline void checked(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // said once
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error) + ".");
}

// A launch's configuration, with the attribute it points to.
struct Configuration {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};

  explicit Configuration(const Start& start) {
    config.gridDim = dim3(start.grid.x, start.grid.y, start.grid.z);
    config.blockDim = dim3(static_cast<unsigned>(start.threads));
    config.dynamicSmemBytes = static_cast<size_t>(start.shared_bytes);
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(start.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster, config.numAttrs = start.cluster > 1 ? 1 : 0;
  }
};

template <class Params>
void allow_shared(void (*kernel)(Params), int64_t bytes) {
  constexpr int64_t granted = 48 << 10;  // more must be asked for
  if (bytes > granted)
    checked(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)));
}

}  // namespace detail

// Clusters that the current device runs at once; 0 where it has none.
template <class Params>
int resident_clusters(void (*kernel)(Params), const Start& start) {
  detail::allow_shared(kernel, start.shared_bytes);
  detail::Configuration configuration(start);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &configuration.config) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

template <class Params>
void launch(void (*kernel)(Params), const Params& params, const Start& start, Stream stream) {
  detail::checked(cudaSetDevice(stream.device));  // the caller's runtime is not this one, and may know another
  detail::allow_shared(kernel, start.shared_bytes);
  detail::Configuration configuration(start);
  configuration.config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
  detail::checked(cudaLaunchKernelEx(&configuration.config, kernel, params));
}

#else

template <class Params>
int resident_clusters(void (*)(Params), const Start&) {
  return 2;
}

template <class Params>
void launch(void (*kernel)(Params), const Params& params, const Start& start, Stream stream) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } call{kernel, params};
  auto thread = [](void* context) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(c.params);
  };
  run_grid(start.grid, start.cluster, start.threads, start.shared_bytes, stream.handle, thread, &call);
}

#endif

template <class Params>
void launch(void (*kernel)(Params), const Params& params, Grid grid, int threads, int64_t shared_bytes, Stream stream) {
  launch(kernel, params, {grid, threads, shared_bytes}, stream);
}

}  // namespace fastconv::FASTCONV_GPU
