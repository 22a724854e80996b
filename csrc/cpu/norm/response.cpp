// Local response normalisation over channels and its gradient, in both layouts (response_rows.h: channels_last,
// response_planes.h: NCHW):
//   s = k + alpha / size · the squares of a window of `size` channels,   y = x / s^beta,
//   dx = dy / s^beta - 2·alpha·beta / size · x · the sum of x·dy / s^(beta + 1) over the windows that hold x.
//
// Windows are summed directly, `size` multiply-adds an element: a running sum that takes away what leaves a window
// keeps the rounding errors of a large square for all channels behind it. Powers of a half and three quarters are
// square roots, all others std::pow lane by lane. The gradient needs x and dy alone: it sums the squares again, and
// what the neighbours take from a channel stands in a ring of rows (NCHW) or in a padded row (channels_last) until
// they take it. An element's arithmetic is the same wherever a block begins, so blocks follow the shape, and the bits
// depend on neither blocks nor threads.
//
// Bytes: x read, y written; x and dy read, dx written. Predicted: not these alone decide, but also the divider, two
// roots and a quotient for every register forward, two roots and a quotient backward. Figures of
// Zen 4, 2 threads, AVX-512, f32, size 5, beta 0.75, torch 2.13, 2026-11-22, the public function, for gradients the
// operator against autograd's backward pass, ms and times torch in the same layout:
//                     forward, b1      forward, b8      gradient, b1     gradient, b8
//   96@55    NHWC    0.187   24x      1.61    21x      0.379   21x      3.02    24x
//            NCHW    0.146   39x      1.13    26x      0.354   26x      2.36    20x
//   256@27   NHWC    0.114   39x      0.853   26x      0.236   29x      1.55    23x
//            NCHW    0.103   41x      0.865   21x      0.269   22x      1.78    15x
//   64@56    NHWC    0.133   36x      1.03    21x      0.266   27x      1.73    23x
//            NCHW    0.095   46x      0.666   30x      0.268   24x      1.54    20x
//   192@56   NHWC    0.299   45x      2.85    25x      0.575   26x      4.69    28x
//            NCHW    0.237   55x      2.02    21x      0.483   23x      4.13    15x
// torch composes it of a square, a pad, an average pool, a product, a sum, a power and a quotient, each over memory.
// Loses to it nowhere in what was measured. The gain is least for channels_last with few channels, where most of every
// register is empty (3@56, batch 4: 2.7x), and for other powers (beta 0.6, 64@28: 4 to 5x forward, 5 to 6x backward);
// windows of 129 of 256 channels gain 40 to 90x, tensors of 800 elements 8 to 11x.
#include "response.h"

#include "arena.h"
#include "refuses.h"
#include "response_planes.h"
#include "response_rows.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Calls f with the windows and the view of the problem's type and layout.
template <class F>
void with_view(const Problem& p, const Response& response, F&& f) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const norm::Windows<arithmetic<T>> windows(p, response);
    if (p.layout == Layout::nhwc || p.in_pixels() == 1)
      f(windows, norm::ResponseRows<T>(p, windows), t);
    else
      f(windows, norm::ResponsePlanes<T>(p, windows), t);
  });
}

template <class T, class View>
int64_t scratch_bytes(const Problem& p, const View& view) {
  const int64_t elements = p.pass == Pass::dgrad ? view.dgrad_scratch() : view.fprop_scratch();
  return round_up(elements * static_cast<int64_t>(sizeof(arithmetic<T>)), cache_line);
}

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_view(p, Response(), [&](const auto&, const auto& view, auto* t) {
    bytes = threads * scratch_bytes<std::remove_pointer_t<decltype(t)>>(p, view);
  });
  return bytes;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_view(p, args.response, [&](const auto&, const auto& view, auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto *x = static_cast<const T*>(args.x), *dy = static_cast<const T*>(args.y);
    const norm::Finish<T> finish(p, args, view.run_bytes());
    const int64_t step = scratch_bytes<T>(p, view);
    parallel(view.tasks(), [&](int64_t begin, int64_t end, int thread) {
      auto* scratch = reinterpret_cast<arithmetic<T>*>(static_cast<char*>(args.workspace) + thread * step);
      finish.with_store([&](auto put) {
        for (int64_t task = begin; task < end; ++task)
          if (p.pass == Pass::dgrad)
            view.dgrad(task, x, dy, scratch, put);
          else
            view.fprop(task, x, scratch, put);
      });
    });
  });
}

}  // namespace

extern const KernelBody lrn2d_fprop_window{norm::refuses, workspace, run};
extern const KernelBody lrn2d_dgrad_window{norm::refuses, workspace, run};

}  // namespace fastconv::FASTCONV_ISA
