// exp and the activations on it, for a whole register.
//
// exp: x = n·ln 2 + r with n whole, ln 2 in two parts of which the first times n is exact, and a polynomial in r; the
// power of two comes last, so that results round once down to the smallest subnormal number. NaN stays NaN, overflow is
// infinity. sigmoid is e / (1 + e) with e = exp(x), and its power of two is multiplied last too: e itself may be
// subnormal where x·e is not. Where 1 + e is e, more of x changes nothing.
//
// gelu: with the normal distribution's upper tail Q(a), gelu(x) = max(x, 0) - |x|·Q(|x|), which loses no digits where
// 1 + erf would cancel. a·Q(a) = exp(-a²/2) · t·H(q) with t = a / (a + k), q = 2t - 1 and H a polynomial:
// a Chebyshev interpolation of exp(a²/2)·Q(a)·(a + k), made with 60 digits. a² is taken in two parts.
//
// silu and gelu of minus infinity are NaN, as torch's are.
//
// Largest errors over the whole range, in units of the last place, float and double: exp 0.95 and 1.00, sigmoid 2.03
// and 1.99, silu 2.83 and 2.46, gelu 3.18 and 3.43 (4.19 and 4.27 without fma). Before, a lane at a time through the C
// library, and now (Zen 4, 2 threads, 2026-11-22, float, AVX-512 / AVX2, ms of the whole convolution): 16->96@112 1x1
// batch 8, 2.0 / 2.3 without activation, silu 20.0 / 20.6 -> 5.9 / 9.1, sigmoid 19.8 / 20.5 -> 5.7 / 8.0, gelu 92 / 97
// -> 6.5 / 10.5; depthwise 144@56 batch 8, 0.9 / 0.8, silu 7.3 / 8.0 -> 1.8 / 3.3, gelu 33 / 34 -> 2.0 / 4.2. Torch's
// silu alone takes 15 ms on the first one's result. What is left on the first is that its sums pass through a tile and
// are stored by way of the caches, where those without activation go past them.
#pragma once

#include "scale.h"

