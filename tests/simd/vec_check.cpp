// Every verb of Vec against its definition, lane by lane, for the instruction set this file is compiled for. Prints one
// line per violation; exits 1 when there was one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numbers>
#include <vector>

#include "cpu/simd/exp.h"
#include "cpu/simd/permute.h"
#include "cpu/simd/vec.h"

using namespace fastconv;
using namespace fastconv::FASTCONV_ISA;

namespace {

int failures = 0;

template <class A>
bool same(A a, A b) {
  return a == b || (a != a && b != b);
}

template <class A>
void expect(bool holds, const char* verb, int lane, A got, A wanted) {
  if (holds) return;
  ++failures;
  std::printf("%s lane %d: got %g, wanted %g\n", verb, lane, static_cast<double>(got), static_cast<double>(wanted));
}

template <class A>
const std::vector<A>& samples() {
  constexpr A nan = std::numeric_limits<A>::quiet_NaN(), inf = std::numeric_limits<A>::infinity();
  static const std::vector<A> values{
      0,       1,         -1, A(0.5), nan, inf, -inf,  A(3.25), -7, std::numeric_limits<A>::denorm_min(),
      A(1e30), A(-1e-30), 2,  3,      -4,  5,   A(6.5)};
  return values;
}

template <class A, class Vector, class Scalar>
void binary(const char* verb, Vector vector, Scalar scalar) {
  using V = Vec<A>;
  const auto& s = samples<A>();
  for (size_t shift = 0; shift < s.size(); ++shift) {
    A a[V::lanes], b[V::lanes], out[V::lanes];
    for (int i = 0; i < V::lanes; ++i) a[i] = s[i % s.size()], b[i] = s[(i + shift) % s.size()];
    vector(V::load(a), V::load(b)).store(out);
    for (int i = 0; i < V::lanes; ++i) expect(same(out[i], scalar(a[i], b[i])), verb, i, out[i], scalar(a[i], b[i]));
  }
}

template <class A>
void arithmetic_verbs() {
  using V = Vec<A>;
  binary<A>("+", [](V a, V b) { return a + b; }, [](A a, A b) { return a + b; });
  binary<A>("-", [](V a, V b) { return a - b; }, [](A a, A b) { return a - b; });
  binary<A>("*", [](V a, V b) { return a * b; }, [](A a, A b) { return a * b; });
  binary<A>("/", [](V a, V b) { return a / b; }, [](A a, A b) { return a / b; });
  binary<A>(
      "fma", [](V a, V b) { return fma(a, b, V::broadcast(1)); },
      [](A a, A b) { return this_isa == Isa::scalar ? a * b + 1 : std::fma(a, b, A(1)); });
  binary<A>("sqrt", [](V a, V b) { return sqrt(a * b); }, [](A a, A b) { return std::sqrt(a * b); });
  const auto nan_or = [](A a, A b, A chosen) {
    return a != a || b != b ? std::numeric_limits<A>::quiet_NaN() : chosen;
  };
  binary<A>("max", [](V a, V b) { return max(a, b); }, [&](A a, A b) { return nan_or(a, b, a > b ? a : b); });
  binary<A>("min", [](V a, V b) { return min(a, b); }, [&](A a, A b) { return nan_or(a, b, a < b ? a : b); });
  binary<A>(
      "where_positive", [](V a, V b) { return where_positive(a, b, V::broadcast(-2)); },
      [](A a, A b) { return a > 0 ? b : A(-2); });
}

// Loads and stores of every length; the elements behind them must stay as they are.
template <class T>
void memory_verbs(const char* type) {
  using A = arithmetic<T>;
  using V = Vec<A>;
  const auto& s = samples<A>();
  for (int count = 0; count <= V::lanes; ++count)
    for (size_t shift = 0; shift < s.size(); ++shift) {
      std::vector<T> source(V::lanes + 1), target(V::lanes + 1, narrow<T>(A(-77)));
      for (int i = 0; i <= V::lanes; ++i) source[i] = narrow<T>(i < count ? s[(i + shift) % s.size()] : A(99));
      A lanes[V::lanes];
      const V loaded = load(source.data(), count);
      loaded.store(lanes);
      for (int i = 0; i < V::lanes; ++i)
        expect(same(lanes[i], i < count ? widen(source[i]) : A(0)), type, i, lanes[i], widen(source[i]));
      store(target.data(), loaded, count);
      for (int i = 0; i <= V::lanes; ++i) {
        const A wanted = i < count ? widen(source[i]) : A(-77);
        expect(same(widen(target[i]), wanted), type, i, widen(target[i]), wanted);
      }
    }
}

// Rounding to the 16-bit types: the vector agrees with the scalar definition for values between representable ones.
template <class T>
void rounding(const char* type) {
  using V = Vec<float>;
  for (int step = -4000; step < 4000; ++step) {
    float in[V::lanes];
    T out[V::lanes];
    for (int i = 0; i < V::lanes; ++i) in[i] = std::ldexp(1.0f + (step * V::lanes + i) * 1e-5f, step % 30);
    V::load(in).store(out);
    for (int i = 0; i < V::lanes; ++i)
      expect(out[i].bits == narrow<T>(in[i]).bits, type, i, widen(out[i]), widen(narrow<T>(in[i])));
  }
}

// Every lane from every lane, and all from one.
template <class A>
void permutations(const char* type) {
  using V = Vec<A>;
  A from[V::lanes], to[V::lanes];
  for (int i = 0; i < V::lanes; ++i) from[i] = A(1) / A(i + 3);  // no byte like another lane's
  for (int step = 0; step <= V::lanes; ++step)
    for (int shift = 0; shift < V::lanes; ++shift) {
      int32_t lane[V::lanes];
      for (int i = 0; i < V::lanes; ++i) lane[i] = (i * step + shift) % V::lanes;
      permute(V::load(from), Permutation<A>::load(lane)).store(to);
      for (int i = 0; i < V::lanes; ++i) expect(to[i] == from[lane[i]], type, i, to[i], from[lane[i]]);
    }
}

// Functions whose results are rounded: at most `units` in the last place away from the exact one.
template <class A, class Vector, class Exact>
void function(const char* name, double units, const std::vector<A>& arguments, Vector vector, Exact exact) {
  using V = Vec<A>;
  using Limits = std::numeric_limits<A>;
  double worst = 0;
  A where = 0;
  for (size_t i = 0; i + V::lanes <= arguments.size(); i += V::lanes) {
    A out[V::lanes];
    vector(V::load(arguments.data() + i)).store(out);
    for (int lane = 0; lane < V::lanes; ++lane) {
      const A x = arguments[i + lane];
      const long double wanted = exact(static_cast<long double>(x));
      const A rounded = static_cast<A>(wanted);
      if (rounded != rounded || std::isinf(rounded)) {
        expect(same(out[lane], rounded), name, lane, out[lane], rounded);
        continue;
      }
      const int place = std::max(rounded == 0 ? Limits::min_exponent : std::ilogb(rounded) + 1, Limits::min_exponent);
      const double error = std::fabs(std::ldexp(static_cast<double>(out[lane] - wanted), Limits::digits - place));
      if (!(error <= worst)) worst = error, where = x;
    }
  }
  std::printf("%s of %d bits: %.3f units in the last place, at %g\n", name, static_cast<int>(sizeof(A)) * 8, worst,
              static_cast<double>(where));
  if (!(worst <= units)) ++failures;
}

// Every sign and exponent with many fractions, and the range where exp is neither 0 nor infinite.
template <class A>
std::vector<A> whole_range() {
  using Limits = std::numeric_limits<A>;
  std::vector<A> all = samples<A>();
  const int fractions = sizeof(A) == sizeof(float) ? 500 : 70, steps = 200000;
  for (int e = Limits::min_exponent - Limits::digits; e <= Limits::max_exponent; ++e)
    for (int i = 0; i < fractions; ++i) {
      const A x = std::ldexp(A(0.5) + A(i) / A(2 * fractions) + A(i) * Limits::epsilon(), e);
      all.push_back(x), all.push_back(-x);
    }
  const A end = sizeof(A) == sizeof(float) ? 106 : 750;
  for (int i = 0; i < steps; ++i) all.push_back(end * (A(2) * A(i) / A(steps) - 1)), all.push_back(all.back() / 5);
  all.resize(all.size() / Vec<A>::lanes * Vec<A>::lanes);
  return all;
}

template <class A>
void functions() {
  using V = Vec<A>;
  using Exact = long double;
  const std::vector<A> x = whole_range<A>();
  function<A>("exp", 1, x, [](V v) { return exp(v); }, [](Exact v) { return std::exp(v); });
  function<A>("sigmoid", 2.5, x, [](V v) { return sigmoid(v); }, [](Exact v) { return 1 / (1 + std::exp(-v)); });
  function<A>("silu", 3, x, [](V v) { return silu(v); }, [](Exact v) { return v / (1 + std::exp(-v)); });
  function<A>(
      "gelu", 4.5, x, [](V v) { return gelu(v); },
      [](Exact v) { return v * std::erfc(v * -std::numbers::sqrt2_v<Exact> / 2) / 2; });
}

}  // namespace

int main() {
  functions<float>();
  functions<double>();
  arithmetic_verbs<float>();
  arithmetic_verbs<double>();
  memory_verbs<float>("f32");
  memory_verbs<double>("f64");
  memory_verbs<bf16>("bf16");
  memory_verbs<f16>("f16");
  permutations<float>("permute f32");
  permutations<double>("permute f64");
  rounding<bf16>("bf16 rounding");
  rounding<f16>("f16 rounding");
  std::printf("%d violations\n", failures);
  return failures ? 1 : 0;
}
