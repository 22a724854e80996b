// The two ends of a dgrad by phases where tensors are not pixels of neighbouring channels: the source laid out anew,
// and results turned into planes.
#pragma once

#include "cpu/epilogue.h"
#include "phases_shape.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA::phases {

// The source as pixels `shape.pixel` apart, in the arithmetic type.
template <class T>
void copy_source(const Problem& p, const Shape<T>& shape, const T* source, arithmetic<T>* copy,
                 const Parallel& parallel) {
  using V = Vec<arithmetic<T>>;
  const int64_t pixels = p.out_pixels();
  if (shape.planes) {
    const int64_t parts = divide_up(pixels, turned_at_once);
    parallel(p.n * parts, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / parts, first = i % parts * turned_at_once;
        for (int64_t k = 0; k < p.k; k += V::lanes)  // a register of planes at a time: few pages
          transpose(source + (n * p.k + k) * pixels + first, pixels, std::min<int64_t>(V::lanes, p.k - k),
                    std::min(turned_at_once, pixels - first), copy + (n * pixels + first) * shape.pixel + k,
                    shape.pixel);
      }
    });
    return;
  }
  parallel(p.n * pixels, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < p.k; c += V::lanes) {
        const int left = static_cast<int>(std::min<int64_t>(V::lanes, p.k - c));
        store(copy + i * shape.pixel + c, load(source + i * p.k + c, left), left);
      }
  });
}

// Neighbouring pixels of a row of planes, for up to a register of channels from `channel` on.
template <class T>
struct PlanesRow {
  using V = Vec<arithmetic<T>>;
  const Tail<T>& tail;
  bool plain = !tail.residual && tail.activation == Activation::none;

  // results[i] + offset: the channels of pixel i.
  void put(const arithmetic<T>* const* results, int64_t offset, int64_t n, int64_t channel, int channels, int64_t pixel,
           int64_t count) const {
    for (int64_t x = 0; x < count; x += V::lanes) {
      const int width = static_cast<int>(std::min<int64_t>(V::lanes, count - x));
      V block[V::lanes];
      for (int i = 0; i < V::lanes; ++i) block[i] = i < width ? load(results[x + i] + offset) : V::zero();
      transpose(block);
      for (int i = 0; i < channels; ++i) put_one(n, channel + i, pixel + x, block[i], width);
    }
  }

  // The same where all pixels of a channel have one value.
  void fill(const arithmetic<T>* values, int64_t n, int64_t channel, int channels, int64_t pixel, int64_t count) const {
    for (int i = 0; i < channels; ++i)
      for (int64_t x = 0; x < count; x += V::lanes)
        put_one(n, channel + i, pixel + x, V::broadcast(values[i]),
                static_cast<int>(std::min<int64_t>(V::lanes, count - x)));
  }

 private:
  void put_one(int64_t n, int64_t channel, int64_t pixel, V value, int count) const {
    if (plain)
      store(tail.out + tail.out_at(n, channel, pixel), value, count);
    else
      tail.put_pixels(n, channel, pixel, value, count);
  }
};

}  // namespace fastconv::FASTCONV_ISA::phases
