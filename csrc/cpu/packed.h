// What kernels share that read filters packed apart from the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "core/machine.h"
#include "core/problem.h"

namespace fastconv {

// Memory for pack(), which prepares a filter once for many calls and is given no workspace.
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

// Every operand once: of a packed problem the filter in its packed form, which has so many bytes.
inline double operand_bytes(const Problem& p, double packed_bytes) {
  if (!p.packed) return p.bytes();
  return p.bytes() - static_cast<double>(p.w_elements() * dtype_bytes(p.dtype)) + packed_bytes;
}

}  // namespace fastconv
