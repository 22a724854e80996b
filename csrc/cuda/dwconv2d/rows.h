// One row of taps of a depthwise filter, for N neighbouring pixels of V neighbouring channels in one thread's
// registers.
#pragma once

#include "cuda/common/vectors.h"

namespace fastconv::FASTCONV_GPU {

template <class T, int V>
FASTCONV_DEVICE void add_products(float (&into)[V], const Pack<T, V>& x, const float (&weight)[V]) {
  FASTCONV_UNROLL
  for (int i = 0; i < V; ++i) into[i] += widen(x.v[i]) * weight[i];
}

// S taps next to each other, with a stride of U between outputs: each source pixel is loaded once. pixel(i): the i-th
// of them from the left. weights(to, s): those of tap s from the left.
template <int S, int U, class T, int V, int N, class Pixel, class Weights>
FASTCONV_DEVICE void add_sliding(float (&sum)[N][V], Pixel&& pixel, Weights&& weights) {
  constexpr int seen = (N - 1) * U + S;
  Pack<T, V> x[seen];
  FASTCONV_UNROLL
  for (int i = 0; i < seen; ++i) x[i] = pixel(i);
  FASTCONV_UNROLL
  for (int s = 0; s < S; ++s) {
    float weight[V];
    weights(weight, s);
    FASTCONV_UNROLL
    for (int q = 0; q < N; ++q) add_products(sum[q], x[q * U + s], weight);
  }
}

// Any taps, one by one. pixel(q, s): the one that tap s of output q reads.
template <class T, int V, int N, class Pixel, class Weights>
FASTCONV_DEVICE void add_taps(float (&sum)[N][V], int taps, Pixel&& pixel, Weights&& weights) {
  for (int s = 0; s < taps; ++s) {
    float weight[V];
    weights(weight, s);
    FASTCONV_UNROLL
    for (int q = 0; q < N; ++q) add_products(sum[q], Pack<T, V>(pixel(q, s)), weight);
  }
}

}  // namespace fastconv::FASTCONV_GPU
