// What register tiles fetch for later, a line with every step.
#pragma once

#include <cstdint>
#include <limits>

#include "core/integers.h"

namespace fastconv::FASTCONV_ISA {

inline constexpr int for_reading = 0, into_l2 = 2;  // of __builtin_prefetch

// What later tiles read, brought into L2 with every step of a tile: a burst of misses before the first step would hold
// up the tile's own loads.
struct Ahead {
  const char* at;
  int64_t step = 0;                                   // bytes from one step's line to the next's
  int64_t run = std::numeric_limits<int64_t>::max();  // after so many steps of a tap
  int64_t jump = 0;                                   // it goes on so many bytes further

  // Nothing new.
  static Ahead none(const void* at_hand) { return {static_cast<const char*>(at_hand)}; }
  // One of `shares` equal shares of `bytes` bytes from `at` on, for a tile of `steps` steps.
  static Ahead range(const char* at, int64_t bytes, int64_t share, int64_t shares, int64_t steps) {
    const int64_t part = divide_up(bytes, shares);
    return {at + share * part, divide_up(part, steps)};
  }
  // One of `shares` equal shares of `count` pieces of `bytes` bytes that lie `apart` bytes apart, for a tile of one
  // tap.
  static Ahead pieces(const char* at, int64_t count, int64_t bytes, int64_t apart, int64_t share, int64_t shares,
                      int64_t steps) {
    const int64_t part = divide_up(count, shares), run = divide_up(steps, part), step = divide_up(bytes, run);
    return {at + share * part * apart, step, run, apart - run * step};
  }
};

struct Bytes {
  const char* at = nullptr;
  int64_t bytes = 0;
};

// What `tiles` tiles fetch, each a share: first what the thread reads soon.
class Later {
 public:
  Later(Bytes soon, Bytes then, int64_t tiles)
      : soon_(soon),
        then_(then),
        tiles_(tiles),
        turn_(soon.bytes ? divide_up(tiles * soon.bytes, soon.bytes + then.bytes) : 0) {}

  // The share of the next tile, of `steps` steps; `at_hand` where there is none.
  Ahead share(int64_t steps, const void* at_hand) {
    const int64_t i = tile_++;
    if (i < turn_) return Ahead::range(soon_.at, soon_.bytes, i, turn_, steps);
    if (then_.bytes) return Ahead::range(then_.at, then_.bytes, i - turn_, tiles_ - turn_, steps);
    return Ahead::none(at_hand);
  }

 private:
  Bytes soon_, then_;
  int64_t tiles_, turn_, tile_ = 0;
};

}  // namespace fastconv::FASTCONV_ISA
