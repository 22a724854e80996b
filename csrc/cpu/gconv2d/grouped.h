// What the grouped kernels share: how the channels of groups fill registers, and source rows laid out so that a
// register of them holds what a register of written channels needs.
//
// A register holds the written channels of as many whole groups as fit, its unit; a group wider than a register is a
// unit of several slices. Lane i of group i / written needs input channel d of that group: a block of the source
// holds, for one pixel, `deep` channels of each group of the unit, and one permutation a channel brings them to the
// lanes. No lane multiplies a zero, unless the groups do not fill the register.
#pragma once

#include <algorithm>

#include "core/integers.h"
#include "core/machine.h"
#include "dwconv2d/depthwise.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA::grouped {

using depthwise::Phase, depthwise::phase_of, depthwise::phases, depthwise::unroll;

struct Units {
  int64_t groups;   // of the problem
  int64_t written;  // channels of a group on the register's side
  int64_t depth;    // channels of a group that are summed over
  int64_t lanes;
  int64_t side;    // groups of a unit
  int64_t deep;    // channels of each of them in a block
  int64_t blocks;  // of a unit
  int64_t slices;  // registers of a unit
  int64_t count;   // units

  Units(int64_t groups, int64_t written, int64_t depth, int64_t lanes)
      : groups(groups),
        written(written),
        depth(depth),
        lanes(lanes),
        side(std::clamp<int64_t>(lanes / written, 1, groups)),
        deep(std::min(side == 1 ? lanes : lanes / side, depth)),
        blocks(divide_up(depth, deep)),
        slices(side == 1 ? divide_up(written, lanes) : 1),
        count(divide_up(groups, side)) {}

  bool alone() const { return side == 1; }  // one group: every lane needs the same channel
  // Channels of the tensor that is written, and how many of them one register holds.
  int64_t first(int64_t unit, int64_t slice) const { return unit * side * written + slice * lanes; }
  int used(int64_t unit, int64_t slice) const {
    const int64_t left = alone() ? written - slice * lanes : (groups - unit * side) * written;
    return static_cast<int>(std::min(left, alone() ? lanes : side * written));
  }
  int64_t weights(int64_t taps) const { return slices * taps * depth * lanes; }  // of a unit
};

inline constexpr int copied_blocks = 4;  // at a time

// Rows of a source as [block][column][lane], columns padded. One side of the source is written at a time: a block of
// `side` pieces of `deep` channels.
struct Staging {
  int64_t lanes, side, deep, depth, blocks, groups;  // as in Units
  int64_t channels, width, plane;                    // of the tensor: C, W, H·W
  int64_t left, pitch;                               // columns of zeros in front, columns in all; left >= 0
  bool planes;                                       // NCHW

  int64_t block() const { return pitch * lanes; }
  int64_t unit() const { return blocks * block(); }

  // Row `row` of image n, units [begin, end).
  template <class T>
  void fill(const T* source, int64_t n, int64_t row, int64_t begin, int64_t end, arithmetic<T>* to) const {
    using A = arithmetic<T>;
    const int64_t used = std::min(width, pitch - left);
    for (int64_t i = 0; i < (end - begin) * blocks; ++i) {
      for (int64_t j = 0; j < left; ++j) store(to + i * block() + j * lanes, Vec<A>::zero());
      for (int64_t j = left + used; j < pitch; ++j) store(to + i * block() + j * lanes, Vec<A>::zero());
    }
    to += left * lanes;
    if (planes)
      fill_planes(source + n * channels * plane + row * width, used, begin, end, to);
    else
      fill_pixels(source + (n * plane + row * width) * channels, used, begin, end, to);
  }

 private:
  bool contiguous() const { return blocks == 1 || side == 1; }

  template <class T>
  void fill_pixels(const T* source, int64_t used, int64_t begin, int64_t end, arithmetic<T>* to) const {
    if (!contiguous()) {
      for (int64_t g = begin * side; g < std::min(end * side, groups); ++g)
        for (int64_t d = 0; d < depth; ++d) {
          arithmetic<T>* at = to + (g / side - begin) * unit() + d / deep * block() + g % side * deep + d % deep;
          for (int64_t i = 0; i < used; ++i) at[i * lanes] = widen(source[i * channels + g * depth + d]);
        }
      return;
    }
    if (side * depth == blocks * lanes && end * side * depth <= channels) {  // whole registers, all side by side
      const int64_t count = (end - begin) * blocks;
      source += begin * side * depth;
      for (int64_t i = 0; i < used; ++i, source += channels, to += lanes) {
        int64_t b = 0;
        for (; b + copied_blocks <= count; b += copied_blocks)
          unroll<copied_blocks>([&](auto q) { store(to + (b + q) * block(), load(source + (b + q) * lanes)); });
        for (; b < count; ++b) store(to + b * block(), load(source + b * lanes));
      }
      return;
    }
    // A block may be filled past its own channels: what lies there is not chosen by any lane.
    const int64_t step = side == 1 ? lanes : side * depth;
    for (int64_t unit = begin; unit < end; ++unit)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t channel = unit * side * depth + b * step;
        const int count = static_cast<int>(std::min(lanes, channels - channel));
        arithmetic<T>* at = to + (unit - begin) * this->unit() + b * block();
        for (int64_t i = 0; i < used; ++i) store(at + i * lanes, load(source + i * channels + channel, count));
      }
  }

  template <class T>
  void fill_planes(const T* source, int64_t used, int64_t begin, int64_t end, arithmetic<T>* to) const {
    for (int64_t unit = begin; unit < end; ++unit, to += this->unit()) {
      const int64_t together = std::min(side, groups - unit * side);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t count = std::min(deep, depth - b * deep);
        const T* from = source + (unit * side * depth + b * deep) * plane;
        if (contiguous()) {
          transpose(from, plane, together * count, used, to + b * block(), lanes);
          continue;
        }
        for (int64_t g = 0; g < together; ++g)
          transpose(from + g * depth * plane, plane, count, used, to + b * block() + g * deep, lanes);
      }
    }
  }
};

// The next `count` elements of the workspace; from a null pointer it only counts.
template <class U>
U* take(char*& at, int64_t count) {
  constexpr int64_t alignment = 64;
  char* piece = at;
  at += round_up(count * static_cast<int64_t>(sizeof(U)), alignment);
  return reinterpret_cast<U*>(piece);
}

// Which lane of a block holds channel c of lane i's group: [deep][lanes].
inline void write_choices(const Units& u, int32_t* choice) {
  for (int64_t c = 0; c < u.deep; ++c)
    for (int64_t i = 0; i < u.lanes; ++i)
      choice[c * u.lanes + i] = static_cast<int32_t>(std::min(i / u.written, u.side - 1) * u.deep + c);
}

// Kernels; all dtypes, both layouts.
void gather(const Problem& p, const Args& args, const Parallel& parallel);
int64_t gather_workspace(const Problem& p, int threads);
Cost gather_cost(const Problem& p, int threads);
PackedForm packed_form(const Problem& p);
void pack(const Problem& p, const Args& args, void* out, const Parallel& parallel);
void wgrad(const Problem& p, const Args& args, const Parallel& parallel);
int64_t wgrad_workspace(const Problem& p, int threads);

}  // namespace fastconv::FASTCONV_ISA::grouped
