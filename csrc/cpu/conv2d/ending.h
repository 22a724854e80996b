// How the tiles of one call end. Where the storage type is the arithmetic type and the activation none or a clamp, they
// write into the result themselves; other sums go through the Tail. Results larger than the last cache pass it by.
#pragma once

#include <limits>
#include <type_traits>

#include "cpu/epilogue.h"
#include "microkernel.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Ending {
  using A = arithmetic<T>;
  bool direct, clamped, stream;
  A high;  // of the clamp; its low end is 0

  // `columns` channels of a group are written, in panels of registers.
  Ending(const Problem& p, const Tail<T>& tail, int64_t columns) {
    using enum Activation;
    const bool clamp = tail.activation == relu || tail.activation == relu6;
    direct = std::is_same_v<T, A> && (clamp || tail.activation == none);
    clamped = direct && clamp;
    high = tail.activation == relu6 ? A(6) : std::numeric_limits<A>::infinity();
    const int64_t pixel_bytes = tail.out_channels * static_cast<int64_t>(sizeof(T));
    const auto first = reinterpret_cast<intptr_t>(tail.out + tail.out_offset);
    stream = direct && columns % Vec<A>::lanes == 0 && pixel_bytes % cache_line == 0 && first % cache_line == 0 &&
             p.n * tail.pixels * pixel_bytes > machine().l3;
  }

  void mark(TileEnd<A>& end) const { end.clamped = clamped, end.low = 0, end.high = high, end.stream = stream; }
};

}  // namespace fastconv::FASTCONV_ISA
