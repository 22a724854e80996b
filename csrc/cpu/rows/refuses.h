// What no kernel of rows takes.
#pragma once

#include <string>

#include "core/kernel.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

inline std::string refuses_epilogue(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.pass != Pass::fprop) return "It has no gradients.";
  if (p.epilogue.bias || p.epilogue.residual || p.epilogue.activation != Activation::none)
    return "It has no epilogue: no bias, no residual and no activation.";
  return {};
}

inline std::string refuses_planes(const Problem& p) {
  if (p.layout != Layout::nhwc && p.in_pixels() != 1) return "The layout is nchw: a pixel's channels lie apart.";
  return refuses_epilogue(p);
}

}  // namespace fastconv::FASTCONV_ISA
