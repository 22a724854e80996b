// Memory for pack(), which prepares a filter once for many calls and is given no workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "core/machine.h"

namespace fastconv {

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : base_(::operator new(static_cast<size_t>(bytes), alignment)) {}
  void* get() const { return base_.get(); }

 private:
  static constexpr std::align_val_t alignment{cache_line};
  struct Free {
    void operator()(void* p) const { ::operator delete(p, alignment); }
  };
  std::unique_ptr<void, Free> base_;
};

}  // namespace fastconv
