// What a GPU kernel is: one row of csrc/cuda/kernels.inc and one descriptor in its file. Like a CPU kernel it sees raw
// pointers and sizes; in place of a parallel-for it gets a stream. Its source is compiled twice: by nvcc for devices,
// and as host C++ for the emulator (emulator/block.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/kernel.h"

namespace fastconv {

// On a device the cudaStream_t that work is queued on, and the device's number; in the emulator the seed of the order
// of blocks and threads.
struct Stream {
  uint64_t handle = 0;
  int device = 0;
};

struct GpuKernelBody {
  std::string (*refuses)(const Problem&);  // empty: accepted; else one sentence with values
  int64_t (*workspace)(const Problem&);    // bytes, 256-byte aligned
  void (*run)(const Problem&, const Args&, Stream);
};

struct GpuKernel {
  std::string name;  // "conv2d/fprop_igemm_sm80"
  Op op;
  Pass pass;
  GpuKernelBody body;
};

inline std::string refusal(const GpuKernelBody& body, const Problem& p) {
  if (p.dtype == Dtype::f64 || p.dtype == Dtype::other)
    return "It computes in float, but the problem is in " + std::string(name_of(p.dtype)) + ".";
  if (p.packed) return "It reads filters where they lie, not packed ones.";
  if (p.in_channels)
    return "It reads dense inputs, not " + std::to_string(p.c) + " of a buffer's " + std::to_string(p.in_channels) +
           " channels.";
  return body.refuses(p);
}

inline int64_t no_gpu_workspace(const Problem&) { return 0; }

}  // namespace fastconv
