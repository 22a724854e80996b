// Hands out consecutive pieces of the workspace, each on a cache line of its own; from a null base it only counts.
#pragma once

#include "core/integers.h"
#include "core/machine.h"

namespace fastconv {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class U>
  U* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(U)), cache_line);
    return reinterpret_cast<U*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace fastconv
