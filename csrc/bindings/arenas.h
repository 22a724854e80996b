// Memory of runs that several programs share: those of one network for its parts and for batches of different sizes.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "memory.h"

namespace fastconv {

class Arenas {
  struct Arena {
    int64_t bytes;
    at::DataPtr memory;
  };

 public:
  // An arena for one run: the smallest free one that is large enough, or a new one, for which a smaller free one goes.
  // So there are never more than ever ran side by side, and after the largest has run none is allocated.
  class Loan {
   public:
    Loan(Arenas& owner, int64_t bytes) : owner_(owner), arena_(owner.take(bytes)) {}
    ~Loan() { owner_.give_back(std::move(arena_)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    void* get() const { return arena_.memory.get(); }

   private:
    Arenas& owner_;
    Arena arena_;
  };

  // Of the free ones.
  int64_t bytes() {
    std::lock_guard lock(mutex_);
    int64_t sum = 0;
    for (const Arena& arena : free_) sum += arena.bytes;
    return sum;
  }

 private:
  Arena take(int64_t bytes) {
    bytes = std::max<int64_t>(1, bytes);
    {
      std::lock_guard lock(mutex_);
      auto best = free_.end();
      for (auto arena = free_.begin(); arena != free_.end(); ++arena)
        if (arena->bytes >= bytes && (best == free_.end() || arena->bytes < best->bytes)) best = arena;
      const bool fits = best != free_.end();
      if (!fits && !free_.empty()) best = free_.begin();
      if (best != free_.end()) {
        Arena found = std::move(*best);
        free_.erase(best);
        if (fits) return found;
      }
    }
    return {bytes, memory().allocate(static_cast<size_t>(bytes))};
  }

  void give_back(Arena arena) {
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(arena));
  }

  std::mutex mutex_;
  std::vector<Arena> free_;
};

}  // namespace fastconv
