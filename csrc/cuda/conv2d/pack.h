// Filters as igemm.h reads them: for each group and written channel a row [tap][source channel], zeros behind each
// tap's last channel up to 16 bytes, or behind the row's. A filter of channels_last that lies so already is read in
// place.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/vectors.h"

namespace fastconv::FASTCONV_GPU {

template <class T>
struct PackParams {
  const T* from;
  T* to;
  int64_t source_stride, written_stride, group_stride, r_stride, s_stride;  // of the filter
  int64_t elements;                                                         // written in all
  int row, padded, channels, taps, width, columns;  // row: elements of one; padded: from tap to tap
};

inline constexpr int pack_threads = 256;

template <class T>
FASTCONV_GLOBAL(pack_threads, 1)
pack_filter(FASTCONV_PARAMS(PackParams<T>) p) {
  const int64_t i = static_cast<int64_t>(this_block().x) * pack_threads + this_thread();
  if (i >= p.elements) return;
  const int64_t row = i / p.row;
  const int at = static_cast<int>(i % p.row), c = at % p.padded, tap = at / p.padded;
  const int64_t column = row % p.columns, group = row / p.columns;
  T value{};
  if (c < p.channels && tap < p.taps)
    value = fetch(p.from + group * p.group_stride + column * p.written_stride + c * p.source_stride +
                  tap / p.width * p.r_stride + tap % p.width * p.s_stride);
  store(p.to + i, Pack<T, 1>{{value}});
}

enum class PaddedTo { tap, row };  // what ends at a multiple of 16 bytes

// Where igemm finds the filter of a problem.
template <class T>
struct PackedFilter {
  const T* data;
  int64_t row, group;
  int channels, padded, columns;

  static int64_t row_elements(const Problem& p, PaddedTo end) {
    const int64_t channels = p.pass == Pass::fprop ? p.channels_per_group() : p.filters_per_group();
    return end == PaddedTo::tap ? p.taps() * round_up(channels, wide<T>) : round_up(p.taps() * channels, wide<T>);
  }
  static int64_t elements(const Problem& p, PaddedTo end = PaddedTo::tap) {
    return (p.pass == Pass::fprop ? p.k : p.c) * row_elements(p, end);
  }

  // Packs into the workspace, unless the filter can be read in place.
  static PackedFilter of(const Problem& p, const Args& args, Stream stream, PaddedTo end = PaddedTo::tap) {
    const bool forward = p.pass == Pass::fprop;
    const int64_t cg = p.channels_per_group(), kg = p.filters_per_group();
    const int64_t channels = forward ? cg : kg, columns = forward ? kg : cg, row = row_elements(p, end);
    const int64_t padded = end == PaddedTo::tap ? round_up(channels, wide<T>) : channels;
    const int64_t* stride = args.w_stride;  // K C R S
    const T* from = static_cast<const T*>(args.w);
    const bool in_place = forward && row == p.taps() * channels && (cg == 1 || stride[1] == 1) &&
                          (p.w.window == 1 || stride[3] == cg) && (p.h.window == 1 || stride[2] == p.w.window * cg) &&
                          (p.k == 1 || stride[0] % wide<T> == 0) &&
                          reinterpret_cast<uintptr_t>(from) % vector_bytes == 0;
    auto i = [](int64_t v) { return static_cast<int>(v); };
    if (in_place) return {from, stride[0], kg * stride[0], i(channels), i(padded), i(columns)};
    T* to = static_cast<T*>(args.workspace);
    const int64_t count = elements(p, end);
    const PackParams<T> params{from,
                               to,
                               stride[forward ? 1 : 0],
                               stride[forward ? 0 : 1],
                               kg * stride[0],
                               stride[2],
                               stride[3],
                               count,
                               i(row),
                               i(padded),
                               i(channels),
                               i(p.taps()),
                               i(p.w.window),
                               i(columns)};
    launch(pack_filter<T>, params, {static_cast<unsigned>(divide_up(count, pack_threads))}, pack_threads, 0, stream);
    return {to, row, columns * row, i(channels), i(padded), i(columns)};
  }
};

}  // namespace fastconv::FASTCONV_GPU
