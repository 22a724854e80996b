// What no kernel of attention takes.
#pragma once

#include <string>

#include "core/kernel.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

inline std::string refuses_attention(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.layout != Layout::nhwc) return "The layout is nchw: a token's channels lie apart.";
  if (p.pass != Pass::fprop) return "It has no gradients.";
  if (p.epilogue.bias || p.epilogue.residual || p.epilogue.activation != Activation::none)
    return "It has no epilogue: no bias, no residual and no activation.";
  if (p.epilogue.out_channels) return "It writes no channel slice of a larger buffer.";
  return {};
}

}  // namespace fastconv::FASTCONV_ISA
