// Depthwise convolution, one filter a channel: the three passes, by layout. Each layout has its own files:
// gather_nhwc.cpp and gather_nchw.cpp hold fprop and dgrad, wgrad_nhwc.cpp and wgrad_nchw.cpp the weight gradient.
#include "depthwise.h"

namespace fastconv::FASTCONV_ISA {

namespace {

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (!p.is_depthwise())
    return "Groups are " + std::to_string(p.groups) + " of C=" + std::to_string(p.c) + ", not one a channel.";
  if (p.k != p.c)
    return "K=" + std::to_string(p.k) + " filters for C=" + std::to_string(p.c) +
           " channels: it computes one filter a channel.";
  return {};
}

int64_t gather_workspace(const Problem& p, int threads) {
  return p.layout == Layout::nhwc ? depthwise::gather_nhwc_workspace(p, threads)
                                  : depthwise::gather_nchw_workspace(p, threads);
}
void gather(const Problem& p, const Args& args, const Parallel& parallel) {
  return p.layout == Layout::nhwc ? depthwise::gather_nhwc(p, args, parallel)
                                  : depthwise::gather_nchw(p, args, parallel);
}
int64_t wgrad_workspace(const Problem& p, int threads) {
  return p.layout == Layout::nhwc ? depthwise::wgrad_nhwc_workspace(p, threads)
                                  : depthwise::wgrad_nchw_workspace(p, threads);
}
void wgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  return p.layout == Layout::nhwc ? depthwise::wgrad_nhwc(p, args, parallel) : depthwise::wgrad_nchw(p, args, parallel);
}

// One form for both layouts and passes.
PackedForm packed_form(const Problem& p) {
  return {depthwise::aligned(p.c, depthwise::line) * p.taps() * depthwise::arithmetic_bytes(p.dtype), 0};
}
void pack(const Problem& p, const Args& args, void* out, const Parallel&) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    auto* packed = static_cast<arithmetic<T>*>(out);
    const int64_t last = p.c / depthwise::line * depthwise::line;
    if (last < p.c) std::fill_n(packed + last * p.taps(), depthwise::line * p.taps(), arithmetic<T>(0));
    depthwise::pack_filter<T>(p, args, packed);
  });
}

}  // namespace

extern const KernelBody dwconv2d_fprop_depthwise{refuses, gather_workspace, gather, nullptr, packed_form, pack};
extern const KernelBody dwconv2d_dgrad_depthwise{refuses, gather_workspace, gather, nullptr, packed_form, pack};
extern const KernelBody dwconv2d_wgrad_depthwise{refuses, wgrad_workspace, wgrad};

}  // namespace fastconv::FASTCONV_ISA
