// Max unpooling and its gradient, from torch's int64 positions: y is zero but for y[index[i]] = x[i], the last of
// several writers winning in the order of i; dx[i] = dy[index[i]]. A task owns whole planes (NCHW) or a block of
// channels of one image (NHWC), so no two tasks write the same element. Moves 8 bytes of index beside each value;
// nothing to vectorise. An index outside the output throws std::runtime_error.
#include <cstring>
#include <stdexcept>

#include "windows.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t block_channels = 16;  // one cache line of f32: tasks share none

std::string refuses(const Problem& p) {
  if (p.dtype == Dtype::other) return "The dtype is none of f64, f32, f16, bf16.";
  if (p.index != Index::i64) return "Unpooling needs int64 positions.";
  if (p.epilogue.out_channels) return "It writes no channel slice of a larger buffer.";
  return {};
}

int64_t checked(int64_t position, const Problem& p) {
  if (position < 0 || position >= p.out_pixels())
    throw std::runtime_error("Found an invalid max index: " + std::to_string(position) +
                             " (output volumes are of size " + std::to_string(p.h.out) + "x" + std::to_string(p.w.out) +
                             ").");
  return position;
}

// Calls f(n, first channel, channels) for every task's share.
template <class F>
void each_block(const Problem& p, const Parallel& parallel, F&& f) {
  const int64_t width = p.layout == Layout::nhwc ? block_channels : 1;
  const int64_t blocks = (p.c + width - 1) / width;
  parallel(p.n * blocks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % blocks * width;
      f(i / blocks, c, std::min(width, p.c - c));
    }
  });
}

void fprop(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* x = static_cast<const T*>(args.x);
    const int64_t* index = static_cast<const int64_t*>(args.index);
    T* y = static_cast<T*>(args.out);
    const PoolView in = input_view(p), out = output_view(p);
    each_block(p, parallel, [&](int64_t n, int64_t c, int64_t channels) {
      const int64_t steps = out.nhwc ? p.out_pixels() : 1, run = out.nhwc ? channels : p.out_pixels();
      for (int64_t pixel = 0; pixel < steps; ++pixel)
        std::memset(y + out.at(n, c, pixel), 0, static_cast<size_t>(run) * sizeof(T));
      for (int64_t pixel = 0; pixel < p.in_pixels(); ++pixel)
        for (int64_t k = 0; k < channels; ++k) {
          const int64_t from = in.at(n, c + k, pixel);
          y[out.at(n, c + k, checked(index[from], p))] = x[from];
        }
    });
  });
}

void dgrad(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* dy = static_cast<const T*>(args.y);
    const int64_t* index = static_cast<const int64_t*>(args.index);
    T* dx = static_cast<T*>(args.out);
    const PoolView in = input_view(p), out = output_view(p);
    each_block(p, parallel, [&](int64_t n, int64_t c, int64_t channels) {
      for (int64_t pixel = 0; pixel < p.in_pixels(); ++pixel)
        for (int64_t k = 0; k < channels; ++k) {
          const int64_t to = in.at(n, c + k, pixel);
          dx[to] = dy[out.at(n, c + k, checked(index[to], p))];
        }
    });
  });
}

}  // namespace

extern const KernelBody unpool2d_fprop_direct{refuses, no_workspace, fprop};
extern const KernelBody unpool2d_dgrad_direct{refuses, no_workspace, dgrad};

}  // namespace fastconv::FASTCONV_ISA