namespace fastconv::FASTCONV_ISA {

namespace detail {

template <class A>
struct ExpTable;

template <>
struct ExpTable<float> {
  static constexpr float lowest = -120, highest = 89;  // exp is 0 below, even times its argument; infinite above
  static constexpr float enough = 88;                  // 1 + exp is exp from far below, and exp is finite
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float whole = 0x1.8p23f;   // added and taken away again it leaves whole numbers
  static constexpr float coarse = 0x1.8p15f;  // likewise numbers of 12 digits below tail_end
  // (exp(r) - 1 - r) / r², from r^0 on; the error is 2^-32 of exp.
  static constexpr float q[] = {0.5f, 0.166666672f, 0.0416664556f, 0.00833331048f, 0.00139345415f, 0.000198919806f};
  static constexpr float tail_end = 14.5f;  // gelu(-a) is 0 from here on
  static constexpr float k = 3;
  static constexpr float tail[] = {0.729083717f,     -0.509332001f,   0.230017677f,   -0.0472627468f,
                                   -0.0104622934f,   0.00696981326f,  0.00102413574f, -0.00103422208f,
                                   -0.000244582654f, 0.000133125912f, 5.53559657e-5f};
};

template <>
struct ExpTable<double> {
  static constexpr double lowest = -760, highest = 710;
  static constexpr double enough = 709;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double whole = 0x1.8p52;
  static constexpr double coarse = 0x1.8p32;
  // The error is 2^-62 of exp.
  static constexpr double q[] = {0.5,
                                 0.16666666666666671,
                                 0.041666666666666671,
                                 0.0083333333333255443,
                                 0.0013888888888883327,
                                 0.00019841269876864356,
                                 2.4801587327007187e-5,
                                 2.7557252833516911e-6,
                                 2.75572718102198e-7,
                                 2.5106274733573296e-8,
                                 2.0915442297780116e-9};
  static constexpr double tail_end = 39;
  static constexpr double k = 6;
  static constexpr double tail[] = {
      0.77735177189336224,     -0.70100902959086553,   0.56896889181478294,   -0.41390358577559289,
      0.2679742458416971,      -0.15268023206441028,   0.075171915668125477,  -0.030985315509016793,
      0.010029820648351936,    -0.0021316051957232982, 3.2869980622442494e-5, 0.00018136032488251668,
      -6.475191429322486e-5,   1.0759772542319458e-6,  6.7964094169584348e-6, -1.800686073929392e-6,
      -4.3030600972602457e-7,  3.1187244991295677e-7,  9.4557269033711707e-9, -4.434552970785575e-8,
      -1.3445617291223301e-10, 5.2376366060102334e-9,  8.8768408020238293e-10};
};

template <class A, size_t count>
[[gnu::always_inline]] inline Vec<A> polynomial(const A (&c)[count], Vec<A> x) {
  Vec<A> sum = Vec<A>::broadcast(c[count - 1]);
  for (size_t i = count - 1; i-- > 0;) sum = fma(sum, x, Vec<A>::broadcast(c[i]));
  return sum;
}

// p·2^n.
template <class A>
struct Power {
  Vec<A> p, n;
  Vec<A> value() const { return scale(p, n); }
};

// The power of two nearest to exp(x).
template <class A>
[[gnu::always_inline]] inline Vec<A> whole_powers(Vec<A> x) {
  constexpr A log2_e = static_cast<A>(1.4426950408889634);
  const Vec<A> whole = Vec<A>::broadcast(ExpTable<A>::whole);
  return fma(x, Vec<A>::broadcast(log2_e), whole) - whole;
}

template <class A>
[[gnu::always_inline]] inline Power<A> exp_of_rest(Vec<A> r, Vec<A> n) {
  return {fma(r * r, polynomial(ExpTable<A>::q, r), r) + Vec<A>::broadcast(1), n};
}

// exp(x + low) and exp(x); the argument within the range.
template <class A>
[[gnu::always_inline]] inline Power<A> exp_parts(Vec<A> x, Vec<A> low) {
  using Table = ExpTable<A>;
  const Vec<A> n = whole_powers(x + low);
  const Vec<A> r = fma(n, Vec<A>::broadcast(-Table::ln2_high), x) + low;
  return exp_of_rest(fma(n, Vec<A>::broadcast(-Table::ln2_low), r), n);
}

template <class A>
[[gnu::always_inline]] inline Power<A> exp_parts(Vec<A> x) {
  using Table = ExpTable<A>;
  const Vec<A> n = whole_powers(x), r = fma(n, Vec<A>::broadcast(-Table::ln2_high), x);
  return exp_of_rest(fma(n, Vec<A>::broadcast(-Table::ln2_low), r), n);
}

// NaN where x is minus infinity, else y.
template <class A>
[[gnu::always_inline]] inline Vec<A> unless_minus_infinite(Vec<A> x, Vec<A> y) {
  return fma(at_most(x, Vec<A>::zero()), Vec<A>::zero(), y);
}

}  // namespace detail

// Within 1 ulp.
template <class A>
Vec<A> exp(Vec<A> x) {
  using V = Vec<A>;
  using Table = detail::ExpTable<A>;
  return detail::exp_parts(at_most(at_least(x, V::broadcast(Table::lowest)), V::broadcast(Table::highest))).value();
}

template <class A>
Vec<A> sigmoid(Vec<A> x) {
  using V = Vec<A>;
  using Table = detail::ExpTable<A>;
  const auto e = detail::exp_parts(at_most(at_least(x, V::broadcast(Table::lowest)), V::broadcast(Table::enough)));
  return scale(e.p / (V::broadcast(1) + e.value()), e.n);
}

template <class A>
Vec<A> silu(Vec<A> x) {
  using V = Vec<A>;
  using Table = detail::ExpTable<A>;
  const V within = at_least(x, V::broadcast(Table::lowest));
  const auto e = detail::exp_parts(at_most(within, V::broadcast(Table::enough)));
  return detail::unless_minus_infinite(x, scale(within * e.p / (V::broadcast(1) + e.value()), e.n));
}

// x·sigmoid(v) with v = 2·sqrt(2/pi)·(x + 0.044715·x³): gelu by tanh. Where x³ overflows, sigmoid is 0 or 1.
template <class A>
Vec<A> gelu_tanh(Vec<A> x) {
  using V = Vec<A>;
  using Table = detail::ExpTable<A>;
  constexpr A twice_root = static_cast<A>(1.5957691216057308), cubic = static_cast<A>(0.044715);
  const V v = V::broadcast(twice_root) * fma(V::broadcast(cubic) * (x * x), x, x);
  const V within = at_least(v, V::broadcast(Table::lowest));
  const auto e = detail::exp_parts(at_most(within, V::broadcast(Table::enough)));
  return detail::unless_minus_infinite(x, x * scale(e.p / (V::broadcast(1) + e.value()), e.n));
}

template <class A>
Vec<A> gelu(Vec<A> x) {
  using V = Vec<A>;
  using Table = detail::ExpTable<A>;
  const V a = at_most(at_least(V::zero() - x, x), V::broadcast(Table::tail_end));
  const V coarse = V::broadcast(Table::coarse), high = (a + coarse) - coarse, half = V::broadcast(A(-0.5));
  const detail::Power<A> e = detail::exp_parts(high * high * half, (a - high) * (a + high) * half);
  const V t = a / (a + V::broadcast(Table::k));
  const V tail = t * detail::polynomial(Table::tail, (t + t) - V::broadcast(1));
  return detail::unless_minus_infinite(x, at_least(x, V::zero()) - scale(tail * e.p, e.n));
}

}  // namespace fastconv::FASTCONV_ISA
