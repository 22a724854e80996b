// NCHW tensors for a local response norm: a task is a piece of the pixels of one image and walks down its channels. The
// planes of a window stay in the first-level cache, and each is read from memory once.
#pragma once

#include "core/integers.h"
#include "response.h"

namespace fastconv::FASTCONV_ISA::norm {

template <class T>
class ResponsePlanes {
 public:
  using A = arithmetic<T>;
  using V = Vec<A>;

  ResponsePlanes(const Problem& p, const Windows<A>& windows)
      : windows_(windows), images_(p.n), plane_(p.in_pixels()), rows_(std::min(windows.span(), p.c)) {
    const int64_t longest = std::clamp(near_elements / rows_, piece_step, longest_piece);
    const int64_t piece = std::min(longest, divide_up(images_ * plane_, fewest_tasks));
    piece_ = round_up(divide_up(plane_, divide_up(plane_, std::max(piece, shortest_piece))), piece_step);
    pieces_ = divide_up(plane_, piece_);
  }

  int64_t tasks() const { return images_ * pieces_; }
  int64_t run_bytes() const { return plane_ * static_cast<int64_t>(sizeof(T)); }
  int64_t fprop_scratch() const { return 0; }  // elements
  int64_t dgrad_scratch() const { return 2 * rows_ * piece_; }

  template <class Put>
  void fprop(int64_t task, const T* x, A*, Put&& put) const {
    const auto [start, count] = piece(task);
    for (int64_t c = 0; c < windows_.channels; ++c)
      in_strips<V>(count, [&](auto registers, int64_t i, auto lanes) {
        V sum[registers];
        add_squares(x + start + i, c, sum, lanes);
        const int64_t at = start + c * plane_ + i;
        unrolled<registers>([&](auto r) {
          const int64_t place = at + r * V::lanes;
          put(place, windows_.respond(load(x + place, lanes), sum[r]), lanes);
        });
      });
  }

  // Two rings of rows: a channel's dx follows when the last window that holds it has been split.
  template <class Put>
  void dgrad(int64_t task, const T* x, const T* dy, A* scratch, Put&& put) const {
    const auto [start, count] = piece(task);
    A *own = scratch, *far = scratch + rows_ * piece_;
    for (int64_t c = 0; c < windows_.channels + windows_.before; ++c) {
      if (c < windows_.channels) {
        const int64_t row = c % rows_ * piece_;
        in_strips<V>(count, [&](auto registers, int64_t i, auto lanes) {
          V sum[registers];
          add_squares(x + start + i, c, sum, lanes);
          const int64_t at = start + c * plane_ + i;
          unrolled<registers>([&](auto r) {
            const int64_t place = at + r * V::lanes;
            const auto [a, b] = windows_.split(load(x + place, lanes), load(dy + place, lanes), sum[r]);
            store(own + row + i + r * V::lanes, a), store(far + row + i + r * V::lanes, b);
          });
        });
      }
      if (c >= windows_.before) join(c - windows_.before, start, count, x, own, far, put);
    }
  }

 private:
  static constexpr int64_t piece_step = 64;                             // elements: a whole number of cache lines
  static constexpr int64_t shortest_piece = 128, longest_piece = 1024;  // elements
  static constexpr int64_t near_elements = 8192;                        // of a window's planes together
  static constexpr int64_t fewest_tasks = 16;

  // First element of the task's piece in channel 0, and its elements.
  std::pair<int64_t, int64_t> piece(int64_t task) const {
    const int64_t image = task / pieces_, first = task % pieces_ * piece_;
    return {image * windows_.channels * plane_ + first, std::min(piece_, plane_ - first)};
  }

  // The squares of the window of channel c, in the order of the channels. `x` points into channel 0.
  template <int registers, class Lanes>
  void add_squares(const T* x, int64_t c, V (&sum)[registers], Lanes lanes) const {
    unrolled<registers>([&](auto r) { sum[r] = V::zero(); });
    const T* from = x + windows_.first(c) * plane_;
    for (int64_t left = windows_.last(c) - windows_.first(c); left >= 0; --left, from += plane_)
      unrolled<registers>([&](auto r) {
        const V value = load(from + r * V::lanes, lanes);
        sum[r] = fma(value, value, sum[r]);
      });
  }

  template <class Put>
  void join(int64_t c, int64_t start, int64_t count, const T* x, const A* own, const A* far, Put&& put) const {
    const int64_t first = windows_.first_over(c), rows = windows_.last_over(c) - first + 1;
    const int64_t row = first % rows_, before_turn = std::min(rows, rows_ - row);
    in_strips<V>(count, [&](auto registers, int64_t i, auto lanes) {
      V sum[registers] = {};
      const auto add = [&](const A* from, int64_t left) {
        for (; left > 0; --left, from += piece_)
          unrolled<registers>([&](auto r) { sum[r] = sum[r] + V::load(from + r * V::lanes); });
      };
      add(far + row * piece_ + i, before_turn), add(far + i, rows - before_turn);
      const int64_t at = start + c * plane_ + i;
      unrolled<registers>([&](auto r) {
        const int64_t place = at + r * V::lanes;
        const V alone = V::load(own + c % rows_ * piece_ + i + r * V::lanes);
        put(place, windows_.join(load(x + place, lanes), alone, sum[r]), lanes);
      });
    });
  }

  const Windows<A>& windows_;
  int64_t images_, plane_, rows_, piece_, pieces_;
};

}  // namespace fastconv::FASTCONV_ISA::norm
