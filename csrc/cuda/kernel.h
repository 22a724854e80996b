// What a GPU kernel is: one row of csrc/cuda/kernels.inc and one descriptor in its file; of one problem, or of two.
// Like a CPU kernel it sees raw pointers and sizes; in place of a parallel-for it gets a stream. Its source is compiled
// twice: by nvcc for devices, and as host C++ for the emulator (emulator/block.h).
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

// Two convolutions in one kernel: the second reads what the first makes, which is never stored.
struct PairArgs {
  Args first, second;  // x, w and bias; w, bias, residual, out and workspace
};

struct GpuPairBody {
  std::string (*refuses)(const Problem& first, const Problem& second);
  int64_t (*workspace)(const Problem& first, const Problem& second);
  void (*run)(const Problem& first, const Problem& second, const PairArgs&, Stream);
};

struct GpuPair {
  std::string name;  // "dwconv2d/fprop_gemm1x1_sm80"
  Pass pass;
  GpuPairBody body;
};

// What no GPU kernel reads.
inline std::string refuses_operands(const Problem& p) {
  if (p.dtype == Dtype::f64 || p.dtype == Dtype::other)
    return "It computes in float, but the problem is in " + std::string(name_of(p.dtype)) + ".";
  if (p.packed) return "It reads filters where they lie, not packed ones.";
  if (p.in_channels)
    return "It reads dense inputs, not " + std::to_string(p.c) + " of a buffer's " + std::to_string(p.in_channels) +
           " channels.";
  return {};
}

inline std::string refusal(const GpuKernelBody& body, const Problem& p) {
  const std::string sentence = refuses_operands(p);
  return sentence.empty() ? body.refuses(p) : sentence;
}

inline std::string refusal(const GpuPairBody& body, const Problem& first, const Problem& second) {
  for (const Problem* p : {&first, &second}) {
    if (std::string sentence = refuses_operands(*p); !sentence.empty()) return sentence;
    if (!p->is_conv() || p->pass != Pass::fprop) return "It takes two convolutions forwards, not " + p->text() + ".";
  }
  if (first.epilogue.residual || first.epilogue.out_channels)
    return "Nothing is added to the first result and it is stored nowhere, but the problem is " + first.text() + ".";
  if (first.n != second.n || first.k != second.c || first.h.out != second.h.in || first.w.out != second.w.in ||
      first.dtype != second.dtype || first.layout != second.layout)
    return "The second convolution, " + second.text() + ", does not read what the first makes, " + first.text() + ".";
  return body.refuses(first, second);
}

inline int64_t no_gpu_workspace(const Problem&) { return 0; }

}  // namespace fastconv
