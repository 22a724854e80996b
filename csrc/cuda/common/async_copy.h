// cp.async: 16 bytes from global to shared memory, past the registers, finished when their group has been waited for.
#pragma once

#include "shared.h"

namespace fastconv::FASTCONV_GPU {

#if defined(__CUDACC__)

// Zeros where `present` is false: `from` is then not read.
template <class T>
FASTCONV_DEVICE void copy_async(Shared<T> to, const T* from, bool present) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to.data));
  const int from_bytes = present ? vector_bytes : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(from_bytes) : "memory");
}
FASTCONV_DEVICE void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but this thread's newest `Left` groups have arrived. A barrier must follow before other threads read them.
template <int Left>
FASTCONV_DEVICE void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

#else

template <class T>
void copy_async(Shared<T> to, const T* from, bool present) {
  copy_later(to.data, from, vector_bytes, present ? vector_bytes : 0);
}
inline void commit_group() { commit_copies(); }
template <int Left>
void wait_groups() {
  wait_for_copies(Left);
}

#endif

}  // namespace fastconv::FASTCONV_GPU
