// What a kernel's source is compiled for. By nvcc, for a device: namespace `device`. By a host compiler, for the
// emulator: namespace `emulated`. This folder holds the only code that differs between the two, and the only PTX; every
// operation here has both bodies, and kernels are written in these operations alone.
#pragma once

#include <cstdint>

#include "core/integers.h"
#include "core/types.h"
#include "cuda/kernel.h"

// Where wgmma exists. Kernels of target sm90a have no body elsewhere; no other device may run them.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTCONV_SM90A 1
#else
#define FASTCONV_SM90A 0
#endif

#if defined(__CUDACC__)
#define FASTCONV_GPU device
#define FASTCONV_DEVICE __device__ __forceinline__
#define FASTCONV_BOTH __host__ __device__ __forceinline__
#define FASTCONV_GLOBAL(threads, blocks_per_sm) __global__ void __launch_bounds__(threads, blocks_per_sm)
#define FASTCONV_UNROLL _Pragma("unroll")
#define FASTCONV_PRAGMA(text) _Pragma(#text)
#define FASTCONV_UNROLL_BY(times) FASTCONV_PRAGMA(unroll times)  // a constant expression, in steps of the loop
#define FASTCONV_PARAMS(P) const __grid_constant__ P  // read where they lie, so that an index into them costs no copy
#else
#include "cuda/emulator/block.h"
#define FASTCONV_GPU emulated
#define FASTCONV_DEVICE inline
#define FASTCONV_BOTH inline
#define FASTCONV_GLOBAL(threads, blocks_per_sm) void
#define FASTCONV_UNROLL
#define FASTCONV_UNROLL_BY(times)
#define FASTCONV_PARAMS(P) const P
#endif

namespace fastconv::FASTCONV_GPU {

inline constexpr int vector_bytes = 16;  // the widest access of one thread
inline constexpr int lanes_of_warp = 32;

#if defined(__CUDACC__)

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};
FASTCONV_DEVICE int this_thread() { return static_cast<int>(threadIdx.x); }
FASTCONV_DEVICE Grid this_block() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
FASTCONV_DEVICE void barrier() { __syncthreads(); }

#else

// Grid, this_thread and this_block are the emulator's own.
inline void barrier(Site site = Site::here()) { meet_block(site); }

#endif

}  // namespace fastconv::FASTCONV_GPU
