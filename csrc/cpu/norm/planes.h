// NCHW tensors for a norm: a task is one channel of one block, and a block is a piece of an image's planes or, where
// they are small, a few images. Sums stay in registers; a piece is read twice, the second time from the near caches.
#pragma once

#include "core/integers.h"
#include "finish.h"
#include "simd/tags.h"
#include "simd/unrolled.h"

namespace fastconv::FASTCONV_ISA::norm {

template <class T>
class Planes {
 public:
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int64_t statistics_scratch = 0, sums_scratch = 0;
  static constexpr int sums_at_once = 4;  // hide the latency of an addition

  struct Task {
    int64_t block, c;
    int64_t images, at, image_step, count;  // runs of `count` elements, `image_step` apart

    double pixels() const { return static_cast<double>(images * count); }
    // f(which of the sums, place, how many) over the elements.
    template <class F>
    void each(F&& f) const {
      for (int64_t n = 0, start = at; n < images; ++n, start += image_step) {
        int64_t i = 0;
        for (; i + sums_at_once * V::lanes <= count; i += sums_at_once * V::lanes)
          unrolled<sums_at_once>([&](auto u) { f(u, start + i + u * V::lanes, Whole<V>()); });
        for (; i + V::lanes <= count; i += V::lanes) f(std::integral_constant<int, 0>(), start + i, Whole<V>());
        if (i < count) f(std::integral_constant<int, 1>(), start + i, static_cast<int>(count - i));
      }
    }
  };

  explicit Planes(const Problem& p) : images_(p.n), channels_(p.c), plane_(p.in_pixels()) {
    pieces_ = divide_up(plane_, longest_piece);
    piece_ = pieces_ == 1 ? plane_ : round_up(divide_up(plane_, pieces_), piece_step);
    pieces_ = divide_up(plane_, piece_);
    groups_ = divide_up(images_, pieces_ > 1 ? 1 : std::clamp(grouped / plane_, int64_t{1}, most_images));
  }

  int64_t blocks() const { return groups_ * pieces_; }
  int64_t tasks() const { return blocks() * channels_; }
  // f(task) for [begin, end), backwards on demand.
  template <class F>
  void each_task(int64_t begin, int64_t end, bool backwards, F&& f) const {
    while (begin < end) {
      const int64_t block = (backwards ? end - 1 : begin) / channels_;
      const int64_t first = std::max(begin, block * channels_), last = std::min(end, (block + 1) * channels_);
      const auto [low, high] = images(block);
      Task task{block, 0, high - low, 0, channels_ * plane_, extent(block)};
      for (int64_t i = first; i < last; ++i) {
        task.c = (backwards ? last - 1 - (i - first) : i) - block * channels_;
        task.at = (low * channels_ + task.c) * plane_ + block % pieces_ * piece_;
        f(task);
      }
      (backwards ? end : begin) = backwards ? first : last;
    }
  }
  int64_t run_bytes() const { return plane_ * static_cast<int64_t>(sizeof(T)); }
  int64_t table() const { return channels_; }  // elements
  double pixels(int64_t block) const {
    const auto [first, last] = images(block);
    return static_cast<double>((last - first) * extent(block));
  }
  void spread(A*) const {}

  // The block's mean of the channel, and the sums of the deviations from it and of their squares.
  void statistics(const Task& task, const T* x, A*, A* partial) const {
    V sum[sums_at_once] = {};
    task.each([&](auto u, int64_t at, auto count) { sum[u] = sum[u] + load(x + at, count); });
    const A mean = total(sum) / static_cast<A>(task.pixels());
    const Center center(mean);
    V rest[sums_at_once] = {}, square[sums_at_once] = {};
    task.each([&](auto u, int64_t at, auto count) {
      const V off = load(x + at, count) - center.of(count);
      rest[u] = rest[u] + off;
      square[u] = fma(off, off, square[u]);
    });
    const int64_t c = task.c;
    partial[c] = mean, partial[channels_ + c] = total(rest), partial[2 * channels_ + c] = total(square);
  }

  // The block's sums of dy and of dy·(x - mean).
  void sums(const Task& task, const T* x, const T* dy, const A* mean, A*, A* partial) const {
    const int64_t c = task.c;
    const Center center(mean[c]);
    V plain[sums_at_once] = {}, weighted[sums_at_once] = {};
    task.each([&](auto u, int64_t at, auto count) {
      const V part = load(dy + at, count);
      plain[u] = plain[u] + part;
      weighted[u] = fma(part, load(x + at, count) - center.of(count), weighted[u]);
    });
    partial[c] = total(plain), partial[channels_ + c] = total(weighted);
  }

  // x·scale + shift.
  void apply(const Task& task, const T* x, const A* scale, const A* shift, const Finish<T>& finish) const {
    const int64_t c = task.c;
    const V by = V::broadcast(scale[c]), plus = V::broadcast(shift[c]);
    finish.with_store([&](auto put) {
      task.each([&](auto, int64_t at, auto count) { put(at, fma(load(x + at, count), by, plus), count); });
    });
  }

  // dy·slope + (x - mean)·bend + level.
  void gradient(const Task& task, const T* x, const T* dy, const A* mean, const A* slope, const A* bend, const A* level,
                const Finish<T>& finish) const {
    const int64_t c = task.c;
    const V center = V::broadcast(mean[c]), by = V::broadcast(slope[c]), turn = V::broadcast(bend[c]),
            plus = V::broadcast(level[c]);
    finish.with_store([&](auto put) {
      task.each([&](auto, int64_t at, auto count) {
        put(at, fma(load(dy + at, count), by, fma(load(x + at, count) - center, turn, plus)), count);
      });
    });
  }

 private:
  static constexpr int64_t longest_piece = 8192, piece_step = 64;  // elements
  static constexpr int64_t grouped = 1024;                         // elements of a group: larger planes stand alone
  static constexpr int64_t most_images = 8;                        // read side by side

  // The mean in as many lanes as a load brings, zero in the others, where x is zero too.
  struct Center {
    explicit Center(A mean) : whole(V::broadcast(mean)) { whole.store(lanes); }
    V of(Whole<V>) const { return whole; }
    V of(int count) const { return V::load(lanes, count); }
    V whole;
    A lanes[V::lanes];
  };

  std::pair<int64_t, int64_t> images(int64_t block) const {
    const int64_t group = block / pieces_;
    return {images_ * group / groups_, images_ * (group + 1) / groups_};
  }
  int64_t extent(int64_t block) const { return std::min(piece_, plane_ - block % pieces_ * piece_); }

  static A total(const V (&v)[sums_at_once]) { return sum_lanes((v[0] + v[1]) + (v[2] + v[3])); }

  int64_t images_, channels_, plane_, pieces_, piece_, groups_;
};

}  // namespace fastconv::FASTCONV_ISA::norm
