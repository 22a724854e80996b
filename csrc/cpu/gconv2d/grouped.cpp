// Grouped convolution with few channels a group: fprop and dgrad (gather.cpp), wgrad (wgrad.cpp).
#include "grouped.h"

namespace fastconv::FASTCONV_ISA {

namespace {

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.groups == 1) return "There is one group: a register holds the channels of several.";
  return {};
}

}  // namespace

extern const KernelBody gconv2d_fprop_grouped{refuses, grouped::gather_workspace, grouped::gather};
extern const KernelBody gconv2d_dgrad_grouped{refuses, grouped::gather_workspace, grouped::gather};
extern const KernelBody gconv2d_wgrad_grouped{refuses, grouped::wgrad_workspace, grouped::wgrad};

}  // namespace fastconv::FASTCONV_ISA
