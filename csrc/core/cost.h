// What a call costs, counted before it runs, so that algorithms can be compared for one problem. The counts are exact;
// the rates are those of a nominal core, since only the order of two estimates matters.
#pragma once

#include <algorithm>

#include "types.h"

namespace fastconv {

// Summed over the threads.
struct Cost {
  double flops = 0;      // of the products, empty lanes included
  double moved = 0;      // bytes loaded and stored in L1 and L2 beside the products: packing, transforms, staging, sums
  double shared = 0;     // bytes that the caches of one core do not hold
  double memory = 0;     // every operand once
  double imbalance = 1;  // the busiest thread's share of the work, times the threads
};

// What a machine does in a second.
struct Rates {
  double flops;   // of one core's multiply-adds
  double moved;   // bytes of one core's loads and stores to L1 and L2
  double shared;  // bytes of one core from the last cache
  double memory;  // bytes of all cores
};

// Of a Zen 4 core (2026-11-22), fitted to igemm and Winograd on the layers of resnet50 and vgg16, batch 1 and 8, both
// layouts, AVX2 and AVX-512 (its pipes are 256 bits wide, so both run at one rate). A Winograd estimate was 0.83
// to 1.11 times the measured time in 90 % of them, before the overhead of its sums was counted by depth. The others are
// guesses: they only keep the ratio of FLOPs to bytes plausible.
//
// wide: AVX-512 on pipes of 512 bits (cpu_features.h). Of a Zen 5 core (2026-11-23): igemm makes 237 GFLOP/s at 512@28,
// Winograd's transforms move 86 to 123 GB/s, and memory gives a classifier's weights at 42 GB/s.
constexpr Rates nominal_rates(Isa isa, bool wide) {
  switch (isa) {
    case Isa::avx512:
      if (wide) return {230e9, 110e9, 35e9, 40e9};
      [[fallthrough]];
    case Isa::avx2:
      return {105e9, 77e9, 25e9, 20e9};
    case Isa::neon:
      return {50e9, 40e9, 20e9, 20e9};
    case Isa::scalar:
      break;
  }
  return {6e9, 10e9, 10e9, 10e9};
}

// The cores' own work, unless the caches or the memory they share take longer; of two kernels that wait for the memory
// the one with less work is the better.
constexpr double estimated_seconds(const Cost& cost, int threads, const Rates& rates) {
  constexpr double never_hidden = 1.0 / 16;
  const double core = (cost.flops / rates.flops + cost.moved / rates.moved) * cost.imbalance / threads;
  return std::max({core, cost.shared / rates.shared / threads, cost.memory / rates.memory}) + never_hidden * core;
}

}  // namespace fastconv
