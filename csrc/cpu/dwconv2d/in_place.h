#pragma once

#include "depthwise.h"

namespace fastconv::FASTCONV_ISA::depthwise {

// The planes in_place_nchw.cpp takes: square windows of 3 or 5 taps side by side, strides 1 or 2 (dgrad: 1).
bool in_place(const Problem& p);
void gather_in_place(const Problem& p, const Args& args, const Parallel& parallel);
int64_t gather_in_place_workspace(const Problem& p, int threads);

}  // namespace fastconv::FASTCONV_ISA::depthwise
