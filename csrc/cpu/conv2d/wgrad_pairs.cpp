// The weight gradient of bfloat16, two pixels at a time: wgrad.cpp's blocks and order of sums with a tile that
// multiplies pairs (pair_outer_tile.h), for processors with AVX512_BF16. What wgrad.cpp packs wide is put together in
// pairs, a block of pixels at a time; a tile then does twice the products of a float tile. The instruction takes
// subnormal numbers for zero.
//
// Measured (Zen 4, 2 threads, 2026-11-22; batch 8, GFLOP/s here / wgrad_igemm / torch's better layout): 3x3 64@56 340 /
// 201 / 379, 1x1 256->64@56 247 / 164 / 251, 3x3/2 512@14 281 / 172 / 223; in NCHW 1x1 256->128@28 244 / 157 / 343.
#if defined(__AVX512F__)
#include "core/cpu_features.h"
#include "wgrad.h"

namespace fastconv::avx512 {

namespace {

std::string refuses(const Problem& p) {
  if (!cpu_multiplies_pairs()) return "This CPU has no AVX512_BF16.";
  if (p.dtype != Dtype::bf16) return "The dtype is " + std::string(name_of(p.dtype)) + ", not bf16.";
  return {};
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  wgrad::run_typed<bf16, true>(p, args, parallel);
}

}  // namespace

extern const KernelBody conv2d_wgrad_pairs{refuses, wgrad::workspace_of<float, true>, run, wgrad::cost_of<float, true>};

}  // namespace fastconv::avx512
#endif
