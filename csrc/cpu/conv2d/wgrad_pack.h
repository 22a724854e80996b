// The two sides of the weight gradient's product, packed from channels_last tensors a depth block of pixels at a time.
#pragma once

#include "cpu/epilogue.h"
#include "tile.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

// `count` elements, widened; the last register may be filled with zeros up to `room` elements.
template <class T>
inline void copy_channels(const T* src, int64_t count, arithmetic<T>* dst, int64_t room) {
  using V = Vec<arithmetic<T>>;
  for (int64_t i = 0; i < count; i += V::lanes) {
    const int left = static_cast<int>(std::min<int64_t>(V::lanes, count - i));
    const V v = load(src + i, left);
    if (room - i >= V::lanes)
      v.store(dst + i);
    else
      v.store(dst + i, left);
  }
}

// Output positions in the order of the sum: all images in a row.
struct Pixel {
  int64_t n, i, j;
};
inline Pixel pixel_at(const Problem& p, int64_t f) {
  return {f / p.out_pixels(), f % p.out_pixels() / p.w.out, f % p.w.out};
}

// Left side: dst[panel][f][row of the panel] = dy[f][k0 + row], for rows [k0, k0 + rows) cut into panels of `height`.
template <class T>
void pack_gradients(const T* dy, int64_t step, int64_t k0, int64_t rows, int64_t height, int64_t f0, int64_t count,
                    arithmetic<T>* dst) {
  for (int64_t f = 0; f < count; ++f) {
    const T* src = dy + (f0 + f) * step + k0;
    for (int64_t row = 0; row < rows; row += height) {
      const int64_t high = std::min(height, rows - row);
      // A register may spill into the rows of the next pixels, which are written later; the last pixel's may not.
      copy_channels(src + row, high, dst + row * count + f * high, (count - f) * high);
    }
  }
}

// Right side: column j of the filter gradient, in the order (r, s, c), reads one channel at one tap. Neighbouring taps
// of a row lie side by side in memory when nothing dilates them and there is one group: then (s, c) is one run, so that
// a stem with three channels fills its registers.
template <class T>
struct Taps {
  using A = arithmetic<T>;
  const Problem& p;
  const T* x;             // first channel of the group
  int64_t channels;       // of the group
  bool merged;            // (s, c) is one run
  int64_t run, run_taps;  // elements and taps of a run

  Taps(const Problem& problem, const T* first)
      : p(problem),
        x(first),
        channels(p.channels_per_group()),
        merged(p.groups == 1 && p.w.dilation == 1),
        run(merged ? p.w.window * channels : channels),
        run_taps(merged ? p.w.window : 1) {}

  int64_t columns() const { return p.taps() * channels; }

  // Pixels [f0, f0 + count) of columns [j0, j0 + wanted) to dst, `width` to a pixel.
  void pack(int64_t j0, int64_t wanted, int64_t width, int64_t f0, int64_t count, A* dst) const {
    if (wanted < width) std::fill(dst, dst + count * width, A(0));
    for (int64_t at = 0; at < wanted;) {
      const int64_t index = (j0 + at) / run, offset = (j0 + at) % run, length = std::min(wanted - at, run - offset);
      pack_run(index * run_taps, offset, length, width, at, f0, count, dst + at);
      at += length;
    }
  }

 private:
  void pack_run(int64_t tap, int64_t offset, int64_t length, int64_t width, int64_t at, int64_t f0, int64_t count,
                A* dst) const {
    const int64_t r = tap / p.w.window, s = tap % p.w.window, row_step = p.w.in * p.c;
    Pixel pixel = pixel_at(p, f0);
    for (int64_t f = 0; f < count; ++pixel.i, pixel.j = 0) {
      if (pixel.i == p.h.out) pixel.i = 0, ++pixel.n;
      const int64_t end = std::min(count, f + p.w.out - pixel.j);
      const int64_t y = pixel.i * p.h.stride - p.h.pad_lo + r * p.h.dilation;
      if (y < 0 || y >= p.h.in) {
        for (; f < end; ++f) std::fill(dst + f * width, dst + f * width + length, A(0));
        continue;
      }
      const T* row = x + (pixel.n * p.h.in + y) * row_step;
      int64_t z = pixel.j * p.w.stride - p.w.pad_lo + s * p.w.dilation;
      for (; f < end; ++f, z += p.w.stride) {
        // The run starts at column z of the row; what lies outside the row is padding.
        const int64_t low = std::max(offset, -z * p.c), high = std::min(offset + length, (p.w.in - z) * p.c);
        A* out = dst + f * width;
        if (low == offset && high == offset + length) {
          copy_channels(row + z * p.c + offset, length, out, width - at);
          continue;
        }
        std::fill(out, out + length, A(0));
        if (low < high) copy_channels(row + z * p.c + low, high - low, out + low - offset, high - low);
      }
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA
