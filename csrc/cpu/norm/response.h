// What both layouts of a local response norm share: the window over the channels, and the power of its sum. A half and
// three quarters are roots, whatever else is the C library's, lane by lane.
#pragma once

#include <algorithm>

#include "finish.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA::norm {

template <class A>
class Windows {
 public:
  using V = Vec<A>;

  Windows(const Problem& p, const Response& response)
      : channels(p.c),
        before(std::min(p.size / 2, p.c - 1)),
        after(std::min((p.size - 1) / 2, p.c - 1)),
        share_(static_cast<A>(response.alpha / static_cast<double>(p.size))),
        k_(static_cast<A>(response.k)),
        beta_(static_cast<A>(response.beta)),
        bend_(static_cast<A>(2 * response.alpha * response.beta / static_cast<double>(p.size))),
        power_(response.beta == 0.5    ? Power::half
               : response.beta == 0.75 ? Power::three_quarters
                                       : Power::other) {}

  const int64_t channels, before, after;

  int64_t span() const { return before + 1 + after; }
  // The window of channel c, and the channels whose windows hold c.
  int64_t first(int64_t c) const { return std::max(c - before, int64_t{0}); }
  int64_t last(int64_t c) const { return std::min(c + after, channels - 1); }
  int64_t first_over(int64_t c) const { return std::max(c - after, int64_t{0}); }
  int64_t last_over(int64_t c) const { return std::min(c + before, channels - 1); }

  // y of an x whose window has this sum of squares.
  V respond(V x, V squares) const { return x / raised(base(squares), beta_); }
  // What of dx needs no neighbour, dy·s^-beta, and what the neighbours need, x·dy·s^(-beta - 1).
  std::pair<V, V> split(V x, V dy, V squares) const {
    const V s = base(squares), inverse = V::broadcast(1) / s;
    const V own = dy * (power_ == Power::other ? raised(s, -beta_) : raised(inverse, beta_));
    return {own, own * x * inverse};
  }
  // dx from the first of a split, and the sum of the second over the channels whose windows hold this one.
  V join(V x, V own, V sum) const { return own - V::broadcast(bend_) * x * sum; }

 private:
  enum class Power { half, three_quarters, other };

  V base(V squares) const { return fma(squares, V::broadcast(share_), V::broadcast(k_)); }

  V raised(V s, A exponent) const {
    if (power_ == Power::other) return raised_lanes(s, exponent);
    const V root = sqrt(s);
    return power_ == Power::half ? root : root * sqrt(root);
  }
  [[gnu::noinline, gnu::cold]] static V raised_lanes(V s, A exponent) {
    A lanes[V::lanes];
    s.store(lanes);
    for (A& lane : lanes) lane = std::pow(lane, exponent);
    return V::load(lanes);
  }

  A share_, k_, beta_, bend_;
  Power power_;
};

// f(how many registers, first element, how many elements a register) over `count` elements that lie together; several
// registers side by side hide the latency of an addition.
template <class V, class F>
void in_strips(int64_t count, F&& f) {
  constexpr int strip = 4;
  int64_t i = 0;
  for (; i + strip * V::lanes <= count; i += strip * V::lanes) f(std::integral_constant<int, strip>(), i, Whole<V>());
  for (; i + V::lanes <= count; i += V::lanes) f(std::integral_constant<int, 1>(), i, Whole<V>());
  if (i < count) f(std::integral_constant<int, 1>(), i, static_cast<int>(count - i));
}

}  // namespace fastconv::FASTCONV_ISA::norm
