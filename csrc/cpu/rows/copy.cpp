// copy2d: a dense tensor from one of any strides, for what a plan's views leave in another order than a kernel reads.
//
// Where channels lie together in x, a pixel is one memcpy. Where they do not, squares of pixels and channels are copied
// element by element, so that the lines of either side are used up while they are in the nearest cache. Bytes: x once,
// out once. Loses to reorder2d, which turns squares in registers, on a change of layout alone.
#include <cstring>

#include "cpu/epilogue.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t square = 16;

template <class T>
void copy_row(const T* x, T* out, const Problem& p, const int64_t* stride) {
  const int64_t channel = stride[1], column = stride[3];
  if (channel == 1 || p.c == 1) {
    for (int64_t w = 0; w < p.w.in; ++w) std::memcpy(out + w * p.c, x + w * column, p.c * sizeof(T));
    return;
  }
  for (int64_t first_w = 0; first_w < p.w.in; first_w += square)
    for (int64_t first_c = 0; first_c < p.c; first_c += square)
      for (int64_t w = first_w; w < std::min(p.w.in, first_w + square); ++w)
        for (int64_t c = first_c; c < std::min(p.c, first_c + square); ++c)
          out[w * p.c + c] = x[w * column + c * channel];
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.x_elements() == 0) return;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const int64_t *stride = args.x_stride, row = p.w.in * p.c;
    parallel(p.n * p.h.in, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        copy_row(static_cast<const T*>(args.x) + i / p.h.in * stride[0] + i % p.h.in * stride[2],
                 static_cast<T*>(args.out) + i * row, p, stride);
    });
  });
}

std::string refuses(const Problem& p) {
  if (p.layout != Layout::nhwc) return "The layout is nchw: it writes channels_last.";
  if (p.epilogue.out_channels) return "It writes no channel slice of a larger buffer.";
  return refuses_epilogue(p);
}

}  // namespace

extern const KernelBody copy2d_fprop_runs{.refuses = refuses, .workspace = no_workspace, .run = run};

}  // namespace fastconv::FASTCONV_ISA
