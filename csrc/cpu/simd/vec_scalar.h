// The portable register: a small array the compiler may turn into whatever vectors the target has.
#pragma once

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Vec {
  static constexpr int lanes = 4;
  using scalar_type = T;
  T v[lanes];

  static Vec zero() { return {}; }
  static Vec broadcast(T x) {
    Vec r;
    for (T& lane : r.v) lane = x;
    return r;
  }
  template <class S>
  static Vec load(const S* p, int count = lanes) {
    Vec r{};
    for (int i = 0; i < count; ++i) r.v[i] = static_cast<T>(to_arithmetic(p[i]));
    return r;
  }
  template <class S>
  void store(S* p, int count = lanes) const {
    for (int i = 0; i < count; ++i) p[i] = from_arithmetic<S>(v[i]);
  }

  friend Vec operator+(Vec a, Vec b) {
    return zip(a, b, [](T x, T y) { return x + y; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return zip(a, b, [](T x, T y) { return x - y; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return zip(a, b, [](T x, T y) { return x * y; });
  }
  friend Vec operator/(Vec a, Vec b) {
    return zip(a, b, [](T x, T y) { return x / y; });
  }

 private:
  template <class F>
  static Vec zip(Vec a, Vec b, F f) {
    for (int i = 0; i < lanes; ++i) a.v[i] = f(a.v[i], b.v[i]);
    return a;
  }
  static double to_arithmetic(double x) { return x; }
  static float to_arithmetic(float x) { return x; }
  static float to_arithmetic(bf16 x) { return to_float(x); }
  static float to_arithmetic(f16 x) { return to_float(x); }
  template <class S>
  static S from_arithmetic(T x) {
    if constexpr (std::is_same_v<S, bf16>)
      return to_bf16(x);
    else if constexpr (std::is_same_v<S, f16>)
      return to_f16(x);
    else
      return x;
  }
};

template <class T>
Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  for (int i = 0; i < Vec<T>::lanes; ++i) c.v[i] = a.v[i] * b.v[i] + c.v[i];
  return c;
}
template <class T>
Vec<T> sqrt(Vec<T> a) {
  for (int i = 0; i < Vec<T>::lanes; ++i) a.v[i] = std::sqrt(a.v[i]);
  return a;
}
// NaN in either operand gives NaN, as torch's max and relu do.
template <class T>
Vec<T> max(Vec<T> a, Vec<T> b) {
  for (int i = 0; i < Vec<T>::lanes; ++i) a.v[i] = (a.v[i] > b.v[i] || a.v[i] != a.v[i]) ? a.v[i] : b.v[i];
  return a;
}
template <class T>
Vec<T> min(Vec<T> a, Vec<T> b) {
  for (int i = 0; i < Vec<T>::lanes; ++i) a.v[i] = (a.v[i] < b.v[i] || a.v[i] != a.v[i]) ? a.v[i] : b.v[i];
  return a;
}
// x within a bound; NaN stays NaN.
template <class T>
Vec<T> at_least(Vec<T> x, Vec<T> bound) {
  return max(x, bound);
}
template <class T>
Vec<T> at_most(Vec<T> x, Vec<T> bound) {
  return min(x, bound);
}
// a where x > 0, b elsewhere (NaN included).
template <class T>
Vec<T> where_positive(Vec<T> x, Vec<T> a, Vec<T> b) {
  for (int i = 0; i < Vec<T>::lanes; ++i) a.v[i] = x.v[i] > 0 ? a.v[i] : b.v[i];
  return a;
}

}  // namespace fastconv::FASTCONV_ISA
