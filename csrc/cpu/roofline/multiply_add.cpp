// The burst behind multiply_add_burst(): chains of multiply-adds that depend only on themselves, all in registers.
// Two units with a latency of four cycles need eight chains in flight; twelve, the accumulators of the dense
// micro-kernel, cover five cycles as well and still fit the sixteen registers of AVX2.
#include "simd/vec.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int chains = 12;
// Near 1 and near 0, so that the values stay normal numbers for any number of rounds.
constexpr double scale = 0.999, shift = 0.001;

template <class A>
double burst(int64_t rounds) {
  using V = Vec<A>;
  const V factor = V::broadcast(static_cast<A>(scale)), term = V::broadcast(static_cast<A>(shift));
  V sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = V::broadcast(static_cast<A>(c));
  for (int64_t round = 0; round < rounds; ++round)
    for (int c = 0; c < chains; ++c) sums[c] = fma(sums[c], factor, term);
  V total = V::zero();
  for (int c = 0; c < chains; ++c) total = total + sums[c];
  [[maybe_unused]] volatile A sink[V::lanes];  // the result must be wanted by somebody
  A lanes[V::lanes];
  total.store(lanes);
  for (int i = 0; i < V::lanes; ++i) sink[i] = lanes[i];
  return 2.0 * chains * V::lanes * static_cast<double>(rounds);
}

}  // namespace

double multiply_add_burst(bool wide, int64_t rounds) { return wide ? burst<double>(rounds) : burst<float>(rounds); }

}  // namespace fastconv::FASTCONV_ISA
