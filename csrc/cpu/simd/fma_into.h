// fma_into(acc, a, b): acc += a * b in one instruction, out of the compiler's hands. GCC 12 spills large accumulator
// arrays written with intrinsics (it moves every accumulator through a copy) and loses a third of the machine's rate.
#pragma once

#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if defined(__AVX512F__)
inline void fma_into(Vec<float>& acc, Vec<float> a, Vec<float> b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}
inline void fma_into(Vec<double>& acc, Vec<double> a, Vec<double> b) {
  asm("vfmadd231pd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}
#elif defined(__AVX2__)
inline void fma_into(Vec<float>& acc, Vec<float> a, Vec<float> b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(acc.v) : "x"(a.v), "x"(b.v));
}
inline void fma_into(Vec<double>& acc, Vec<double> a, Vec<double> b) {
  asm("vfmadd231pd %2, %1, %0" : "+x"(acc.v) : "x"(a.v), "x"(b.v));
}
#else
template <class T>
void fma_into(Vec<T>& acc, Vec<T> a, Vec<T> b) {
  acc = fma(a, b, acc);
}
#endif

}  // namespace fastconv::FASTCONV_ISA
