// Sizes of this machine's caches, which decide how kernels block their loops. Results never depend on them.
#pragma once

#include <cstdint>

namespace fastconv {

inline constexpr int64_t cache_line = 64;  // bytes

struct Machine {
  int64_t l1 = 32 << 10;  // bytes of one core's first-level data cache
  int64_t l2 = 512 << 10;
  int64_t l3 = 8 << 20;  // of the whole last level
};

// Read from the operating system on first use; the defaults above where it does not tell.
const Machine& machine();

}  // namespace fastconv
