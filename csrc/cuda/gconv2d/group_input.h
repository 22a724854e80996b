// How the kernels for groups of few channels read: a block takes a slab of neighbouring groups and 8 x 16 pixels at a
// time, and what an operand has under them comes to shared memory once, [pixel][channel], zeros where it is padding.
#pragma once

#include <algorithm>
#include <string>

#include "cuda/common/async_copy.h"
#include "cuda/common/launch.h"
#include "cuda/common/refuses.h"
#include "cuda/conv2d/walk.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int group_height = 8, group_width = 16;  // pixels of a block's tile
inline constexpr int group_pixels = group_height * group_width, group_threads = 128;
inline constexpr int slab_channels = 32;  // of a block, at most, on either side

inline std::string refuses_groups(const Problem& p, int most_channels) {
  if (p.groups < 2 || std::max(p.channels_per_group(), p.filters_per_group()) > most_channels)
    return "It is for groups of at most " + std::to_string(most_channels) + " channels, not C=" + std::to_string(p.c) +
           " to K=" + std::to_string(p.k) + " in " + std::to_string(p.groups) + ".";
  return {};
}

// Of a block: as many as fill whole chunks of 16 bytes on either side, if any do.
inline int64_t groups_of_slab(const Problem& p) {
  const int64_t channels = p.channels_per_group(), filters = p.filters_per_group();
  const int64_t most = std::min(p.groups, slab_channels / std::max(channels, filters));
  const int64_t chunk = vector_bytes / dtype_bytes(p.dtype);
  for (int64_t groups = most; groups > 0; --groups)
    if (groups * channels % chunk == 0 && groups * filters % chunk == 0) return groups;
  return most;
}

// Positions of the source under so many written ones along an axis, from the first that any tap reads.
struct Reach {
  int size, before;  // before: from the first to the one of tap 0

  static FASTCONV_BOTH Reach of(const Walk& walk, int written) {
    const int span = (walk.taps > 1 ? walk.taps - 1 : 0) * walk.step;
    return {(written - 1) * walk.stride + (span < 0 ? -span : span) + 1, span < 0 ? -span : 0};
  }
};

template <class T>
struct GroupInput {
  const T* data;
  int64_t image, pixel, channel;  // strides in elements
  int height, width;
  int pitch;  // elements of a pixel in shared memory
  bool wide;  // chunks of 16 bytes are whole, in a slab and in all

  // The rows x columns pixels from (top, left) on, of `channels` channels from `first` on; a warp takes a row at a
  // time. The copies are one group.
  FASTCONV_DEVICE void bring(int n, int top, int left, int rows, int columns, int first, int channels,
                             Shared<T> tile) const {
    constexpr int warps = group_threads / lanes_of_warp, chunk = FASTCONV_GPU::wide<T>;
    const int lane = this_thread() % lanes_of_warp;
    for (int row = this_thread() / lanes_of_warp; row < rows; row += warps) {
      const int y = top + row;
      const bool present = static_cast<unsigned>(y) < static_cast<unsigned>(height);
      const T* const from = data + n * image + static_cast<int64_t>(present ? y : 0) * width * pixel + first * channel;
      if (wide) {
        const int chunks = channels / chunk;
        for (int i = lane; i < columns * chunks; i += lanes_of_warp) {
          const int at = i / chunks, c = i % chunks * chunk, x = left + at;
          const bool inside = present && static_cast<unsigned>(x) < static_cast<unsigned>(width);
          copy_async(tile + ((row * columns + at) * pitch + c), inside ? from + x * pixel + c : data, inside);
        }
      } else {
        for (int i = lane; i < columns * channels; i += lanes_of_warp) {  // neighbours in memory to neighbouring lanes
          const int at = channel == 1 ? i / channels : i % columns, c = channel == 1 ? i % channels : i / columns;
          const int x = left + at;
          const bool inside = present && static_cast<unsigned>(x) < static_cast<unsigned>(width);
          tile.put((row * columns + at) * pitch + c, inside ? fetch(from + x * pixel + c * channel) : T{});
        }
      }
    }
    commit_group();
  }

  // Of an operand with so many channels, of which a block takes those of `groups` groups.
  static GroupInput of(const Problem& p, const void* data, int64_t channels, int64_t height, int64_t width,
                       int64_t groups, int64_t pitch) {
    constexpr int chunk = FASTCONV_GPU::wide<T>;
    const bool nhwc = p.layout == Layout::nhwc;
    const bool whole = channels / p.groups * groups % chunk == 0 && channels % chunk == 0;
    return {static_cast<const T*>(data), channels * height * width,
            nhwc ? channels : 1,         nhwc ? 1 : height * width,
            static_cast<int>(height),    static_cast<int>(width),
            static_cast<int>(pitch),     nhwc && whole && reinterpret_cast<uintptr_t>(data) % vector_bytes == 0};
  }
};

}  // namespace fastconv::FASTCONV_GPU
