// What the products of a panel fetch for later.
#pragma once

#include "cpu/conv2d/microkernel.h"

namespace fastconv::FASTCONV_ISA::winograd {

struct Bytes {
  const char* at = nullptr;
  int64_t bytes = 0;
};

// What `tiles` tiles bring into L2 for later, each a share: first what the thread reads soon.
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
    return {static_cast<const char*>(at_hand)};
  }

 private:
  Bytes soon_, then_;
  int64_t tiles_, turn_, tile_ = 0;
};

}  // namespace fastconv::FASTCONV_ISA::winograd
