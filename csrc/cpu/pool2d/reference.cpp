// The definition of the pools, one element at a time: the last rows of the list, which refuse nothing they have a dtype
// for. Sums are kept in double. Gradients look from each input element at the windows that cover it, so every element
// is written once and the order of summation is fixed. They lose to every other kernel.
#include "plain.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Runs `body(p, args, plane)` for every plane n·C + c.
template <class F>
void each_plane(const Problem& p, const Parallel& parallel, F&& body) {
  parallel(p.n * p.c, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

template <bool gradient>
void run_max(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    with_index(p.index, [&](auto* index) {
      using T = std::remove_pointer_t<decltype(t)>;
      using I = std::remove_pointer_t<decltype(index)>;
      each_plane(p, parallel, [&](int64_t i) {
        if constexpr (!gradient)
          plain::max_fprop<T, I, double>(p, args, i);
        else if constexpr (!std::is_void_v<I>)
          plain::max_dgrad<T, I, double>(p, args, i);
      });
    });
  });
}

template <bool gradient>
void run_average(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    each_plane(p, parallel, [&](int64_t i) {
      if constexpr (gradient)
        plain::average_dgrad<T, double>(p, args, i);
      else
        plain::average_fprop<T, double>(p, args, i);
    });
  });
}

}  // namespace

extern const KernelBody maxpool2d_fprop_reference{refuses_pool, no_workspace, run_max<false>};
extern const KernelBody maxpool2d_dgrad_reference{refuses_pool, no_workspace, run_max<true>};
extern const KernelBody adaptivemax2d_fprop_reference{refuses_pool, no_workspace, run_max<false>};
extern const KernelBody adaptivemax2d_dgrad_reference{refuses_pool, no_workspace, run_max<true>};
extern const KernelBody avgpool2d_fprop_reference{refuses_pool, no_workspace, run_average<false>};
extern const KernelBody avgpool2d_dgrad_reference{refuses_pool, no_workspace, run_average<true>};
extern const KernelBody adaptiveavg2d_fprop_reference{refuses_pool, no_workspace, run_average<false>};
extern const KernelBody adaptiveavg2d_dgrad_reference{refuses_pool, no_workspace, run_average<true>};

}  // namespace fastconv::FASTCONV_ISA
