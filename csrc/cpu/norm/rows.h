// channels_last tensors for a norm: rows of `length` elements, a whole number of pixels that fills registers whatever
// the number of channels (3 channels: 170 pixels and 32 registers of 16). A table holds each channel's value at every
// place of a row, so that no kernel asks which channel a lane is. Only with very many channels that fill no registers
// is a row one pixel with a rest. A block is the rows between two merges, about `block_bytes`: it is read twice, the
// second time from the near caches.
#pragma once

#include <numeric>

#include "core/integers.h"
#include "finish.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA::norm {

template <class T>
class Rows {
 public:
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int64_t statistics_scratch = 3, sums_scratch = 2;  // tables
  struct Task {
    int64_t block;
  };

  explicit Rows(const Problem& p) : channels_(p.c), total_(p.x_elements()) {
    const int64_t filling = channels_ * (V::lanes / std::gcd(channels_, int64_t{V::lanes}));
    const int64_t base = filling <= longest_row ? filling : channels_;
    const int64_t repeats = std::min(divide_up(total_, base), std::max(int64_t{1}, shortest_row / base));
    length_ = base * repeats;
    rows_ = divide_up(total_, length_);
    const int64_t row_bytes = length_ * static_cast<int64_t>(sizeof(T));
    blocks_ = divide_up(rows_, std::max(block_bytes / row_bytes, divide_up(fewest_pixels * channels_, length_)));
    streams_ = total_ * static_cast<int64_t>(sizeof(T)) > cached_bytes && length_ <= short_row;
  }

  int64_t blocks() const { return blocks_; }
  int64_t tasks() const { return blocks_; }
  // f(task) for [begin, end), backwards on demand; a task is a block.
  template <class F>
  void each_task(int64_t begin, int64_t end, bool backwards, F&& f) const {
    for (int64_t i = begin; i < end; ++i) f(Task{backwards ? end - 1 - (i - begin) : i});
  }
  int64_t run_bytes() const { return length_ * static_cast<int64_t>(sizeof(T)); }
  int64_t table() const { return round_up(length_, V::lanes); }  // elements
  double pixels(int64_t block) const {
    return static_cast<double>((std::min(first_row(block + 1) * length_, total_) - first_row(block) * length_) /
                               channels_);
  }
  // Continues a table whose first C values are set.
  void spread(A* values) const {
    for (int64_t i = channels_; i < length_; ++i) values[i] = values[i - channels_];
  }

  // The block's mean of each channel, and the sums of the deviations from it and of their squares.
  void statistics(Task task, const T* x, A* scratch, A* partial) const {
    A *mean = scratch, *rest = mean + table(), *square = rest + table();
    std::fill(scratch, scratch + statistics_scratch * table(), A(0));
    in_fours(task.block, !streams_, [&](auto rows, int64_t at, int64_t i, auto count) {
      V sum[rows];
      unrolled<rows>([&](auto r) { sum[r] = load(x + at + r * length_ + i, count); });
      store(mean + i, V::load(mean + i) + total<rows>(sum), count);
    });
    collect(mean, partial);
    const A share = static_cast<A>(1 / pixels(task.block));
    for (int64_t c = 0; c < channels_; ++c) mean[c] = partial[c] = partial[c] * share;
    spread(mean);
    in_fours(task.block, true, [&](auto rows, int64_t at, int64_t i, auto count) {
      const V center = V::load(mean + i);
      V off[rows], squares = V::load(square + i);
      unrolled<rows>([&](auto r) {
        off[r] = load(x + at + r * length_ + i, count) - center;
        squares = fma(off[r], off[r], squares);
      });
      store(rest + i, V::load(rest + i) + total<rows>(off), count);
      store(square + i, squares, count);
    });
    collect(rest, partial + channels_);
    collect(square, partial + 2 * channels_);
  }

