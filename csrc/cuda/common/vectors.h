// Pack<T, N>: N neighbours in memory that a thread moves with one instruction, up to 16 bytes.
#pragma once

#include <cstring>

#include "convert.h"

namespace fastconv::FASTCONV_GPU {

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  static_assert(N * sizeof(T) <= vector_bytes);
  T v[N];
};

// Elements of T that fill the widest access.
template <class T>
inline constexpr int wide = vector_bytes / static_cast<int>(sizeof(T));

#if defined(__CUDACC__)

// From memory that nothing writes while the kernel runs.
template <int N, class T>
FASTCONV_DEVICE Pack<T, N> load(const T* p) {
  Pack<T, N> pack;
  if constexpr (N * sizeof(T) == 16)
    *reinterpret_cast<uint4*>(&pack) = __ldg(reinterpret_cast<const uint4*>(p));
  else if constexpr (N * sizeof(T) == 8)
    *reinterpret_cast<uint2*>(&pack) = __ldg(reinterpret_cast<const uint2*>(p));
  else
    for (int i = 0; i < N; ++i) pack.v[i] = p[i];
  return pack;
}
// In PTX, because the compiler takes plain assignments of four floats apart.
template <int N, class T>
FASTCONV_DEVICE void store(T* p, const Pack<T, N>& pack) {
  if constexpr (N * sizeof(T) == 16) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof bits);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
  } else if constexpr (N * sizeof(T) == 8) {
    uint2 bits;
    memcpy(&bits, &pack, sizeof bits);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(bits.x), "r"(bits.y) : "memory");
  } else {
    for (int i = 0; i < N; ++i) p[i] = pack.v[i];
  }
}

#else

template <int N, class T>
Pack<T, N> load(const T* p) {
  check_global(p, static_cast<int>(N * sizeof(T)), /*write=*/false);
  Pack<T, N> pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
}
template <int N, class T>
void store(T* p, const Pack<T, N>& pack) {
  check_global(p, static_cast<int>(N * sizeof(T)), /*write=*/true);
  std::memcpy(p, &pack, sizeof pack);
}

#endif

// One element.
template <class T>
FASTCONV_DEVICE T fetch(const T* p) {
  return load<1>(p).v[0];
}

}  // namespace fastconv::FASTCONV_GPU
