// channels_last tensors for a local response norm: a task is a block of pixels. The squares of each pixel's channels
// stand in a row of their own between zeros for the windows that hang over, so a sum is a few unaligned loads; a whole
// block is squared before it is summed, since a load from two stores that are not in the cache yet would wait for them.
#pragma once

#include "core/integers.h"
#include "response.h"

namespace fastconv::FASTCONV_ISA::norm {

template <class T>
class ResponseRows {
 public:
  using A = arithmetic<T>;
  using V = Vec<A>;

  ResponseRows(const Problem& p, const Windows<A>& windows)
      : windows_(windows), channels_(p.c), pixels_(p.n * p.in_pixels()) {
    // Behind the channels a whole register is read at every place of a window.
    row_ = round_up(windows.before + windows.after + round_up(channels_, V::lanes), V::lanes);
    block_ = std::clamp(near_elements / row_, int64_t{1}, most_pixels);
    block_ = std::min(block_, divide_up(pixels_, fewest_tasks));
    blocks_ = divide_up(pixels_, block_);
  }

  int64_t tasks() const { return blocks_; }
  int64_t run_bytes() const { return channels_ * static_cast<int64_t>(sizeof(T)); }
  int64_t fprop_scratch() const { return block_ * row_; }  // elements
  int64_t dgrad_scratch() const { return 3 * block_ * row_; }

  template <class Put>
  void fprop(int64_t task, const T* x, A* squares, Put&& put) const {
    const auto [start, count] = block(task);
    square(x, start, count, squares);
    each(start, count, [&](int64_t at, int64_t row, auto registers, auto lanes) {
      V sum[registers];
      add_row(squares + row, sum);
      unrolled<registers>([&](auto r) {
        const int64_t place = at + r * V::lanes;
        put(place, windows_.respond(load(x + place, lanes), sum[r]), lanes);
      });
    });
  }

  template <class Put>
  void dgrad(int64_t task, const T* x, const T* dy, A* scratch, Put&& put) const {
    const auto [start, count] = block(task);
    A *squares = scratch, *own = squares + block_ * row_, *far = own + block_ * row_;
    square(x, start, count, squares);
    clear_ends(count, far, windows_.after);
    each(start, count, [&](int64_t at, int64_t row, auto registers, auto lanes) {
      V sum[registers];
      add_row(squares + row, sum);
      unrolled<registers>([&](auto r) {
        const int64_t place = at + r * V::lanes, to = row + r * V::lanes;
        const auto [a, b] = windows_.split(load(x + place, lanes), load(dy + place, lanes), sum[r]);
        store(own + to, a, lanes), store(far + windows_.after + to, b, lanes);
      });
    });
    each(start, count, [&](int64_t at, int64_t row, auto registers, auto lanes) {
      V sum[registers];
      add_row(far + row, sum);
      unrolled<registers>([&](auto r) {
        const int64_t place = at + r * V::lanes;
        put(place, windows_.join(load(x + place, lanes), V::load(own + row + r * V::lanes), sum[r]), lanes);
      });
    });
  }

 private:
  static constexpr int64_t near_elements = 4096;  // of a block's rows together
  static constexpr int64_t most_pixels = 256, fewest_tasks = 16;

  // First element of the task's block, and its pixels.
  std::pair<int64_t, int64_t> block(int64_t task) const {
    const int64_t first = pixels_ * task / blocks_;
    return {first * channels_, pixels_ * (task + 1) / blocks_ - first};
  }

  // f(place in the tensor, place in the rows, how many registers, how many elements a register), pixel after pixel.
  template <class F>
  void each(int64_t start, int64_t count, F&& f) const {
    for (int64_t pixel = 0; pixel < count; ++pixel)
      in_strips<V>(channels_, [&](auto registers, int64_t i, auto lanes) {
        f(start + pixel * channels_ + i, pixel * row_ + i, registers, lanes);
      });
  }

  void clear_ends(int64_t count, A* rows, int64_t leading) const {
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      A* row = rows + pixel * row_;
      std::fill(row, row + leading, A(0));
      std::fill(row + leading + channels_, row + row_, A(0));
    }
  }

  void square(const T* x, int64_t start, int64_t count, A* squares) const {
    clear_ends(count, squares, windows_.before);
    each(start, count, [&](int64_t at, int64_t row, auto registers, auto lanes) {
      unrolled<registers>([&](auto r) {
        const V value = load(x + at + r * V::lanes, lanes);
        store(squares + windows_.before + row + r * V::lanes, value * value, lanes);
      });
    });
  }

  // The sums of span() neighbours, in the order of the channels.
  template <int registers>
  void add_row(const A* from, V (&sum)[registers]) const {
    unrolled<registers>([&](auto r) { sum[r] = V::zero(); });
    for (int64_t left = windows_.span(); left > 0; --left, ++from)
      unrolled<registers>([&](auto r) { sum[r] = sum[r] + V::load(from + r * V::lanes); });
  }

  const Windows<A>& windows_;
  int64_t channels_, pixels_, row_, block_, blocks_;
};

}  // namespace fastconv::FASTCONV_ISA::norm
