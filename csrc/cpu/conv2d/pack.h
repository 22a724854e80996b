// Packs a filter, whatever its strides, into the panels the register tile reads: [slot][depth][width] for `width`
// consecutive columns (output channels of the pass), zeros where columns end. 16-bit weights widen to float on the way.
// Blocks are transposed in registers when the filter runs along depth (KRSC, 1x1) or along its taps (KCRS), and copied
// when it runs along the columns; a scalar loop takes the rest.
#pragma once

#include "simd/vec.h"

namespace fastconv::FASTCONV_ISA {

// Depths that dgrad packs of all panels before the next: there the columns of a filter lie together, and so it is read
// in order. A panel at a time takes a short piece of each of many pages.
inline constexpr int64_t packed_at_once = 8;

template <class T>
struct Filter {
  const T* w;             // of the first column and depth of the group
  int64_t column, depth;  // strides, in elements
  int64_t tap_h, tap_w;   // strides of r and s
  int64_t window_h, window_w;

  int64_t taps() const { return window_h * window_w; }
  bool taps_are_dense() const { return (window_w == 1 || tap_w == 1) && (window_h == 1 || tap_h == window_w * tap_w); }
};

// Depths [begin, end) of `depth`, `columns` <= width columns; tap r·S + s goes to slot[r·S + s].
template <class T>
void pack_panel(const Filter<T>& filter, const int64_t* slot, int64_t depth, int64_t begin, int64_t end,
                int64_t columns, int64_t width, arithmetic<T>* out);

}  // namespace fastconv::FASTCONV_ISA
