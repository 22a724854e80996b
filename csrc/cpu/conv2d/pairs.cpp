// Implicit GEMM over bfloat16 as it lies: igemm.cpp's strips, panels and threads with a tile that takes two input
// channels at a time (pair_tile.h), for processors with AVX512_BF16. The source is neither widened nor copied, a packed
// filter is half as large, and a tile does twice the products of a float tile.
//
// An odd number of channels is staged, with a zero behind it. Sums are kept in float and rounded once; the instruction
// takes subnormal numbers for zero.
//
// Measured (Zen 4, 2 threads, 2026-11-22; GFLOP/s here / igemm / torch's better layout): batch 8 3x3 64@56 401 / 200 /
// 436, 1x1 256->64@56 315 / 174 / 314, 3x3/2 512@14 344 / 183 / 379; batch 1 3x3 256@14 376 / 196 / 375.
#if defined(__AVX512F__)
#include "core/cpu_features.h"
#include "igemm.h"
#include "pair_tile.h"

namespace fastconv::avx512 {

namespace {

struct Pairs {
  using Storage = bf16;
  using Element = bf16;
  static constexpr int step = 2;
  static constexpr double pace = 0.5;
  static auto tile(int rows, int vectors) { return pair_tile_function(rows, vectors); }
  static void store(bf16* out, Vec<float> first, Vec<float> second) { store_pairs(out, pairs_of(first, second)); }
};

std::string refuses(const Problem& p) {
  if (!cpu_multiplies_pairs()) return "This CPU has no AVX512_BF16.";
  if (p.dtype != Dtype::bf16) return "The dtype is " + std::string(name_of(p.dtype)) + ", not bf16.";
  return igemm::refuses_geometry(p);
}

void run(const Problem& p, const Args& args, const Parallel& parallel) { igemm::Igemm<Pairs>(p, args, parallel).run(); }

}  // namespace

extern const KernelBody conv2d_fprop_pairs{
    refuses, igemm::workspace<Pairs>, run, igemm::cost<Pairs>, igemm::packed_form<Pairs>, igemm::pack<Pairs>};
extern const KernelBody conv2d_dgrad_pairs{
    refuses, igemm::workspace<Pairs>, run, igemm::cost<Pairs>, igemm::packed_form<Pairs>, igemm::pack<Pairs>};

}  // namespace fastconv::avx512
#endif
