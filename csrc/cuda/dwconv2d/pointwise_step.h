// One step of pointwise.cu along its depth: 128 bytes of channels of both operands of the product, the left made from a
// depthwise filter, the right brought.
#pragma once

#include "cuda/conv2d/pack.h"
#include "cuda/conv2d/store.h"
#include "cuda/conv2d/tile.h"
#include "cuda/conv2d/walk.h"
#include "rows.h"

namespace fastconv::FASTCONV_GPU {

// Shared memory holds two steps of each operand, each of them in halves of tile.h's 64 bytes of depth, where the
// block's pixels lie, and two steps of the depthwise filter in float: [tap][channel].
template <int Rows, int Columns>
struct StepTile : Tile<Rows, Columns, 32, 32> {
  static constexpr int halves = 2, chunks = halves * chunks_of_row;  // of 16 bytes, in a step
  static constexpr int lines = StepTile::threads / chunks;           // runs, or columns, that all threads have at once
  static constexpr int run = 2;                                      // neighbouring pixels of a thread
  static constexpr int runs = Rows / run;
  static constexpr int left_bytes = Rows * row_bytes, right_bytes = Columns * row_bytes;
  static constexpr int right_at = 2 * halves * left_bytes, places_at = right_at + 2 * halves * right_bytes;
  static constexpr int taps_at = places_at + runs * vector_bytes;
  static_assert(runs % lines == 0 && Columns % lines == 0 && runs <= StepTile::threads);
  static_assert(Rows * StepTile::sums_pitch * 4 <= taps_at, "The sums take the operands' place in the end.");
  template <class T>
  static constexpr int channels = chunks * wide<T>;  // of a step

  template <class T>
  static constexpr int64_t shared_bytes_of(int64_t taps) {
    return taps_at + 2 * taps * channels<T> * static_cast<int64_t>(sizeof(float));
  }
  FASTCONV_DEVICE static Shared<char> left(int step, int half) {
    return Shared<char>::at((step % 2 * halves + half) * left_bytes);
  }
  FASTCONV_DEVICE static Shared<char> right(int step, int half) {
    return Shared<char>::at(right_at + (step % 2 * halves + half) * right_bytes);
  }
  // Of each run: image, and where its first pixel's window begins.
  FASTCONV_DEVICE static Shared<int> places() { return Shared<int>::at(places_at); }
  template <class T>
  FASTCONV_DEVICE static Shared<float> taps_of(int step, int taps) {
    return Shared<float>::at(taps_at) + static_cast<int64_t>(step % 2) * taps * channels<T>;
  }
};

// The activation between the two convolutions; bounds where it is no more, which the many values of a thread need not
// tell apart.
struct HiddenActivation {
  Activation kind;
  float alpha;
  bool bounded;
  Bounds bounds;

  static HiddenActivation of(const Epilogue& e) {
    const std::optional<Bounds> bounds = Bounds::of(e.activation);
    return {e.activation, static_cast<float>(e.alpha), bounds.has_value(), bounds.value_or(Bounds{})};
  }
  template <int V>
  FASTCONV_DEVICE void apply(float (&value)[V]) const {
    if (bounded) {
      FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) value[i] = bounds(value[i]);
    } else {
      FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) value[i] = activate(kind, alpha, value[i]);
    }
  }
};

template <class T>
struct PointwiseParams {
  const T* source;
  const T* taps_from;                           // the depthwise filter
  const T* bias;                                // its own; null: none
  const T* filter;                              // of the 1x1: a row for each written channel
  int64_t image, pixel, channel;                // strides of the source, in elements
  int64_t taps_channel, taps_row, taps_column;  // likewise
  int64_t filter_row;
  int height, width;  // of the source
  int depth, padded;  // depthwise results of a pixel; with the 1x1 filter's padding
  int multiplier;     // depthwise filters a channel
  int columns;        // written channels
  int taps, filter_width;
  int across, runs;  // runs of a row of pixels; of all of them
  int column_tiles;
  Walk h, w;
  HiddenActivation hidden;
  Tail<T> tail;
  bool tail_takes_vectors;
};

// The depthwise filter's taps of a step, zeros behind the last channel.
template <class Tile, class T>
FASTCONV_DEVICE void bring_taps(const PointwiseParams<T>& p, int step) {
  constexpr int channels = Tile::template channels<T>;
  const Shared<float> taps = Tile::template taps_of<T>(step, p.taps);
  for (int i = this_thread(); i < p.taps * channels; i += Tile::threads) {
    const int tap = i / channels, k = step * channels + i % channels;
    float value = 0;
    if (k < p.depth)
      value = widen(fetch(p.taps_from + k * p.taps_channel + tap / p.filter_width * p.taps_row +
                          tap % p.filter_width * p.taps_column));
    taps.put(i, value);
  }
}

// The 1x1 filters' part of a step.
template <class Tile, class T>
FASTCONV_DEVICE void bring_filter(const PointwiseParams<T>& p, int step, int first_column) {
  const int line = this_thread() / Tile::chunks, chunk = this_thread() % Tile::chunks;
  const int k = step * Tile::template channels<T> + chunk * wide<T>;
  const Shared<char> right = Tile::right(step, chunk / chunks_of_row);
  FASTCONV_UNROLL
  for (int i = 0; i < Tile::columns / Tile::lines; ++i) {
    const int at = line + i * Tile::lines, column = first_column + at;
    const bool inside = k < p.padded && column < p.columns;
    const Shared<T> to{reinterpret_cast<T*>((right + chunk_at(at, chunk % chunks_of_row)).data)};
    copy_async(to, inside ? p.filter + column * p.filter_row + k : p.filter, inside);
  }
}

