// Batch normalisation and its gradients, in both layouts (rows.h: channels_last, planes.h: NCHW).
//
// Inference: y = x·scale + shift, folded once a call from weight, bias, mean, variance and eps in double; then residual
// and activation. One pass: x read, y written.
// Training: mean and variance of the batch first. A block of about 64 KiB is read twice, the second time from the near
// caches: its mean, then the sums of the deviations from it and of their squares (the corrected two-pass algorithm,
// which loses nothing where the mean is large beside the deviation). The blocks are merged in double, in their order.
// Then as above: x read twice from memory, y written once. Gradients: the sums of dy and of dy·(x - mean) by the same
// blocks, merged in the same way, give dweight and dbias and, after training, the two terms that dx needs: x and dy
// read twice, dx written. After inference dx needs no sums, and a block's dx is written while the block is in the
// cache: x and dy read once. A second pass goes backwards: what the first one read last is still in the caches.
//
// Predicted: memory alone decides, 2 passes over the tensor in inference, 3 in training, 5 for its gradients. Zen 4, 2
// threads, AVX-512, f32, torch 2.13, 2026-11-22, the public function, for gradients the operator, ms and times torch in
// the same layout:
//                        inference      training     gradients (train)   gradients (inference)
//   64@112   NHWC  b1   0.044  2.5x   0.117  2.0x     0.129  1.7x           0.106  1.5x
//            NHWC  b8   1.43   0.9x   2.37   1.0x     3.69   1.0x           2.97   2.9x
//            NCHW  b1   0.061  1.1x   0.096  8.1x     0.120  1.3x           0.111  1.3x
//            NCHW  b8   2.07   0.8x   3.00   2.6x     4.07   0.9x           3.25   1.0x
//   256@56   NHWC  b1   0.047  2.2x   0.119  1.4x     0.114  1.8x           0.095  1.5x
//            NHWC  b8   1.49   0.9x   2.60   1.1x     4.05   1.0x           3.00   1.1x
//            NCHW  b1   0.040  1.7x   0.092  8.7x     0.130  1.2x           0.089  1.7x
//            NCHW  b8   1.53   0.8x   2.47   2.8x     4.05   0.8x           2.46   1.3x
//   512@28   NHWC  b8   0.480  1.0x   1.09   0.9x     1.47   0.9x           1.26   1.0x
//            NCHW  b8   0.356  0.9x   0.792  4.1x     1.67   1.1x           0.687  2.6x
//   2048@7   NHWC  b1   0.019  1.3x   0.034  1.3x     0.044  1.0x           0.033  1.0x
//            NHWC  b8   0.073  1.5x   0.164  1.1x     0.207  1.3x           0.130  1.3x
//            NCHW  b1   0.020  1.1x   0.049  2.2x     0.057  0.6x           0.049  0.6x
//            NCHW  b8   0.143  0.8x   0.219  3.6x     0.288  0.7x           0.220  0.8x
// Tensors that lie in the caches move 70 to 150 GB/s, larger ones 25 to 36 (a copy 37 to 44): the passes are as
// predicted. Rows 64@112 b1 are of one run, the others of a second; at batch 8 runs differ by a quarter, torch's
// gradients in inference by three times. Loses to torch in inference where tensor and result together overflow the last
// cache (NCHW, batch 8: 0.75 to 0.95x in three runs), and in gradients of NCHW planes of 7x7, where every channel ends
// in reductions of registers.
//
// Inference reads and writes channel slices of buffers too (elementwise/affine.h): a pre-activation reads a prefix of
// its block's buffer.
//
// Blocks depend on the problem alone, so the bits do not depend on the number of threads. 16-bit types are summed in
// float and rounded once.
#include <array>

#include "arena.h"
#include "elementwise/affine.h"
#include "planes.h"
#include "refuses.h"
#include "rows.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t merged_at_once = 64;  // channels

template <class T, class View>
class BatchNorm {
  using A = arithmetic<T>;
  using Sums = std::array<double, merged_at_once>;

