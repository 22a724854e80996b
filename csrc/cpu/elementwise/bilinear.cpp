// bilinear2d: torch's interpolate(mode="bilinear"), in both layouts, between channel slices.
//
// Two steps: a row of the input is interpolated along W into scratch, in the arithmetic type; an output row is the
// weighted sum of two of them, one flat run. Each thread keeps two rows, one for even rows of the input and one for
// odd ones, so that where the map grows a row is interpolated along W once for all output rows between two rows of
// the input. NCHW is the same with every plane an image of one channel.
// Bytes: x once, out once, past the caches where it is larger than the last one. Zen 4, 2 threads, AVX-512, f32, torch
// 2.13, 2026-11-22, into memory that is there, us and times torch in channels_last and in NCHW: 21@28 to 224 113 (6.8x)
// and 176 (5.4x), batch 8 1504 (2.8x) and 1573 (4.7x), 64@56 to 28 12 (1.7x) and 71 (2.2x), 256@1 to 28 13 (15x,
// allocated). Loses in channels_last where a map doubles and its result nearly fills the last cache: 64@56 to 112 batch
// 8 0.77x, 256@28 to 56 batch 8 0.89x. Along W, NCHW goes element by element.
#include "arena.h"
#include "cpu/epilogue.h"
#include "refuses.h"
#include "simd/each_register.h"
#include "simd/stream.h"
#include "weights.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <class T>
class Bilinear {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  Bilinear(const Problem& p, const Args& args, int threads)
      : p_(p),
        x_(static_cast<const T*>(args.x)),
        out_(static_cast<T*>(args.out)),
        pixelwise_(p.layout == Layout::nhwc),
        channels_(pixelwise_ ? p.c : 1),
        source_(pixelwise_ ? p.source_channels() : 1),
        buffer_(pixelwise_ ? p.buffer_channels() : 1),
        length_(p.w.out * channels_) {
    Arena arena(args.workspace);
    first_ = arena.take<int64_t>(p.w.out), second_ = arena.take<int64_t>(p.w.out);
    near_ = arena.take<A>(p.w.out), far_ = arena.take<A>(p.w.out);
    scratch_step_ = round_up(length_, line);
    scratch_ = arena.take<A>(threads * 2 * scratch_step_);
    used_ = arena.used();
    const int64_t row = length_ * static_cast<int64_t>(sizeof(T));
    streams_ = std::is_same_v<T, A> && buffer_ == channels_ && row % cache_line == 0 &&
               reinterpret_cast<intptr_t>(out_) % cache_line == 0 &&
               p.epilogue.out_offset * p.out_pixels() * static_cast<int64_t>(sizeof(T)) % cache_line == 0 &&
               p.y_elements() * static_cast<int64_t>(sizeof(T)) > machine().l3;
  }

  int64_t workspace() const { return used_; }

  void run(const Parallel& parallel) const {
    for (int64_t o = 0; o < p_.w.out; ++o) {
      const Between at = between(p_.w, p_.corners, o);
      first_[o] = at.first * source_, second_[o] = at.second * source_;
      near_[o] = static_cast<A>(at.near), far_[o] = static_cast<A>(at.far);
    }
    const int64_t images = pixelwise_ ? p_.n : p_.n * p_.c;
    parallel(images * p_.h.out, [&](int64_t begin, int64_t end, int thread) {
      Kept kept{scratch_ + thread * 2 * scratch_step_, {-1, -1}};
      for (int64_t i = begin; i < end; ++i) output_row(i / p_.h.out, i % p_.h.out, kept);
      if (streams_) finish_streams();
    });
  }

 private:
  static constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(A));

  struct Kept {
    A* rows;
    int64_t held[2];  // image·H + row
  };

  // The input row, interpolated along W.
  const A* widened(int64_t image, int64_t row, Kept& kept) const {
    const int64_t slot = row % 2, number = image * p_.h.in + row;
    A* to = kept.rows + slot * scratch_step_;
    if (kept.held[slot] == number) return to;
    kept.held[slot] = number;
    const T* from = x_ + row * p_.w.in * source_;
    if (pixelwise_)
      from += image * p_.in_pixels() * source_ + p_.in_offset;
    else
      from += (image / p_.c * p_.source_channels() + p_.in_offset + image % p_.c) * p_.in_pixels();
    if (channels_ == 1) {
      for (int64_t o = 0; o < p_.w.out; ++o)
        to[o] = widen(from[first_[o]]) * near_[o] + widen(from[second_[o]]) * far_[o];
      return to;
    }
    for (int64_t o = 0; o < p_.w.out; ++o) {
      const T *left = from + first_[o], *right = from + second_[o];
      const V near = V::broadcast(near_[o]), far = V::broadcast(far_[o]);
      each_register<V>(channels_, [&](int64_t c, auto count) {
        store(to + o * channels_ + c, fma(load(right + c, count), far, load(left + c, count) * near), count);
      });
    }
    return to;
  }

  void output_row(int64_t image, int64_t row, Kept& kept) const {
    const Between at = between(p_.h, p_.corners, row);
    const A *top = widened(image, at.first, kept), *bottom = widened(image, at.second, kept);
    const V near = V::broadcast(static_cast<A>(at.near)), far = V::broadcast(static_cast<A>(at.far));
    const auto value = [&](int64_t i, auto count) {
      return fma(load(bottom + i, count), far, load(top + i, count) * near);
    };
    T* to = out_ + row * p_.w.out * buffer_;
    if (pixelwise_)
      to += image * p_.out_pixels() * buffer_ + p_.epilogue.out_offset;
    else
      to += (image / p_.c * p_.buffer_channels() + p_.epilogue.out_offset + image % p_.c) * p_.out_pixels();
    if (buffer_ != channels_) {
      for (int64_t o = 0; o < p_.w.out; ++o)
        each_register<V>(channels_, [&](int64_t c, auto count) {
          store(to + o * buffer_ + c, value(o * channels_ + c, count), count);
        });
      return;
    }
    if constexpr (std::is_same_v<T, A>)
      if (streams_)
        return each_register<V>(length_, [&](int64_t i, auto count) {
          if constexpr (std::is_same_v<decltype(count), int>)
            store(to + i, value(i, count), count);
          else
            stream(to + i, value(i, count));
        });
    each_register<V>(length_, [&](int64_t i, auto count) { store(to + i, value(i, count), count); });
  }

  const Problem& p_;
  const T* x_;
  T* out_;
  bool pixelwise_;
  int64_t channels_, source_, buffer_, length_;  // of an image, of its buffers' pixels, of an output row
  int64_t *first_, *second_;                     // where each output column reads in a row of x
  A *near_, *far_, *scratch_;
  int64_t scratch_step_, used_;
  bool streams_;
};

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype,
             [&](auto* t) { bytes = Bilinear<std::remove_pointer_t<decltype(t)>>(p, Args(), threads).workspace(); });
  return bytes;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.x_elements() == 0) return;
  with_dtype(p.dtype,
             [&](auto* t) { Bilinear<std::remove_pointer_t<decltype(t)>>(p, args, parallel.threads()).run(parallel); });
}

}  // namespace

extern const KernelBody bilinear2d_fprop_rows{
    .refuses = refuses_fused, .workspace = workspace, .run = run, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
