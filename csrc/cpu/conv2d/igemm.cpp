// Implicit GEMM, NHWC in place: fprop, and dgrad of stride 1, which is fprop with the taps turned round (phase.h).
//
// Output pixels are cut into strips of up to 14 (AVX-512) or 6 (AVX2) pixels, output channels into panels of two
// vectors; the register tile (microkernel.h) computes one strip x panel over all taps and channels. Where a strip reads
// is a table of row pointers, [tap][pixel], with one zero row for the padding: nothing is unfolded. The filter is
// packed once a call (pack.h).
//
// Blocking: panels that fill half of L2 stay there while the strips pass; a strip's rows come from L1 or L2. Deep
// filters are cut into chunks of depth, so that eight panels fit; the sums of the chunks before wait in the result.
// Threads split the strips, or the panels where the filter is the larger operand: then each packs its own panels just
// before use, and they never leave its L2. Every sum runs over chunks, taps and channels in one fixed order, so the
// split does not show. Chunks: 512@14 3x3/2 batch 8 122 -> 186 GFLOP/s on two threads (torch 178 and 191 in the same
// runs), 2048->512@7 176 -> 194 (torch 140); at 1024->256@14 the tile has 90 % of the time and runs at 96 % of its
// limit.
//
// 16-bit types, and rows so far apart that a strip falls into one L1 set, are staged: the strip's rows are copied
// (widened) into a private scratch. Rows that just fill the ways of their sets are not: staging them cost 4 % more than
// it saved (256@28 3x3/2).
// What the next strip reads is fetched into L2 line by line with the steps of this one's tiles (Ahead). A burst of them
// before the first step held up the tile's own loads: the tile alone, rows from memory, ran at 179 GFLOP/s with 128
// channels and 169 with 512, and now at 240 and 243 of 263 (Zen 5 with registers of 512 bits, one core, 2026-11-23).
// Whole calls at batch 8 with two threads, same machine: 128@56 1x1 2.24 -> 1.87 ms, 512@28 7.3 -> 6.8, 24->144@56 0.65
// -> 0.53, 512@14 3x3/2 4.5 -> 4.3.
// In a plan the tiles fetch the next stage's filter instead, where that is more: its memory is idle otherwise. resnet50
// at batch 1, 102 MB of filters: 18.2 to 18.6 -> 16.5 to 17.5 ms (ONNX Runtime 18.7 to 19.1 in the same runs).
// Results larger than the last cache pass it by (simd/stream.h): no line of them is read before it is written.
// 16->96@112 at batch 8, 38 MB, took 3.5 and then 2.1 ms (AVX2 3.6 and 2.5; Zen 4, 2026-11-22).
//
// Packed apart from the call (two threads, AVX-512, batch 1, ms packing in the call / packed / torch): 512@7 3x3 1.49 /
// 1.13 / 1.33, 512@14 3x3/2 1.54 / 1.16 / 1.42, 2048->512@7 0.64 / 0.56 / 2.13, 64@56 3x3 1.13 / 1.05 / 1.08.
//
// Measured on one core (Zen 4, 2 cores, 2026-11-22, f32, batch 1, processor time on a shared machine, KCRS weights
// packed in every call; GFLOP/s with AVX-512 / AVX2 / the better of torch's two layouts): 3x3 64@56 99/104/102, 3x3
// 256@14 98/97/88, 3x3 512@7 79/76/54, 1x1 64->256@56 89/89/69, 1x1 2048->512@7 79/77/71. It loses
// to torch's direct kernel on large 3x3 maps (0.91-0.98x for vgg16's 112x112 and 56x56), where Winograd takes over. The
// tile alone reaches 94 to 96 % of the measured multiply-add rate from L1 and L2; what is missing goes to staging,
// tables and stores.
#include "igemm.h"

namespace fastconv::FASTCONV_ISA {

namespace {

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  return igemm::refuses_geometry(p);
}

// Calls f with the operands of the problem's dtype.
template <class F>
void with_operand(const Problem& p, F&& f) {
  with_dtype(p.dtype, [&]<class T>(T*) { f(igemm::Widened<T>()); });
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_operand(p, [&]<class Operand>(Operand) { bytes = igemm::workspace<Operand>(p, threads); });
  return bytes;
}

Cost cost(const Problem& p, int threads) {
  Cost cost;
  with_operand(p, [&]<class Operand>(Operand) { cost = igemm::cost<Operand>(p, threads); });
  return cost;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_operand(p, [&]<class Operand>(Operand) { igemm::Igemm<Operand>(p, args, parallel).run(); });
}

PackedForm packed_form(const Problem& p) {
  PackedForm form;
  with_operand(p, [&]<class Operand>(Operand) { form = igemm::packed_form<Operand>(p); });
  return form;
}

void pack(const Problem& p, const Args& args, void* out, const Parallel& parallel) {
  with_operand(p, [&]<class Operand>(Operand) { igemm::pack<Operand>(p, args, out, parallel); });
}

}  // namespace

extern const KernelBody conv2d_fprop_igemm{refuses, workspace, run, cost, packed_form, pack};
extern const KernelBody conv2d_dgrad_igemm{refuses, workspace, run, cost, packed_form, pack};

}  // namespace fastconv::FASTCONV_ISA
