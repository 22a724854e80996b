// reorder2d: NCHW to channels_last and back: for each image, a matrix of channels and pixels is transposed.
//
// Blocks of 16 x 128 elements, long along the longer rows, be they x's or the result's: few streams far apart, each of
// them long. Within a block squares are turned in registers (simd/transpose.h). Three
// channels, the images a network starts with, are woven from three registers to three (simd/threes.h). Bytes: x once,
// out once, past the caches where it is larger than the last one. A signalling NaN of 16 bits comes out quiet.
// Zen 4, 2 threads, AVX-512, f32, torch 2.13, 2026-11-22, us and times torch's contiguous(): to channels_last 3@224 16
// (3.1x), batch 8 88 (4.6x), 64@56 15 (4.2x), 512@14 13 (2.5x), 2048@7 18 (2.0x), 64@112 batch 8 1611 (2.0x); back
// 3@224 batch 8 75 (4.6x), 64@56 16 (4.7x), 512@14 11 (9.9x), 64@112 batch 8 1850 (2.9x). Blocks of 16 x 64 whatever
// the shape took 55 to 69 us for 512@14. Loses to nothing measured; two to fifteen channels, three apart, leave most of
// a square empty.
#include <cstring>

#include "core/integers.h"
#include "core/machine.h"
#include "cpu/epilogue.h"
#include "refuses.h"
#include "simd/stream.h"
#include "simd/threes.h"
#include "simd/transpose.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <class T>
class Reorder {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  Reorder(const Problem& p, const Args& args)
      : x_(static_cast<const T*>(args.x)),
        out_(static_cast<T*>(args.out)),
        images_(p.n),
        to_nhwc_(p.layout == Layout::nchw),
        channels_(p.c),
        pixels_(p.in_pixels()),
        rows_(to_nhwc_ ? p.c : pixels_),
        columns_(to_nhwc_ ? pixels_ : p.c),
        block_rows_(columns_ > rows_ ? few : many),
        block_columns_(columns_ > rows_ ? many : few),
        streams_(std::is_same_v<T, A> && reinterpret_cast<intptr_t>(out_) % cache_line == 0 &&
                 rows_ * int64_t{sizeof(T)} % cache_line == 0 && p.x_elements() * int64_t{sizeof(T)} > machine().l3) {}

  void run(const Parallel& parallel) const {
    if (rows_ == 1 || columns_ == 1) return copy(parallel);
    if (channels_ == 3) return threes(parallel);
    const int64_t down = divide_up(rows_, block_rows_), across = divide_up(columns_, block_columns_);
    parallel(images_ * across * down, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % down * block_rows_, column = i / down % across * block_columns_;
        block(i / down / across, row, column);
      }
      if (streams_) finish_streams();
    });
  }

 private:
  static constexpr int64_t few = 16, many = 128;                // rows and columns of a block
  static constexpr int64_t copied = 8192, woven_pixels = 1024;  // elements, pixels that a task takes

  void copy(const Parallel& parallel) const {
    const int64_t total = images_ * rows_ * columns_;
    parallel(divide_up(total, copied), [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * copied, last = std::min(end * copied, total);
      std::copy(x_ + first, x_ + last, out_ + first);
    });
  }

  void block(int64_t image, int64_t row, int64_t column) const {
    const int64_t height = std::min(block_rows_, rows_ - row), width = std::min(block_columns_, columns_ - column);
    const T* from = x_ + (image * rows_ + row) * columns_ + column;
    T* to = out_ + (image * columns_ + column) * rows_ + row;
    for (int64_t j = 0; j < width; j += V::lanes)
      for (int64_t i = 0; i < height; i += V::lanes)
        if (j + V::lanes <= width && i + V::lanes <= height)
          square(from + i * columns_ + j, to + j * rows_ + i);
        else
          corner(from + i * columns_ + j, to + j * rows_ + i, std::min<int64_t>(V::lanes, height - i),
                 std::min<int64_t>(V::lanes, width - j));
  }

  void square(const T* from, T* to) const {
    V rows[V::lanes];
    unrolled<V::lanes>([&](auto r) { rows[r] = load(from + r * columns_); });
    transpose(rows);
    if constexpr (std::is_same_v<T, A>)
      if (streams_) return unrolled<V::lanes>([&](auto c) { stream(to + c * rows_, rows[c]); });
    unrolled<V::lanes>([&](auto c) { store(to + c * rows_, rows[c]); });
  }

  void corner(const T* from, T* to, int64_t height, int64_t width) const {
    V rows[V::lanes];
    for (int r = 0; r < V::lanes; ++r)
      rows[r] = r < height ? load(from + r * columns_, static_cast<int>(width)) : V::zero();
    transpose(rows);
    for (int c = 0; c < width; ++c) store(to + c * rows_, rows[c], static_cast<int>(height));
  }

  void threes(const Parallel& parallel) const {
    const int64_t tasks = divide_up(pixels_, woven_pixels);
    parallel(images_ * tasks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / tasks * 3 * pixels_, first = i % tasks * woven_pixels;
        const int64_t last = std::min(pixels_, first + woven_pixels);
        for (int64_t at = first; at < last; at += V::lanes)
          three(image + at, image + 3 * at, std::min<int64_t>(V::lanes, last - at));
      }
    });
  }

  // `count` pixels, whose planes start at `plane` and whose triples start at `triple`.
  void three(int64_t plane, int64_t triple, int64_t count) const {
    V v[3];
    const auto each = [&](auto&& f) {
      for (int i = 0; i < 3; ++i) {
        const int64_t of_triples = std::clamp<int64_t>(3 * count - i * V::lanes, 0, V::lanes);
        f(v[i], plane + i * pixels_, static_cast<int>(count), triple + i * V::lanes, static_cast<int>(of_triples));
      }
    };
    if (to_nhwc_) {
      each([&](V& r, int64_t at, int held, int64_t, int) { r = load(x_ + at, held); });
      weave(v);
      each([&](V& r, int64_t, int, int64_t at, int held) {
        if (held) store(out_ + at, r, held);
      });
    } else {
      each([&](V& r, int64_t, int, int64_t at, int held) { r = held ? load(x_ + at, held) : V::zero(); });
      unweave(v);
      each([&](V& r, int64_t at, int held, int64_t, int) { store(out_ + at, r, held); });
    }
  }

  const T* x_;
  T* out_;
  int64_t images_;
  bool to_nhwc_;
  int64_t channels_, pixels_, rows_, columns_, block_rows_, block_columns_;
  bool streams_;
};

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) { Reorder<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace

extern const KernelBody reorder2d_fprop_transpose{refuses_slices, no_workspace, run};

}  // namespace fastconv::FASTCONV_ISA
