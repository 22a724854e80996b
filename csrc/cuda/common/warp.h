// Values that lanes of a warp hand each other.
#pragma once

#include "target.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr uint32_t all_lanes = 0xffffffffu;

#if defined(__CUDACC__)

// The value of lane (own ^ distance).
template <class T>
FASTCONV_DEVICE T shuffle_xor(T value, int distance, uint32_t mask = all_lanes) {
  return __shfl_xor_sync(mask, value, distance);
}

#else

namespace detail {

template <class T>
struct ShuffleOperand {
  T value;
  int distance;
};

template <class T>
void shuffle_xor(void* const operands[warp_lanes], uint32_t mask) {
  T out[warp_lanes] = {};
  for (int lane = 0; lane < warp_lanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int from = lane ^ static_cast<const ShuffleOperand<T>*>(operands[lane])->distance;
    if (from >= warp_lanes || !(mask >> from & 1))
      throw Failure("Lane " + std::to_string(lane) + " shuffles from lane " + std::to_string(from) +
                    ", which is not in the mask " + std::to_string(mask) + ".");
    out[lane] = static_cast<const ShuffleOperand<T>*>(operands[from])->value;
  }
  for (int lane = 0; lane < warp_lanes; ++lane)
    if (mask >> lane & 1) static_cast<ShuffleOperand<T>*>(operands[lane])->value = out[lane];
}

}  // namespace detail

template <class T>
T shuffle_xor(T value, int distance, uint32_t mask = all_lanes, Site site = Site::here()) {
  detail::ShuffleOperand<T> operand{value, distance};
  meet(mask, "shuffle_xor", &operand, detail::shuffle_xor<T>, site);
  return operand.value;
}

#endif

// The sum over all lanes, in an order that is always the same.
FASTCONV_DEVICE float sum_of_warp(float value) {
  FASTCONV_UNROLL
  for (int distance = lanes_of_warp / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

}  // namespace fastconv::FASTCONV_GPU
