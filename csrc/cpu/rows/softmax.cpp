// softmax2d: exp(x - max) over its sum, over the channels of every pixel: torch's softmax over the last dimension.
//
// A row is read once for its maximum and once for its powers, which wait in scratch in the arithmetic type until their
// sum is known; both come from the nearest cache. A row of minus infinities, or with plus infinity or NaN in it, is
// NaN, as torch's is. Rows are independent: bits depend on no thread. Bytes: x once, out once; a polynomial an element.
// Loses where rows are short, and in nchw, which it refuses.
#include "arena.h"
#include "refuses.h"
#include "row.h"

namespace fastconv::FASTCONV_ISA {

namespace {

int64_t scratch_step(const Problem& p) { return round_up(p.c * int64_t{sizeof(double)}, cache_line); }

int64_t workspace(const Problem& p, int threads) { return threads * scratch_step(p); }

template <class T>
void softmax(const T* x, T* out, int64_t length, arithmetic<T>* powers) {
  using A = arithmetic<T>;
  using V = Vec<A>;
  V most[4];
  for (V& each : most) each = V::broadcast(-std::numeric_limits<A>::infinity());
  in_fours<V>(length, [&](int64_t i, int r, auto count) {
    if constexpr (std::is_same_v<decltype(count), int>) {
      A lanes[V::lanes];
      V::broadcast(-std::numeric_limits<A>::infinity()).store(lanes);
      store(lanes, load(x + i, count), count);
      most[r] = max(most[r], V::load(lanes));
    } else {
      most[r] = max(most[r], load(x + i, count));
    }
  });
  const V largest = V::broadcast(largest_lane(max(max(most[0], most[1]), max(most[2], most[3]))));
  V sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  in_fours<V>(length, [&](int64_t i, int r, auto count) {
    store(powers + i, exp(load(x + i, count) - largest), count);
    sum[r] = sum[r] + load(powers + i, count);
  });
  const V share = V::broadcast(1 / sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])));
  each_register<V>(length, [&](int64_t i, auto count) { store(out + i, load(powers + i, count) * share, count); });
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.x_elements() == 0) return;
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Rows<T> rows(p, args);
    parallel(rows.count, [&](int64_t begin, int64_t end, int thread) {
      auto* powers = reinterpret_cast<arithmetic<T>*>(static_cast<char*>(args.workspace) + thread * scratch_step(p));
      for (int64_t row = begin; row < end; ++row) softmax(rows.from(row), rows.to(row), rows.length, powers);
    });
  });
}

}  // namespace

extern const KernelBody softmax2d_fprop_rows{
    .refuses = refuses_planes, .workspace = workspace, .run = run, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