  // The block's sums of dy and of dy·(x - mean). `mean` is a table.
  void sums(Task task, const T* x, const T* dy, const A* mean, A* scratch, A* partial) const {
    A *plain = scratch, *weighted = plain + table();
    std::fill(scratch, scratch + sums_scratch * table(), A(0));
    in_fours(task.block, !streams_, [&](auto rows, int64_t at, int64_t i, auto count) {
      const V center = V::load(mean + i);
      V part[rows], products = V::load(weighted + i);
      unrolled<rows>([&](auto r) {
        part[r] = load(dy + at + r * length_ + i, count);
        products = fma(part[r], load(x + at + r * length_ + i, count) - center, products);
      });
      store(plain + i, V::load(plain + i) + total<rows>(part), count);
      store(weighted + i, products, count);
    });
    collect(plain, partial);
    collect(weighted, partial + channels_);
  }

  // x·scale + shift, both tables.
  void apply(Task task, const T* x, const A* scale, const A* shift, const Finish<T>& finish) const {
    finish.with_store([&](auto put) {
      in_turn(task.block, [&](int64_t at, int64_t i, auto count) {
        put(at + i, fma(load(x + at + i, count), V::load(scale + i), V::load(shift + i)), count);
      });
    });
  }

  // dy·slope + (x - mean)·bend + level, all tables.
  void gradient(Task task, const T* x, const T* dy, const A* mean, const A* slope, const A* bend, const A* level,
                const Finish<T>& finish) const {
    finish.with_store([&](auto put) {
      in_turn(task.block, [&](int64_t at, int64_t i, auto count) {
        const V back = fma(load(x + at + i, count) - V::load(mean + i), V::load(bend + i), V::load(level + i));
        put(at + i, fma(load(dy + at + i, count), V::load(slope + i), back), count);
      });
    });
  }

 private:
  static constexpr int64_t shortest_row = 512, longest_row = 2048;  // elements
  static constexpr int64_t block_bytes = 64 << 10, fewest_pixels = 32;
  // From memory four short rows side by side are four streams too short to be fetched ahead (Zen 4, 2026-11-22: sums of
  // 64@112, batch 8, 1.8 ms, row after row 1.3 ms); long rows and cached tensors gain by them.
  static constexpr int64_t cached_bytes = 4 << 20, short_row = 1024;
  static constexpr int together = 4;  // rows that share the loads and stores of the sums

  int64_t first_row(int64_t block) const { return rows_ * block / blocks_; }

  template <int rows>
  static V total(const V (&v)[rows]) {
    if constexpr (rows == together)
      return (v[0] + v[1]) + (v[2] + v[3]);
    else
      return v[0];
  }

  // f(start of the row, place in it, how many) along one row.
  template <class F>
  void along(int64_t row, F&& f) const {
    const int64_t at = row * length_, end = std::min(length_, total_ - at);
    int64_t i = 0;
    for (; i + V::lanes <= end; i += V::lanes) f(at, i, Whole<V>());
    if (i < end) f(at, i, static_cast<int>(end - i));
  }
  template <class F>
  void in_turn(int64_t block, F&& f) const {
    for (int64_t row = first_row(block); row < first_row(block + 1); ++row) along(row, f);
  }
  // f(how many rows, start of the first, place in it, how many); one row at a time unless `fours`.
  template <class F>
  void in_fours(int64_t block, bool fours, F&& f) const {
    const int64_t last = first_row(block + 1), full = std::min(last, total_ / length_);
    int64_t row = first_row(block);
    for (; fours && row + together <= full; row += together)
      along(row, [&](int64_t at, int64_t i, auto count) { f(std::integral_constant<int, together>(), at, i, count); });
    for (; row < last; ++row)
      along(row, [&](int64_t at, int64_t i, auto count) { f(std::integral_constant<int, 1>(), at, i, count); });
  }
  // A table of sums -> one a channel.
  void collect(const A* table, A* sums) const {
    std::copy(table, table + channels_, sums);
    for (int64_t i = channels_; i < length_; i += channels_)
      for (int64_t c = 0; c < channels_; ++c) sums[c] += table[i + c];
  }

  int64_t channels_, total_, length_, rows_, blocks_;
  bool streams_;
};

}  // namespace fastconv::FASTCONV_ISA::norm
