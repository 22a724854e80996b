// The block's shared memory, seen as elements of T. Every access goes through read() and write(), so that the emulator
// can watch it; on a device they are plain loads and stores.
#pragma once

#include "vectors.h"

namespace fastconv::FASTCONV_GPU {

#if defined(__CUDACC__)
extern __shared__ __align__(1024) unsigned char shared_bytes[];
FASTCONV_DEVICE char* shared_base() { return reinterpret_cast<char*>(shared_bytes); }
#else
inline char* shared_base() { return shared_memory(); }
#endif

template <class T>
struct Shared {
  T* data;

  FASTCONV_DEVICE static Shared at(int64_t byte) { return {reinterpret_cast<T*>(shared_base() + byte)}; }
  FASTCONV_DEVICE Shared operator+(int64_t i) const { return {data + i}; }

  template <int N = 1>
  FASTCONV_DEVICE Pack<T, N> read(int64_t i) const {
#if defined(__CUDACC__)
    return *reinterpret_cast<const Pack<T, N>*>(data + i);
#else
    check_shared(data + i, static_cast<int>(N * sizeof(T)), /*write=*/false);
    Pack<T, N> pack;
    std::memcpy(&pack, data + i, sizeof pack);
    return pack;
#endif
  }
  template <int N>
  FASTCONV_DEVICE void write(int64_t i, const Pack<T, N>& pack) const {
#if defined(__CUDACC__)
    *reinterpret_cast<Pack<T, N>*>(data + i) = pack;
#else
    check_shared(data + i, static_cast<int>(N * sizeof(T)), /*write=*/true);
    std::memcpy(data + i, &pack, sizeof pack);
#endif
  }
  // N neighbours from i on, a multiple of N, by accesses as wide as there are.
  template <int N>
  FASTCONV_DEVICE void read_all(T (&out)[N], int64_t i) const {
    constexpr int width = N < wide<T> ? N : wide<T>;
    FASTCONV_UNROLL
    for (int k = 0; k < N; k += width) {
      const Pack<T, width> pack = read<width>(i + k);
      FASTCONV_UNROLL
      for (int e = 0; e < width; ++e) out[k + e] = pack.v[e];
    }
  }
  FASTCONV_DEVICE T get(int64_t i) const { return read<1>(i).v[0]; }
  FASTCONV_DEVICE void put(int64_t i, T value) const { write<1>(i, Pack<T, 1>{{value}}); }
};

}  // namespace fastconv::FASTCONV_GPU
