// The two sides of the weight gradient's product, packed a depth block of pixels at a time.
#pragma once

#include "cpu/epilogue.h"
#include "simd/transpose.h"
#include "tile.h"
#include "walk.h"

namespace fastconv::FASTCONV_ISA {

// `pixels` rows of `length` elements, `src_step` and `dst_step` apart, widened. The last register of a row is filled
// with zeros up to `room` elements.
template <class T>
inline void copy_rows(const T* src, int64_t src_step, int64_t pixels, int64_t length, arithmetic<T>* dst,
                      int64_t dst_step, int64_t room) {
  using V = Vec<arithmetic<T>>;
  const int64_t whole = length / V::lanes * V::lanes;
  const int left = static_cast<int>(length - whole);
  const bool spill = room - whole >= V::lanes;
  for (; pixels > 0; --pixels, src += src_step, dst += dst_step) {
    for (int64_t i = 0; i < whole; i += V::lanes) load(src + i).store(dst + i);
    if (left == 0) continue;
    const V v = load(src + whole, left);
    if (spill)
      v.store(dst + whole);
    else
      v.store(dst + whole, left);
  }
}

// Left side: dst[panel][f][row of the panel] = dy[f][k0 + row], for rows [k0, k0 + rows) cut into panels of `height`.
template <class T>
void pack_gradients(const T* dy, int64_t step, int64_t rows, int64_t height, int64_t count, arithmetic<T>* dst) {
  for (int64_t row = 0; row < rows; row += height) {
    const int64_t high = std::min(height, rows - row), safe = std::max<int64_t>(0, count - Vec<arithmetic<T>>::lanes);
    // A register may spill into the rows of the next pixels, which are written later; the last pixels' may not.
    copy_rows(dy + row, step, safe, high, dst + row * count, high, high + Vec<arithmetic<T>>::lanes);
    copy_rows(dy + safe * step + row, step, count - safe, high, dst + row * count + safe * high, high, high);
  }
}

// Rows of `pixels`-long planes as pixels of `channels` elements, over the borders between images.
template <class T>
void pack_planes(const T* planes, int64_t image_step, int64_t pixels, int64_t channels, int64_t f0, int64_t count,
                 arithmetic<T>* dst, int64_t dst_step) {
  for (int64_t f = 0; f < count;) {
    const int64_t n = (f0 + f) / pixels, at = (f0 + f) % pixels, length = std::min(count - f, pixels - at);
    transpose(planes + n * image_step + at, pixels, channels, length, dst + f * dst_step, dst_step);
    f += length;
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

  // Pixels [f0, f0 + count) of columns [j0, j0 + wanted) to dst, `width` to a pixel.
  void pack(int64_t j0, int64_t wanted, int64_t width, int64_t f0, int64_t count, A* dst) const {
    for (int64_t at = 0; at < wanted;) {
      const int64_t index = (j0 + at) / run, offset = (j0 + at) % run, length = std::min(wanted - at, run - offset);
      pack_run(index * run_taps, offset, length, width, width - at, f0, count, dst + at);
      at += length;
    }
  }

 private:
  void pack_run(int64_t tap, int64_t offset, int64_t length, int64_t width, int64_t room, int64_t f0, int64_t count,
                A* dst) const {
    const int64_t r = tap / p.w.window, s = tap % p.w.window, step = p.w.stride * p.c;
    int64_t n = f0 / p.out_pixels(), i = f0 % p.out_pixels() / p.w.out, j = f0 % p.w.out;
    // The run of column z of a row is whole for z in [low, high]; beyond lies padding.
    const int64_t low = -(offset / p.c), high = p.w.in - divide_up(offset + length, p.c);
    for (int64_t f = 0; f < count; ++i, j = 0) {
      if (i == p.h.out) i = 0, ++n;
      const int64_t end = std::min(count, f + p.w.out - j), y = i * p.h.stride - p.h.pad_lo + r * p.h.dilation;
      const bool outside = y < 0 || y >= p.h.in;
      const T* row = x + (n * p.h.in + (outside ? 0 : y)) * p.w.in * p.c;
      int64_t z = j * p.w.stride - p.w.pad_lo + s * p.w.dilation;
      while (f < end) {
        if (!outside && z >= low && z <= high) {
          const int64_t pixels = std::min(end - f, (high - z) / p.w.stride + 1);
          copy_rows(row + z * p.c + offset, step, pixels, length, dst + f * width, width, room);
          f += pixels, z += pixels * p.w.stride;
          continue;
        }
        const int64_t from = std::max(offset, -z * p.c), to = std::min(offset + length, (p.w.in - z) * p.c);
        A* out = dst + f * width;
        std::fill(out, out + room, A(0));
        if (!outside && from < to) copy_rows(row + z * p.c + from, 0, 1, to - from, out + from - offset, 0, to - from);
        ++f, z += p.w.stride;
      }
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA
