// The second stage of every weight gradient: sums that blocks made of parts of the pixels are added in a fixed order,
// rounded once and written where the filter's strides say. The first stage leaves them as float, [part][filter][tap]
// [channel of the group, padded].
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/shared.h"

namespace fastconv::FASTCONV_GPU {

// How the pixels of a problem are cut. It follows from the problem alone, so that the order of sums does too.
struct Parts {
  int count, units;  // of them; pixels, strips or steps in each but the last, which has what is left

  // Enough parts that `blocks` blocks a part fill a chip, while none has less than `least` units.
  static Parts of(int64_t units, int64_t blocks, int64_t least) {
    constexpr int64_t wanted_blocks = 528;  // four for each of an H200's multiprocessors; not tuned
    const int64_t most = std::max<int64_t>(1, units / least);
    const int64_t each = divide_up(units, std::clamp<int64_t>(wanted_blocks / blocks, 1, most));
    return {static_cast<int>(divide_up(units, each)), static_cast<int>(each)};
  }
};

inline constexpr int add_elements = 32, add_lanes = 8;  // of a block; a lane adds every eighth part

template <class T>
struct AddParams {
  const float* from;
  T* to;
  int64_t filter_stride, channel_stride, r_stride, s_stride;
  int64_t elements;  // of a part
  int parts, padded, channels, taps, width;
};

template <class T>
FASTCONV_GLOBAL(add_elements* add_lanes, 4)
add_parts(FASTCONV_PARAMS(AddParams<T>) p) {
  constexpr int at_once = 4;  // loads in flight
  const int element = this_thread() % add_elements, lane = this_thread() / add_elements;
  const int64_t i = static_cast<int64_t>(this_block().x) * add_elements + element;
  const Shared<float> shared = Shared<float>::at(0);
  float sum = 0;
  if (i < p.elements) {
    for (int part = lane; part < p.parts; part += at_once * add_lanes) {
      float value[at_once];
      FASTCONV_UNROLL
      for (int k = 0; k < at_once; ++k) {
        const int own = part + k * add_lanes;
        value[k] = own < p.parts ? fetch(p.from + own * p.elements + i) : 0.0f;
      }
      FASTCONV_UNROLL
      for (int k = 0; k < at_once; ++k) sum += value[k];
    }
  }
  shared.put(lane * add_elements + element, sum);
  barrier();
  const int c = static_cast<int>(i % p.padded), tap = static_cast<int>(i / p.padded % p.taps);
  if (lane > 0 || i >= p.elements || c >= p.channels) return;
  FASTCONV_UNROLL
  for (int k = 1; k < add_lanes; ++k) sum += shared.get(k * add_elements + element);
  T* const to = p.to + i / p.padded / p.taps * p.filter_stride + c * p.channel_stride + tap / p.width * p.r_stride +
                tap % p.width * p.s_stride;
  store(to, Pack<T, 1>{{narrow<T>(sum)}});
}

// Adds what a first stage left in the workspace. padded: channels of a group there.
template <class T>
void start_add(const Problem& p, const Args& args, int parts, int64_t padded, Stream stream) {
  auto i = [](int64_t v) { return static_cast<int>(v); };
  const int64_t elements = p.k * p.taps() * padded;
  const AddParams<T> params{static_cast<const float*>(args.workspace),
                            static_cast<T*>(args.out),
                            args.w_stride[0],
                            args.w_stride[1],
                            args.w_stride[2],
                            args.w_stride[3],
                            elements,
                            parts,
                            i(padded),
                            i(p.channels_per_group()),
                            i(p.taps()),
                            i(p.w.window)};
  launch(add_parts<T>, params, {static_cast<unsigned>(divide_up(elements, add_elements))}, add_elements * add_lanes,
         add_elements * add_lanes * sizeof(float), stream);
}

}  // namespace fastconv::FASTCONV_GPU
