// What a call costs, counted before it runs, so that algorithms can be compared for one problem. The counts are exact;
// the rates are those of a nominal core, since only the order of two estimates matters.
#pragma once

#include "types.h"

namespace fastconv {

// Summed over the threads.
struct Cost {
  double flops = 0;      // of the products, empty lanes included
  double moved = 0;      // bytes loaded and stored in L1 and L2 beside the products: packing, transforms, staging, sums
  double shared = 0;     // bytes that come from the last cache, since the caches of one core do not hold them
  double memory = 0;     // every operand once
  double imbalance = 1;  // the busiest thread's share of the work, times the threads
};

// What one core does in a second.
struct Rates {
  double flops, moved, shared, memory;
};

// Fitted to kernels on one core of a Zen 4 (2026-11-22); multiply-adds scale with the width of a register up to what
// its two 256-bit pipes take.
constexpr Rates nominal_rates(Isa isa) {
  switch (isa) {
    case Isa::avx2:
    case Isa::avx512:
      return {105e9, 60e9, 20e9, 12e9};
    case Isa::neon:
      return {50e9, 30e9, 15e9, 10e9};
    case Isa::scalar:
      break;
  }
  return {6e9, 8e9, 8e9, 8e9};
}

constexpr double estimated_seconds(const Cost& cost, int threads, const Rates& rates) {
  const double core = cost.flops / rates.flops + cost.moved / rates.moved + cost.shared / rates.shared;
  return core * cost.imbalance / threads + cost.memory / (rates.memory * threads);
}

}  // namespace fastconv