 public:
  BatchNorm(const Problem& p, const Args& args, int threads)
      : p_(p), args_(args), view_(p), finish_(p, args, view_.run_bytes()) {
    const bool gradient = p.pass != Pass::fprop;
    quantities_ = gradient ? 2 : 3;
    scratch_step_ = (gradient ? View::sums_scratch : View::statistics_scratch) * round_up(view_.table(), line);
    Arena arena(args.workspace);
    for (A*& table : tables_) table = arena.take<A>(view_.table());
    if (gradient || p.training) {
      partial_ = arena.take<A>(view_.blocks() * quantities_ * p.c);
      scratch_ = arena.take<A>(threads * scratch_step_);
    }
    used_ = arena.used();
  }

  int64_t workspace() const { return used_; }

  void fprop(const Parallel& parallel) const {
    const auto *mean = static_cast<const A*>(args_.mean), *variance = static_cast<const A*>(args_.variance);
    if (p_.training) {
      parallel(view_.tasks(), [&](int64_t begin, int64_t end, int thread) {
        view_.each_task(begin, end, /*backwards=*/false,
                        [&](const auto& task) { view_.statistics(task, x(), scratch(thread), partial(task.block)); });
      });
      A* stats = static_cast<A*>(args_.stats);
      over_channels(parallel, [&](int64_t first, int64_t last) { merge_statistics(first, last, stats); });
      mean = stats, variance = stats + p_.c;
    }
    A *scale = tables_[0], *shift = tables_[1];
    for (int64_t c = 0; c < p_.c; ++c) {
      scale[c] = static_cast<A>(inverse(variance[c]) * of(args_.w, c, 1));
      shift[c] = static_cast<A>(of(args_.bias, c, 0) - (mean ? static_cast<double>(mean[c]) : 0) * scale[c]);
    }
    if (p_.in_channels || p_.epilogue.out_channels) return Affine<T, A>(p_, args_, {scale, shift}).run(parallel);
    view_.spread(scale), view_.spread(shift);
    parallel(view_.tasks(), [&](int64_t begin, int64_t end, int) {
      view_.each_task(begin, end, /*backwards=*/p_.training,
                      [&](const auto& task) { view_.apply(task, x(), scale, shift, finish_); });
    });
  }

  void gradients(const Parallel& parallel) const {
    const bool dgrad = p_.pass == Pass::dgrad;
    A *mean = tables_[0], *slope = tables_[1], *bend = tables_[2], *level = tables_[3];
    const auto* variance = static_cast<const A*>(args_.variance);
    for (int64_t c = 0; c < p_.c; ++c) {
      mean[c] = static_cast<A>(of(args_.mean, c, 0));
      slope[c] = static_cast<A>(inverse(variance[c]) * of(args_.w, c, 1));
      level[c] = 0;
    }
    view_.spread(mean), view_.spread(slope), view_.spread(level);
    const bool at_once = dgrad && !p_.training;
    parallel(view_.tasks(), [&](int64_t begin, int64_t end, int thread) {
      view_.each_task(begin, end, /*backwards=*/false, [&](const auto& task) {
        view_.sums(task, x(), dy(), mean, scratch(thread), partial(task.block));
        if (at_once) view_.apply(task, dy(), slope, level, finish_);
      });
    });
    A* written = static_cast<A*>(dgrad ? args_.stats : args_.out);
    over_channels(parallel, [&](int64_t first, int64_t last) { merge_sums(first, last, written, bend, level); });
    if (!dgrad || at_once) return;
    view_.spread(bend), view_.spread(level);
    parallel(view_.tasks(), [&](int64_t begin, int64_t end, int) {
      view_.each_task(begin, end, /*backwards=*/true,
                      [&](const auto& task) { view_.gradient(task, x(), dy(), mean, slope, bend, level, finish_); });
    });
  }

