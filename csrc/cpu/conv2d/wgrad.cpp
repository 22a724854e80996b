// The filter gradient as a matrix product, dw[k][r,s,c] = sum over pixels of dy[p][k] · x[p at tap][c]: a register tile
// of 14 filters x 32 columns (AVX-512), 6 x 16 (AVX2), that reads one row of dy and one of the im2col matrix a pixel.
// Both are packed 160 pixels at a time, dy for a task's filters, the im2col matrix 32 columns before they are used; a
// pixel's channels lie side by side in channels_last, so packing is copying registers.
//
//   wgrad_igemm    channels_last, read in place
//   wgrad_im2col   planes: transposed while packing, squares of 8x8 in registers; x only once, before, where several
//                  taps read it
//
// Long sums are cut into chunks of pixels. Chunks, and so the order of every sum, depend on the problem alone: partial
// results go to the workspace and are added in order. Bytes moved: x and dy once a block of 512 columns or 256 filters.
// Measured (Zen 4, one of 2 cores, AVX-512, f32, batch 1, 2026-11-22), channels_last / planes: 3x3 64@56 102 / 96,
// 256@56 103 / 100, 512@7 65 / 62, 1x1 256->64@56 112 / 90, 7x7 stem 88 / 82 GFLOP/s; PyTorch's better layout on the
// same layers 108, 106, 18, 95, 93.
// A task that reads whole pixels fetches the next block's line by line with its tiles (ahead.h). Before, few columns or
// filters waited for memory: batch 8, two Zen 5 cores, in turns, 2026-11-23, ms before, now and torch's channels_last:
// 3->64@224 9.5, 5.3, 6.9; 1x1 16->96@112 2.5, 1.1, 1.8; 256->64@56 2.8, 2.0, 2.4; 64->256@56 2.65, 2.3, 3.4.
// A product of one task is cut in two where it has pixels enough: 192->96@28, batch 1, 0.134 ms and now 0.069, 192->64
// 0.087 and 0.045 to 0.054 (the same machine).
// Loses to depthwise kernels where a group has few channels: a tile of 14 x 32 is then mostly empty.
#include "wgrad.h"

namespace fastconv::FASTCONV_ISA {

namespace {

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { wgrad::run_typed<std::remove_pointer_t<decltype(t)>, false>(p, args, parallel); });
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&]<class T>(T*) { bytes = wgrad::workspace_of<arithmetic<T>, false>(p, threads); });
  return bytes;
}

Cost cost(const Problem& p, int threads) {
  Cost cost;
  with_dtype(p.dtype, [&]<class T>(T*) { cost = wgrad::cost_of<arithmetic<T>, false>(p, threads); });
  return cost;
}

constexpr const char* no_dtype = "The dtype is none of f64, f32, f16, bf16.";

std::string refuses_planes(const Problem& p) { return p.dtype == Dtype::other ? no_dtype : wgrad::refuses_planes(p); }
std::string refuses_pixels(const Problem& p) { return p.dtype == Dtype::other ? no_dtype : wgrad::refuses_pixels(p); }

}  // namespace

extern const KernelBody conv2d_wgrad_igemm{refuses_pixels, workspace, run, cost};
extern const KernelBody conv2d_wgrad_im2col{refuses_planes, workspace, run, cost};

}  // namespace fastconv::FASTCONV_ISA
