// What no elementwise kernel takes.
#pragma once

#include <string>

#include "core/kernel.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

inline std::string refuses_unknown(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.epilogue.bias) return "It adds no bias.";
  return {};
}

inline std::string refuses_fused(const Problem& p) {
  if (p.epilogue.residual || p.epilogue.activation != Activation::none) return "It has no residual and no activation.";
  return refuses_unknown(p);
}

inline std::string refuses_slices(const Problem& p) {
  if (p.epilogue.out_channels) return "It writes no channel slice of a larger buffer.";
  return refuses_fused(p);
}

}  // namespace fastconv::FASTCONV_ISA
