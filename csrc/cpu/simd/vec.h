// Vec<float> and Vec<double>: one register of the instruction set this file is compiled for, and the few verbs the
// kernels speak. A partial load fills the missing lanes with zero; a partial store leaves memory beyond count alone.
#pragma once

#include <cmath>

#include "isa.h"

#if defined(FASTCONV_PORTABLE)
#include "vec_scalar.h"
#elif defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(__ARM_NEON)
#include "vec_neon.h"
#else
#include "vec_scalar.h"
#endif

namespace fastconv::FASTCONV_ISA {

// Storage type -> arithmetic type.
template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using arithmetic = typename Arithmetic<T>::type;

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(bf16 v) { return to_float(v); }
inline float widen(f16 v) { return to_float(v); }

template <class T>
T narrow(arithmetic<T> v) {
  return v;
}
template <>
inline bf16 narrow<bf16>(float v) {
  return to_bf16(v);
}
template <>
inline f16 narrow<f16>(float v) {
  return to_f16(v);
}

// One register of `lanes` consecutive elements of storage type T, in the arithmetic type.
template <class T>
Vec<arithmetic<T>> load(const T* p) {
  return Vec<arithmetic<T>>::load(p);
}
template <class T>
Vec<arithmetic<T>> load(const T* p, int count) {
  using V = Vec<arithmetic<T>>;
  return count >= V::lanes ? V::load(p) : V::load(p, count);
}
template <class T, class V>
void store(T* p, V v) {
  v.store(p);
}
template <class T, class V>
void store(T* p, V v, int count) {
  if (count >= V::lanes)
    v.store(p);
  else
    v.store(p, count);
}

}  // namespace fastconv::FASTCONV_ISA
