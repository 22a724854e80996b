// What register tiles fetch for later, a line with every step.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "core/integers.h"
#include "core/machine.h"

namespace fastconv::FASTCONV_ISA {

inline constexpr int for_reading = 0, into_l2 = 2;  // of __builtin_prefetch

// What later tiles read, brought into L2 with every step of a tile: a burst of misses before the first step would hold
// up the tile's own loads.
struct Ahead {
  const char* at;
  int64_t step = 0;                                   // bytes from one step's line to the next's
  int64_t run = std::numeric_limits<int64_t>::max();  // after so many steps of a tap
  int64_t jump = 0;                                   // it goes on so many bytes further

  // Nothing new.
  static Ahead none(const void* at_hand) { return {static_cast<const char*>(at_hand)}; }
  // One of `shares` equal shares of `bytes` bytes from `at` on, for a tile of `steps` steps.
  static Ahead range(const char* at, int64_t bytes, int64_t share, int64_t shares, int64_t steps) {
    const int64_t part = divide_up(bytes, shares);
    return {at + share * part, divide_up(part, steps)};
  }
  // One of `shares` equal shares of `count` pieces of `bytes` bytes that lie `apart` bytes apart, for a tile of one
  // tap.
  static Ahead pieces(const char* at, int64_t count, int64_t bytes, int64_t apart, int64_t share, int64_t shares,
                      int64_t steps) {
    const int64_t part = divide_up(count, shares), run = divide_up(steps, part), step = divide_up(bytes, run);
    return {at + share * part * apart, step, run, apart - run * step};
  }
};

// Bytes, or as many again in every one of `count` pieces that lie some bytes apart.
struct Pieces {
  const char* at = nullptr;
  int64_t bytes = 0, count = 1, apart = 0;
  int64_t total() const { return count * bytes; }
};

// What a row of tiles fetches: each tile a share of one entry, what comes first of what is read first. Short rows of
// short tiles leave no time for divisions: one for each entry that stands, and two for each that is begun.
template <size_t N>
class Later {
 public:
  Later(const std::array<Pieces, N>& wanted, int64_t tiles) : wanted_(wanted) {
    int64_t total = 0, sum = 0, end = 0;
    for (const Pieces& one : wanted) total += one.total();
    for (size_t i = 0; i < N; end_[i++] = end) {
      if (wanted[i].total() == 0) continue;
      sum += wanted[i].total();
      end = sum == total ? tiles : (2 * tiles * sum / total + 1) / 2;  // tiles by bytes, to the nearest
    }
  }

  // Whether some tile fetches of entry i.
  bool fetches(size_t i) const { return end_[i] > begin(i); }

  // The share of the next tile; all have `steps` steps. `at_hand` where there is none.
  Ahead share(int64_t steps, const void* at_hand) {
    for (; i_ < N && tile_ >= end_[i_]; ++i_) begun_ = false;
    if (i_ == N || !steps) return Ahead::none(at_hand);
    const Pieces& one = wanted_[i_];
    const int64_t shares = end_[i_] - begin(i_), share = tile_++ - begin(i_);
    if (one.count > 1) return Ahead::pieces(one.at, one.count, one.bytes, one.apart, share, shares, steps);
    if (!begun_) {
      part_ = divide_up(std::min(one.bytes, cache_line * steps * shares), shares), step_ = divide_up(part_, steps);
      begun_ = true;
    }
    return {one.at + share * part_, step_};
  }

 private:
  int64_t begin(size_t i) const { return i ? end_[i - 1] : 0; }

  std::array<Pieces, N> wanted_;
  std::array<int64_t, N> end_;  // the first tile behind those of an entry
  size_t i_ = 0;                // entry of the next tile
  int64_t tile_ = 0;
  bool begun_ = false;
  int64_t part_, step_;  // bytes of a tile, and of a step
};

// Bytes that are fetched by and by, `each` with every turn; what one turn had no tile for, the next takes too.
class Stock {
 public:
  Stock() = default;
  Stock(const char* at, int64_t bytes, int64_t turns) : at_(at), bytes_(bytes), each_(divide_up(bytes, turns)) {}

  // Of the next turn.
  Pieces part() const { return {at_, std::min(due_ + each_, bytes_)}; }
  void pass(bool fetched) {
    due_ += each_;
    if (fetched) at_ += due_, bytes_ = std::max<int64_t>(0, bytes_ - due_), due_ = 0;
  }

 private:
  const char* at_ = nullptr;
  int64_t bytes_ = 0, each_ = 0, due_ = 0;
};

}  // namespace fastconv::FASTCONV_ISA
