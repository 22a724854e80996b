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
