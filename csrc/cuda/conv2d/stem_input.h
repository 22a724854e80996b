// The input of a convolution of few channels, as fprop and wgrad read it alike: the source under a tile of output
// pixels comes to shared memory as [row][pixel, channel], zeros where it is padding.
#pragma once

#include <string>

#include "cuda/common/async_copy.h"
#include "cuda/common/launch.h"
#include "cuda/common/refuses.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int most_stem_channels = 4;
inline constexpr int stem_rows = 8, stem_columns = 16;  // output pixels of a tile
inline constexpr int stem_pixels = stem_rows * stem_columns;
inline constexpr int word_bytes = 4;  // what a register of a fragment holds

inline std::string refuses_stem(const Problem& p) {
  constexpr int64_t largest_place = int64_t{1} << 27;  // of pixels along an axis: channels of two fit an int
  if (p.groups != 1 || p.c > most_stem_channels)
    return "It is for at most " + std::to_string(most_stem_channels) +
           " channels in one group, not C=" + std::to_string(p.c) + " in " + std::to_string(p.groups) + ".";
  if (p.w.dilation != 1 && p.w.window > 1)
    return "It takes taps of a row that are next to each other, but the dilation is " + std::to_string(p.w.dilation) +
           ".";
  if (std::string sentence = refuses_places(p, largest_place); !sentence.empty()) return sentence;
  const int64_t tiles = p.n * divide_up(p.h.out, stem_rows) * divide_up(p.w.out, stem_columns);
  if (tiles > most_blocks / 2) return "It numbers tiles in 32 bits, but there are " + std::to_string(tiles) + ".";
  return {};
}

// Of a tile's source: rows; elements of one that are read, and from one to the next.
struct StemExtent {
  int64_t rows, line, pitch;

  static StemExtent of(const Problem& p, int64_t origin) {
    const int64_t element = dtype_bytes(p.dtype);
    const int64_t line = ((stem_columns - 1) * p.w.stride + p.w.window) * p.c;
    return {(stem_rows - 1) * p.h.stride + p.h.reach(), line,
            round_up(origin + line + word_bytes / element, vector_bytes / element)};
  }
};

// A tile of output pixels.
struct StemPlace {
  int image, row, column;
};

// A row of it: one line of (pixel, channel) in channels_last, one of pixels for each channel in NCHW.
template <class T>
struct StemInput {
  const T* data;
  int64_t image, line, row;  // strides in elements: images, lines of a row, rows
  int lines, line_elements;  // of a row
  int spread;                // elements in the tile from one of a line to the next
  int height, channels;
  int stride_h, stride_w, pad_h, pad_w;
  int tiles, tiles_down, tiles_across;
  int rows, read, pitch, origin;  // of a tile; read: elements of a line; origin: place of a row's first element
  bool wide;                      // rows of whole chunks of 16 bytes

  FASTCONV_DEVICE StemPlace place(int tile) const {
    return {tile / tiles_across / tiles_down, tile / tiles_across % tiles_down * stem_rows,
            tile % tiles_across * stem_columns};
  }

  // A warp takes a line at a time. The copies are one group.
  FASTCONV_DEVICE void bring(const StemPlace& at, Shared<T> tile, int threads) const {
    const int warp = this_thread() / lanes_of_warp, lane = this_thread() % lanes_of_warp;
    const int top = at.row * stride_h - pad_h, left = at.column * stride_w - pad_w;
    const int start = left * (lines == 1 ? channels : 1);
    for (int i = warp; i < rows * lines; i += threads / lanes_of_warp) {
      const int own = i / lines, of_row = i % lines, y = top + own;
      const bool present = static_cast<unsigned>(y) < static_cast<unsigned>(height);
      const T* const from = data + at.image * image + of_row * line + static_cast<int64_t>(present ? y : 0) * row;
      if (wide) {  // a chunk is whole inside a row or outside of it
        for (int k = lane * FASTCONV_GPU::wide<T>; k < origin + read; k += lanes_of_warp * FASTCONV_GPU::wide<T>) {
          const int e = start - origin + k;
          const bool inside = present && e >= 0 && e < line_elements;
          copy_async(tile + (own * pitch + k), inside ? from + e : data, inside);
        }
      } else {
        for (int k = lane; k < read; k += lanes_of_warp) {
          const bool inside = present && static_cast<unsigned>(start + k) < static_cast<unsigned>(line_elements);
          tile.put(own * pitch + origin + of_row + k * spread, inside ? fetch(from + start + k) : T{});
        }
      }
    }
    commit_group();
  }

  static StemInput of(const Problem& p, const void* x) {
    constexpr int chunk = FASTCONV_GPU::wide<T>;
    const bool nhwc = p.layout == Layout::nhwc;
    auto i = [](int64_t v) { return static_cast<int>(v); };
    StemInput in{};
    in.data = static_cast<const T*>(x);
    in.line_elements = i(p.w.in * (nhwc ? p.c : 1)), in.lines = i(nhwc ? 1 : p.c), in.spread = in.lines;
    in.image = p.c * p.in_pixels(), in.line = p.in_pixels(), in.row = in.line_elements;
    in.height = i(p.h.in), in.channels = i(p.c);
    in.stride_h = i(p.h.stride), in.stride_w = i(p.w.stride), in.pad_h = i(p.h.pad_lo), in.pad_w = i(p.w.pad_lo);
    in.tiles_down = i(divide_up(p.h.out, stem_rows)), in.tiles_across = i(divide_up(p.w.out, stem_columns));
    in.tiles = i(p.n * in.tiles_down * in.tiles_across);
    in.wide = nhwc && in.line_elements % chunk == 0 && reinterpret_cast<uintptr_t>(x) % vector_bytes == 0;
    // A row of a tile begins as far behind a chunk's beginning as its padding says, wherever the tile is.
    in.origin = in.wide ? i((chunk - p.w.pad_lo * p.c % chunk) % chunk) : 0;
    const StemExtent extent = StemExtent::of(p, in.origin);
    in.rows = i(extent.rows), in.read = i(extent.line / in.spread), in.pitch = i(extent.pitch);
    return in;
  }
};

}  // namespace fastconv::FASTCONV_GPU
