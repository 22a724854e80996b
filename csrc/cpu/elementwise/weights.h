// Where a bilinear interpolation reads along one axis, and with which weights: torch's formula. Pixel o of the output
// lies at (o + 1/2)·in / out - 1/2, not before 0, or with aligned corners at o·(in - 1) / (out - 1). The quotients are
// taken of integers, so that the place is exact and its fraction is rounded once.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

struct Between {
  int64_t first, second;  // pixels of the input
  double near, far;       // their weights
};

// A pixel that stands alone (at the rim, or where a place is a whole number) counts twice by a half: no neighbour of
// weight 0 spreads its infinity.
inline Between between(const Axis& axis, bool corners, int64_t o) {
  int64_t place = 0, whole = 1;
  if (!corners)
    place = std::max(int64_t{0}, (2 * o + 1) * axis.in - axis.out), whole = 2 * axis.out;
  else if (axis.out > 1)
    place = o * (axis.in - 1), whole = axis.out - 1;
  const int64_t first = place / whole, rest = place % whole;
  if (rest == 0 || first >= axis.in - 1) return {std::min(first, axis.in - 1), std::min(first, axis.in - 1), 0.5, 0.5};
  const double far = static_cast<double>(rest) / static_cast<double>(whole);
  return {first, first + 1, 1 - far, far};
}

// Where the pixel that pixel o of an output lies in is, at o·in / out.
inline int64_t nearest(const Axis& axis, int64_t o) { return o * axis.in / axis.out; }

}  // namespace fastconv::FASTCONV_ISA