// Where the block's runs lie, for all steps.
template <class Tile, class T>
FASTCONV_DEVICE void find_places(const PointwiseParams<T>& p, int first_run) {
  if (this_thread() >= Tile::runs) return;
  const int run = first_run + this_thread(), line = run / p.across;
  const int top = line % p.h.count * p.h.stride + p.h.first, left = run % p.across * Tile::run * p.w.stride + p.w.first;
  constexpr int never_inside = -0x40000000;
  Tile::places().write(4 * this_thread(), Pack<int, 4>{{line / p.h.count, run < p.runs ? top : never_inside, left, 0}});
}

// The depthwise results of a step: a thread makes those of a run and four channels. With eight, f16 and bf16 would need
// more registers than two blocks leave; a row of threads reads whole lines either way.
template <class Tile, class T>
struct Depthwise {
  static constexpr int V = 4, channels = Tile::template channels<T>, across = channels / V;
  static constexpr int lines = Tile::threads / across;  // runs that all threads have at once
  static_assert(Tile::runs % lines == 0);
  const PointwiseParams<T>& p;
  int step, run, first;  // first: channel of the step
  int n, top, left;

  FASTCONV_DEVICE Depthwise(const PointwiseParams<T>& params, int own_step, int part)
      : p(params), step(own_step), run(part * lines + this_thread() / across), first(this_thread() % across * V) {
    const Pack<int, 4> place = Tile::places().template read<4>(4 * run);
    n = place.v[0], top = place.v[1], left = place.v[2];
  }

  FASTCONV_DEVICE Shared<T> result(int pixel) const {
    const int chunk = first / wide<T>;
    const Shared<char> tile = Tile::left(step, chunk / chunks_of_row);
    const Shared<char> at = tile + chunk_at(run * Tile::run + pixel, chunk % chunks_of_row);
    return Shared<T>{reinterpret_cast<T*>(at.data)} + first % wide<T>;
  }

  template <int S, int U>
  FASTCONV_DEVICE void make() const {
    const int k = step * channels + first;
    const T* const image = p.source + n * p.image + k;
    const Shared<float> taps = Tile::template taps_of<T>(step, p.taps) + first;
    Pack<T, V> bias{};
    if (p.bias && k < p.depth) bias = load<V>(p.bias + k);
    float sum[Tile::run][V];
    FASTCONV_UNROLL
    for (int i = 0; i < V; ++i) FASTCONV_UNROLL
    for (int q = 0; q < Tile::run; ++q) sum[q][i] = widen(bias.v[i]);
    FASTCONV_UNROLL_BY(1)
    for (int r = 0; r < p.h.taps; ++r) {
      const int y = top + r * p.h.step;
      if (k >= p.depth || static_cast<unsigned>(y) >= static_cast<unsigned>(p.height)) continue;
      const T* const line = image + static_cast<int64_t>(y) * p.width * p.pixel;
      auto pixel = [&](int x) {
        return static_cast<unsigned>(x) < static_cast<unsigned>(p.width) ? load<V>(line + x * p.pixel) : Pack<T, V>{};
      };
      auto weights = [&](float (&to)[V], int s) {
        taps.read_all(to, static_cast<int64_t>(r * p.filter_width + s) * channels);
      };
      if constexpr (S > 0)
        add_sliding<S, U, T>(sum, [&](int i) { return pixel(left + i); }, weights);
      else
        add_taps<T>(sum, p.w.taps, [&](int q, int s) { return pixel(left + q * p.w.stride + s * p.w.step); }, weights);
    }
    FASTCONV_UNROLL
    for (int q = 0; q < Tile::run; ++q) {
      p.hidden.apply(sum[q]);
      Pack<T, V> made;
      FASTCONV_UNROLL
      for (int i = 0; i < V; ++i) made.v[i] = narrow<T>(sum[q][i]);
      result(q).write(0, made);
    }
  }

  FASTCONV_DEVICE void make_by_elements() const {
    const Shared<float> taps = Tile::template taps_of<T>(step, p.taps);
    for (int e = 0; e < V; ++e) {
      const int own = first + e, k = step * channels + own;
      const T* const map = p.source + n * p.image + k / p.multiplier * p.channel;
      float sum[Tile::run] = {};
      for (int tap = 0; tap < p.taps && k < p.depth; ++tap) {
        const int y = top + tap / p.filter_width * p.h.step;
        if (static_cast<unsigned>(y) >= static_cast<unsigned>(p.height)) continue;
        const float weight = taps.get(static_cast<int64_t>(tap) * channels + own);
        FASTCONV_UNROLL
        for (int q = 0; q < Tile::run; ++q) {
          const int x = left + q * p.w.stride + tap % p.filter_width * p.w.step;
          if (static_cast<unsigned>(x) < static_cast<unsigned>(p.width))
            sum[q] += widen(fetch(map + (static_cast<int64_t>(y) * p.width + x) * p.pixel)) * weight;
        }
      }
      const float bias = p.bias && k < p.depth ? widen(fetch(p.bias + k)) : 0.0f;
      FASTCONV_UNROLL
      for (int q = 0; q < Tile::run; ++q) sum[q] += bias;
      p.hidden.apply(sum);
      FASTCONV_UNROLL
      for (int q = 0; q < Tile::run; ++q) result(q).put(e, narrow<T>(sum[q]));
    }
  }
};

}  // namespace fastconv::FASTCONV_GPU
