// What no kernel of a norm takes.
#pragma once

#include <string>

#include "core/kernel.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA::norm {

inline std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "It has no kernel for this dtype.";
  if (p.x_elements() == 0) return "The input is empty.";
  const bool slices = p.in_channels || p.epilogue.out_channels;
  if (slices && (p.is_lrn() || p.pass != Pass::fprop || p.training))
    return "It reads and writes no channel slice of a larger buffer, which only a batch norm's inference does.";
  if (p.pass != Pass::fprop && (p.epilogue.residual || p.epilogue.activation != Activation::none))
    return "Gradients have no residual and no activation.";
  return {};
}

}  // namespace fastconv::FASTCONV_ISA::norm
