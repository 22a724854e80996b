// What a kernel is: one row of a kernels.inc table and one descriptor in its file. A kernel sees raw pointers, sizes
// and a parallel-for. It never sees torch, never chooses another kernel and never allocates.
#pragma once

#include <cstdint>
#include <string>

#include "cost.h"
#include "parallel.h"
#include "problem.h"

namespace fastconv {

// The numbers of a local response norm: y = x / (k + alpha / size * sum of squares)^beta. The defaults are torch's.
struct Response {
  double alpha = 1e-4, beta = 0.75, k = 1;
};

// The operands of one call. Activations are dense in the problem's layout; the filter has strides of its own, so that
// KCRS and KRSC (channels_last) weights are both read in place. What is written overlaps nothing that is read.
struct Args {
  const void* x = nullptr;         // input: fprop, wgrad; max pool dgrad without an index
  const void* w = nullptr;         // filter: fprop, dgrad
  const void* packed = nullptr;    // the same in the kernel's own form, where the problem says so; w is then null
  const void* y = nullptr;         // output gradient: dgrad, wgrad
  void* out = nullptr;             // y, dx or dw; base of the whole buffer when the epilogue writes a channel slice
  const void* bias = nullptr;      // one value a written channel, in the problem's dtype
  const void* residual = nullptr;  // dense, in the problem's dtype and layout
  const void* scale = nullptr;     // map2d: [N][C], in the problem's dtype
  // copy2d reads x by strides, ordered N C H W; attention reads x (the queries), keys, values and mask by strides, each
  // ordered image, head, token, channel (of the mask the key), in elements. Channels lie together.
  const void *keys = nullptr, *values = nullptr, *mask = nullptr;
  int64_t x_stride[4] = {}, keys_stride[4] = {}, values_stride[4] = {}, mask_stride[4] = {};
  double factor = 1;      // attention: of the scores
  void* index = nullptr;  // max pools: written by fprop, read by dgrad and unpool2d
  // Batch norms, one value a channel in the arithmetic type, as their w (weight) and bias are too; null: 1 and 0.
  const void* mean = nullptr;      // running, or the batch's for its gradients
  const void* variance = nullptr;  // likewise, biased
  void* stats = nullptr;           // 2·C written: mean and variance by a training fprop, dweight and dbias by dgrad
  double eps = 0;
  Response response;           // local response norms
  const void* next = nullptr;  // constants that calls after this one read, worth fetching where there is time
  int64_t next_bytes = 0;
  void* workspace = nullptr;  // as many bytes as workspace() asked for, 64-byte aligned
  int64_t w_stride[4] = {};   // of w (of dw in wgrad), in elements, ordered K C R S
};

// A filter that a kernel packed apart from the call. Two problems of one kernel whose forms are equal take each
// other's.
struct PackedForm {
  int64_t bytes = 0;
  int64_t variant = 0;  // what the kernel derives it from, beside channels, window, groups and dtype
  bool operator==(const PackedForm&) const = default;
};

struct KernelBody {
  std::string (*refuses)(const Problem&);             // empty: accepted; else one sentence with values
  int64_t (*workspace)(const Problem&, int threads);  // bytes
  void (*run)(const Problem&, const Args&, const Parallel&);
  // Null where the order of the list alone decides; kernels that have one are compared with each other.
  Cost (*cost)(const Problem&, int threads) = nullptr;
  // Null where the kernel reads the filter as it is. pack() reads Args::w and w_stride and writes `out`, 64-byte
  // aligned.
  PackedForm (*packed)(const Problem&) = nullptr;
  void (*pack)(const Problem&, const Args&, void* out, const Parallel&) = nullptr;
  bool reads_slices = false;  // of an input buffer's channels
};

struct Kernel {
  std::string name;  // "conv2d/fprop_igemm_avx2"
  Op op;
  Pass pass;
  Isa isa;
  KernelBody body;
};

// Why a kernel does not run a problem; empty: it does.
inline std::string refusal(const KernelBody& body, const Problem& p) {
  if (p.packed && !body.pack) return "It reads the filter as it is and packs none.";
  if (p.in_channels && !body.reads_slices) return "It reads dense inputs, not a slice of a buffer's channels.";
  return body.refuses(p);
}

inline int64_t no_workspace(const Problem&, int) { return 0; }
inline std::string accepts_all(const Problem&) { return {}; }

}  // namespace fastconv
