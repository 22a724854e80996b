// nearest2d: each output pixel is the input pixel that it lies in, in both layouts, between channel slices.
//
// Nothing is computed. An output row is put together from one input row, a pixel's channels at a time, or in NCHW an
// element at a time; where the map grows, the rows that come from the same input row are copies of the first. Bytes: x
// once, out once, and each copied row once more from the nearest cache.
#include <cstring>

#include "cpu/epilogue.h"
#include "refuses.h"
#include "weights.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <class T>
class Nearest {
 public:
  Nearest(const Problem& p, const Args& args)
      : p_(p),
        x_(static_cast<const T*>(args.x)),
        out_(static_cast<T*>(args.out)),
        pixelwise_(p.layout == Layout::nhwc),
        channels_(pixelwise_ ? p.c : 1),
        source_(pixelwise_ ? p.source_channels() : 1),
        buffer_(pixelwise_ ? p.buffer_channels() : 1) {}

  void run(const Parallel& parallel) const {
    const int64_t images = pixelwise_ ? p_.n : p_.n * p_.c;
    parallel(images * p_.h.out, [&](int64_t begin, int64_t end, int) {
      const T* above = nullptr;  // the output row before, and where it came from
      const T* came_from = nullptr;
      for (int64_t i = begin; i < end; ++i) {
        const T* from = source(i / p_.h.out) + nearest(p_.h, i % p_.h.out) * p_.w.in * source_;
        T* to = target(i / p_.h.out) + i % p_.h.out * p_.w.out * buffer_;
        from == came_from ? copy(above, to) : expand(from, to);
        above = to, came_from = from;
      }
    });
  }

 private:
  const T* source(int64_t image) const {
    const int64_t pixels = p_.in_pixels();
    if (pixelwise_) return x_ + image * pixels * source_ + p_.in_offset;
    return x_ + (image / p_.c * p_.source_channels() + p_.in_offset + image % p_.c) * pixels;
  }
  T* target(int64_t image) const {
    const int64_t pixels = p_.out_pixels(), offset = p_.epilogue.out_offset;
    if (pixelwise_) return out_ + image * pixels * buffer_ + offset;
    return out_ + (image / p_.c * p_.buffer_channels() + offset + image % p_.c) * pixels;
  }
  static void put(T* to, const T* from, int64_t count) { std::memcpy(to, from, count * sizeof(T)); }

  void expand(const T* from, T* to) const {
    for (int64_t o = 0; o < p_.w.out; ++o) put(to + o * buffer_, from + nearest(p_.w, o) * source_, channels_);
  }
  void copy(const T* above, T* to) const {
    if (buffer_ == channels_) return put(to, above, p_.w.out * channels_);
    for (int64_t o = 0; o < p_.w.out; ++o) put(to + o * buffer_, above + o * buffer_, channels_);
  }

  const Problem& p_;
  const T* x_;
  T* out_;
  bool pixelwise_;
  int64_t channels_, source_, buffer_;  // of an image, of its buffers' pixels
};

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.x_elements() == 0) return;
  with_dtype(p.dtype, [&](auto* t) { Nearest<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace

extern const KernelBody nearest2d_fprop_rows{
    .refuses = refuses_fused, .workspace = no_workspace, .run = run, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
