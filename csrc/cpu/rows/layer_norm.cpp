// layernorm2d: every pixel's channels less their mean, over their deviation, times weight plus bias: torch's layer_norm
// over the last dimension, and over the channels of a channels_last map.
//
// A row is read three times, the second and third time from the nearest cache: for its mean, for the deviations from
// it and their squares, and to be written. What the rounded mean is off is seen in the sum of the deviations and taken
// away again (the corrected two-pass algorithm), so a large mean costs no digits. Rows are independent: bits depend on
// no thread. Bytes: x once, out once. Loses where rows are short: most of a register is empty, and the sums across its
// lanes take longer than the rows; and in nchw, which it refuses.
#include "refuses.h"
#include "row.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <class T>
class LayerNorm {
  using A = arithmetic<T>;
  using V = Vec<A>;

 public:
  LayerNorm(const Problem& p, const Args& args)
      : rows_(p, args),
        weight_(static_cast<const A*>(args.w)),
        bias_(static_cast<const A*>(args.bias)),
        eps_(static_cast<A>(args.eps)) {}

  void run(const Parallel& parallel) const {
    parallel(rows_.count, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) normalize(rows_.from(row), rows_.to(row));
    });
  }

 private:
  void normalize(const T* x, T* out) const {
    const A share = 1 / static_cast<A>(rows_.length);
    V sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()}, square[4] = {sum[0], sum[0], sum[0], sum[0]};
    in_fours<V>(rows_.length, [&](int64_t i, int r, auto count) { sum[r] = sum[r] + load(x + i, count); });
    const A rounded = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) * share;
    for (V& each : sum) each = V::zero();
    in_fours<V>(rows_.length, [&](int64_t i, int r, auto count) {
      const V off = only(load(x + i, count) - V::broadcast(rounded), count);
      sum[r] = sum[r] + off, square[r] = fma(off, off, square[r]);
    });
    const A rest = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) * share;
    const A squares = sum_lanes((square[0] + square[1]) + (square[2] + square[3])) * share;
    const A variance = squares - rest * rest;  // NaN stays NaN
    const V inverse = V::broadcast(1 / std::sqrt((variance < 0 ? A(0) : variance) + eps_));
    const V mean = V::broadcast(rounded), off = V::broadcast(rest);
    each_register<V>(rows_.length, [&](int64_t i, auto count) {
      V y = (load(x + i, count) - mean - off) * inverse;
      if (weight_) y = y * load(weight_ + i, count);
      if (bias_) y = y + load(bias_ + i, count);
      store(out + i, y, count);
    });
  }

  // The lanes that hold elements; the others are zero.
  static V only(V v, int count) {
    A lanes[V::lanes] = {};
    store(lanes, v, count);
    return V::load(lanes);
  }
  static V only(V v, std::integral_constant<int, V::lanes>) { return v; }

  Rows<T> rows_;
  const A *weight_, *bias_;
  A eps_;
};

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.x_elements() == 0) return;
  with_dtype(p.dtype, [&](auto* t) { LayerNorm<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace

extern const KernelBody layernorm2d_fprop_rows{
    .refuses = refuses_planes, .workspace = no_workspace, .run = run, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
