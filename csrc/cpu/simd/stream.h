// Stores that pass the caches by: the line is not read before it is written, nor kept afterwards. For results too large
// for the last cache to hold until somebody reads them.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// p is aligned to the register.
template <class A>
void stream(A* p, Vec<A> v) {
#if defined(__AVX512F__) && !defined(FASTCONV_PORTABLE)
  if constexpr (sizeof(A) == sizeof(float))
    _mm512_stream_ps(p, v.v);
  else
    _mm512_stream_pd(p, v.v);
#elif defined(__AVX2__) && !defined(FASTCONV_PORTABLE)
  if constexpr (sizeof(A) == sizeof(float))
    _mm256_stream_ps(p, v.v);
  else
    _mm256_stream_pd(p, v.v);
#else
  v.store(p);
#endif
}

// A thread's streamed stores are seen by others after this.
inline void finish_streams() {
#if defined(__AVX2__) && !defined(FASTCONV_PORTABLE)
  _mm_sfence();
#endif
}

}  // namespace fastconv::FASTCONV_ISA
