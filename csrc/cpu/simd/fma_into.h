// acc += a * b as exactly one instruction. Written with intrinsics, a register tile of a dozen or more accumulators is
// rearranged and spilled by GCC 12 (55-60 instead of 92-100 GFLOP/s a core on Zen 4); an opaque instruction is not.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// fma_into(acc, a, p) multiplies by *p in every lane: free with AVX-512, a load of its own elsewhere. hold(v) keeps the
// compiler from making v anew at each use.
#if defined(__AVX512F__)
inline constexpr int vector_registers = 32;
[[gnu::always_inline]] inline void fma_into(Vec<float>& acc, Vec<float> a, const float* p) {
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(a.v), "m"(*p));
}
[[gnu::always_inline]] inline void fma_into(Vec<double>& acc, Vec<double> a, const double* p) {
  asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(acc.v) : "v"(a.v), "m"(*p));
}
template <class A>
[[gnu::always_inline]] inline void hold(Vec<A>& v) {
  asm("" : "+v"(v.v));
}
[[gnu::always_inline]] inline void fma_into(Vec<float>& acc, Vec<float> a, Vec<float> b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}
[[gnu::always_inline]] inline void fma_into(Vec<double>& acc, Vec<double> a, Vec<double> b) {
  asm("vfmadd231pd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}
#elif defined(__AVX2__)
inline constexpr int vector_registers = 16;
template <class A>
[[gnu::always_inline]] inline void hold(Vec<A>& v) {
  asm("" : "+x"(v.v));
}
[[gnu::always_inline]] inline void fma_into(Vec<float>& acc, Vec<float> a, Vec<float> b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(acc.v) : "x"(a.v), "x"(b.v));
}
[[gnu::always_inline]] inline void fma_into(Vec<double>& acc, Vec<double> a, Vec<double> b) {
  asm("vfmadd231pd %2, %1, %0" : "+x"(acc.v) : "x"(a.v), "x"(b.v));
}
#else
inline constexpr int vector_registers = 12;  // a modest tile: 4 pixels
template <class A>
[[gnu::always_inline]] inline void fma_into(Vec<A>& acc, Vec<A> a, Vec<A> b) {
  acc = fma(a, b, acc);
}
template <class A>
[[gnu::always_inline]] inline void hold(Vec<A>&) {}
#endif

#if !defined(__AVX512F__)
template <class A>
[[gnu::always_inline]] inline void fma_into(Vec<A>& acc, Vec<A> a, const A* p) {
  fma_into(acc, a, Vec<A>::broadcast(*p));
}
#endif

}  // namespace fastconv::FASTCONV_ISA