 private:
  static constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(A));
  static constexpr int tables = 4;

  const T* x() const { return static_cast<const T*>(args_.x); }
  const T* dy() const { return static_cast<const T*>(args_.y); }
  A* scratch(int thread) const { return scratch_ + thread * scratch_step_; }
  A* partial(int64_t block) const { return partial_ + block * quantities_ * p_.c; }
  double inverse(A variance) const { return 1 / std::sqrt(static_cast<double>(variance) + args_.eps); }
  static double of(const void* values, int64_t c, double otherwise) {
    return values ? static_cast<double>(static_cast<const A*>(values)[c]) : otherwise;
  }

  template <class F>
  void over_channels(const Parallel& parallel, F&& f) const {
    parallel(divide_up(p_.c, merged_at_once), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) f(i * merged_at_once, std::min(p_.c, (i + 1) * merged_at_once));
    });
  }

  // Of channels [first, last): mean and biased variance, from each block's mean m, the sum r of the deviations from it
  // and the sum s of their squares: the deviations from the whole mean are these less d = mean - m.
  void merge_statistics(int64_t first, int64_t last, A* stats) const {
    const double share = 1 / static_cast<double>(p_.n * p_.in_pixels());
    const int64_t count = last - first;
    Sums mean{}, square{};
    for (int64_t b = 0; b < view_.blocks(); ++b) {
      const A* at = partial(b) + first;
      const double pixels = view_.pixels(b);
      for (int64_t c = 0; c < count; ++c)  // from an infinite mean the deviations are NaN
        mean[c] += pixels * at[c] + (at[c] - at[c] == 0 ? at[p_.c + c] : A(0));
    }
    for (int64_t c = 0; c < count; ++c) mean[c] *= share;
    for (int64_t b = 0; b < view_.blocks(); ++b) {
      const A* at = partial(b) + first;
      const double pixels = view_.pixels(b);
      for (int64_t c = 0; c < count; ++c) {
        const double d = mean[c] - at[c];
        square[c] += at[2 * p_.c + c] + d * (pixels * d - 2.0 * at[p_.c + c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      stats[first + c] = static_cast<A>(mean[c]);
      stats[p_.c + first + c] = static_cast<A>(square[c] * share);
    }
  }

  // Of channels [first, last): dweight, dbias and what dx takes from them.
  void merge_sums(int64_t first, int64_t last, A* written, A* bend, A* level) const {
    const double share = 1 / static_cast<double>(p_.n * p_.in_pixels());
    const int64_t count = last - first;
    const A* variance = static_cast<const A*>(args_.variance) + first;
    Sums plain{}, weighted{};
    for (int64_t b = 0; b < view_.blocks(); ++b) {
      const A* at = partial(b) + first;
      for (int64_t c = 0; c < count; ++c) plain[c] += at[c], weighted[c] += at[p_.c + c];
    }
    for (int64_t c = 0; c < count; ++c) {
      const double inv = inverse(variance[c]), slope = inv * of(args_.w, first + c, 1);
      written[first + c] = static_cast<A>(weighted[c] * inv);
      written[p_.c + first + c] = static_cast<A>(plain[c]);
      bend[first + c] = static_cast<A>(-slope * inv * inv * weighted[c] * share);
      level[first + c] = static_cast<A>(-slope * plain[c] * share);
    }
  }

  const Problem& p_;
  const Args& args_;
  const View view_;
  const norm::Finish<T> finish_;
  A *tables_[tables], *partial_ = nullptr, *scratch_ = nullptr;
  int64_t quantities_, scratch_step_, used_;
};

// Calls f with the norm of the problem's type and layout.
template <class F>
void with_norm(const Problem& p, const Args& args, int threads, F&& f) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (p.layout == Layout::nhwc || p.in_pixels() == 1)
      f(BatchNorm<T, norm::Rows<T>>(p, args, threads));
    else
      f(BatchNorm<T, norm::Planes<T>>(p, args, threads));
  });
}

void fprop(const Problem& p, const Args& args, const Parallel& parallel) {
  with_norm(p, args, parallel.threads(), [&](const auto& norm) { norm.fprop(parallel); });
}

void gradients(const Problem& p, const Args& args, const Parallel& parallel) {
  with_norm(p, args, parallel.threads(), [&](const auto& norm) { norm.gradients(parallel); });
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_norm(p, Args(), threads, [&](const auto& norm) { bytes = norm.workspace(); });
  return bytes;
}

}  // namespace

extern const KernelBody batchnorm2d_fprop_blocks{
    .refuses = norm::refuses, .workspace = workspace, .run = fprop, .reads_slices = true};
extern const KernelBody batchnorm2d_dgrad_blocks{norm::refuses, workspace, gradients};
extern const KernelBody batchnorm2d_wgrad_blocks{norm::refuses, workspace, gradients};

}  // namespace fastconv::FASTCONV_ISA
