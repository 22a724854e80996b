// Strides and dilations that no window ever takes, bounded before a kernel sees them.
#pragma once

#include "problem.h"

namespace fastconv {

// A stride with one output, or the dilation of a window of one element, is a step never taken and may be any number:
// this bounds both by the padded size, so that no kernel meets a huge one. `out` must be set.
void drop_unused_steps(Axis& axis);

}  // namespace fastconv
