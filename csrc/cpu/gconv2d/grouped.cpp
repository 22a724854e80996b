// Grouped convolution with few channels a group: fprop and dgrad (gather.cpp), wgrad (wgrad.cpp).
#include "grouped.h"

namespace fastconv::FASTCONV_ISA {

namespace {

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.groups == 1) return "There is one group: a register holds the channels of several.";
  return {};
}

// Above, the tile of a matrix product is full, and its loads are fewer.
std::string refuses_wgrad(const Problem& p) {
  constexpr int64_t most_channels = 32;
  const std::string reason = refuses(p);
  if (!reason.empty()) return reason;
  if (std::min(p.channels_per_group(), p.filters_per_group()) > most_channels)
    return "A group has " + std::to_string(p.channels_per_group()) + " channels and " +
           std::to_string(p.filters_per_group()) + " filters: above " + std::to_string(most_channels) +
           " of both a matrix product is faster.";
  return {};
}

}  // namespace

extern const KernelBody gconv2d_fprop_grouped{
    refuses, grouped::gather_workspace, grouped::gather, grouped::gather_cost, grouped::packed_form, grouped::pack};
extern const KernelBody gconv2d_dgrad_grouped{
    refuses, grouped::gather_workspace, grouped::gather, grouped::gather_cost, grouped::packed_form, grouped::pack};
extern const KernelBody gconv2d_wgrad_grouped{refuses_wgrad, grouped::wgrad_workspace, grouped::wgrad};

}  // namespace fastconv::FASTCONV_ISA
