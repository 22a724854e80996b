// attention: softmax(factor·q·kᵀ + mask)·v for every image and head, as torch's scaled_dot_product_attention.
//
// A task is a block of queries of one head. The head's keys are turned once for all its blocks that a thread takes, so
// that a register holds a channel of many keys; then a tile of queries by two registers of keys gathers products over
// the channels, the block's scores go through exp in scratch (they stay in L2), and a tile of queries by two registers
// of channels gathers the values over all keys. Queries, keys and values are read by strides: heads and q, k and v may
// lie beside each other as one linear layer leaves them. A query that no key is left for has weights of 0, as in torch.
//
// The order of every sum depends on the problem alone. Bytes: q, k, v once, out once; keys turned once a thread; scores
// block·keys·4. Loses where keys are few and channels not a multiple of a register: tiles are then mostly empty; and
// with very many keys, whose scores leave L2.
#include "arena.h"
#include "cpu/epilogue.h"
#include "refuses.h"
#include "rows/row.h"
#include "simd/fma_into.h"

namespace fastconv::FASTCONV_ISA {

namespace {

constexpr int64_t block = 32;  // queries
constexpr int tile_rows = 6, tile_columns = 2;

template <class T>
class Attention {
  using A = arithmetic<T>;
  using V = Vec<A>;
  static constexpr int64_t panel = tile_columns * V::lanes;

 public:
  Attention(const Problem& p, const Args& args)
      : p_(p), args_(args), keys_(p.h.window), depth_(p.c / p.groups), wide_(p.k / p.groups) {
    padded_ = round_up(keys_, panel);
    Arena one(nullptr);
    share(one);
    step_ = one.used();
  }

  int64_t thread_bytes() const { return step_; }

  void run(const Parallel& parallel) const {
    const int64_t blocks = divide_up(p_.h.in, block);
    parallel(p_.n * p_.groups * blocks, [&](int64_t begin, int64_t end, int thread) {
      Arena arena(static_cast<char*>(args_.workspace) + thread * step_);
      const Scratch scratch = share(arena);
      int64_t turned = -1;  // the head whose keys lie there
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / (p_.groups * blocks), head = i / blocks % p_.groups;
        if (turned != i / blocks) turn_keys(n, head, scratch.keys);
        turned = i / blocks;
        attend(n, head, i % blocks * block, scratch);
      }
    });
  }

 private:
  struct Scratch {
    A *keys, *queries, *scores, *inverse;  // [depth][padded keys], [block][depth], [block][padded keys], [block]
  };
  Scratch share(Arena& arena) const {
    A* keys = arena.take<A>(depth_ * padded_);
    A* queries = arena.take<A>(block * depth_);
    A* scores = arena.take<A>(block * padded_);
    return {keys, queries, scores, arena.take<A>(block)};
  }

  static const T* head_of(const void* from, const int64_t* stride, int64_t n, int64_t head) {
    return static_cast<const T*>(from) + n * stride[0] + head * stride[1];
  }

  void turn_keys(int64_t n, int64_t head, A* to) const {
    const T* from = head_of(args_.keys, args_.keys_stride, n, head);
    const int64_t token = args_.keys_stride[2];
    for (int64_t d = 0; d < depth_; ++d) {
      for (int64_t s = 0; s < keys_; ++s) to[d * padded_ + s] = widen(from[s * token + d]);
      std::fill(to + d * padded_ + keys_, to + (d + 1) * padded_, A(0));
    }
  }

  void attend(int64_t n, int64_t head, int64_t first, const Scratch& scratch) const {
    const int64_t queries = std::min(block, p_.h.in - first);
    const T* from = head_of(args_.x, args_.x_stride, n, head) + first * args_.x_stride[2];
    const A factor = static_cast<A>(args_.factor);
    for (int64_t i = 0; i < queries; ++i)
      for (int64_t d = 0; d < depth_; ++d)
        scratch.queries[i * depth_ + d] = widen(from[i * args_.x_stride[2] + d]) * factor;
    multiply(queries, padded_, depth_, scratch.queries, depth_, scratch.keys, padded_,
             [&](int64_t i, int64_t s, V sum, int count) { store(scratch.scores + i * padded_ + s, sum, count); });
    for (int64_t i = 0; i < queries; ++i) {
      A* row = scratch.scores + i * padded_;
      if (p_.mask) add_mask(n, head, first + i, row);
      scratch.inverse[i] = 1 / powers(row);
    }
    T* out = static_cast<T*>(args_.out) + (n * p_.h.in + first) * p_.k + head * wide_;
    multiply(queries, wide_, keys_, scratch.scores, padded_, head_of(args_.values, args_.values_stride, n, head),
             args_.values_stride[2], [&](int64_t i, int64_t c, V sum, int count) {
               store(out + i * p_.k + c, sum * V::broadcast(scratch.inverse[i]), count);
             });
  }

  void add_mask(int64_t n, int64_t head, int64_t query, A* row) const {
    const int64_t* stride = args_.mask_stride;
    const T* mask = static_cast<const T*>(args_.mask) + n * stride[0] + head * stride[1] + query * stride[2];
    for (int64_t s = 0; s < keys_; ++s) row[s] += widen(mask[s * stride[3]]);
  }

  // exp(score - the largest) in place, and their sum; of minus infinities alone zeros, and one.
  A powers(A* row) const {
    constexpr A lowest = -std::numeric_limits<A>::infinity();
    std::fill(row + keys_, row + padded_, lowest);
    V most = V::broadcast(lowest), sum = V::zero();
    for (int64_t s = 0; s < padded_; s += V::lanes) most = max(most, V::load(row + s));
    const A largest = largest_lane(most);
    if (largest == lowest) {
      std::fill(row, row + padded_, A(0));
      return 1;
    }
    for (int64_t s = 0; s < padded_; s += V::lanes) {
      const V power = exp(V::load(row + s) - V::broadcast(largest));
      power.store(row + s);
      sum = sum + power;
    }
    return sum_lanes(sum);
  }

  // put(row, column, Σ a[row][i]·b[i][column], count) for all rows and columns, b in rows of `b_step`.
  template <class B, class Put>
  static void multiply(int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t a_step, const B* b,
                       int64_t b_step, Put&& put) {
    for (int64_t row = 0; row < rows; row += tile_rows) {
      const int64_t left = std::min<int64_t>(tile_rows, rows - row);
      for (int64_t column = 0; column < columns; column += panel) {
        const int count = static_cast<int>(std::min(panel, columns - column));
        const A* const from = a + row * a_step;
        if (count < panel)
          tile(left, depth, from, a_step, b + column, b_step, row, column, put, count);
        else
          tile(left, depth, from, a_step, b + column, b_step, row, column, put, std::integral_constant<int, panel>());
      }
    }
  }

  template <class B, class Put, class Count>
  static void tile(int64_t rows, int64_t depth, const A* a, int64_t a_step, const B* b, int64_t b_step, int64_t row,
                   int64_t column, Put& put, Count count) {
    V sum[tile_rows][tile_columns];
    const A* from[tile_rows];
    for (int r = 0; r < tile_rows; ++r) from[r] = a + std::min<int64_t>(r, rows - 1) * a_step;
    unrolled<tile_rows * tile_columns>(
        [&](auto i) __attribute__((always_inline)) { sum[i / tile_columns][i % tile_columns] = V::zero(); });
    const auto lanes = [&](int c) { return std::clamp<int>(count - c * V::lanes, 0, V::lanes); };
    for (int64_t i = 0; i < depth; ++i, b += b_step) {
      V right[tile_columns];
      unrolled<tile_columns>([&](auto c) __attribute__((always_inline)) {
        if constexpr (std::is_same_v<Count, int>)
          right[c] = lanes(c) ? load(b + c * V::lanes, lanes(c)) : V::zero();
        else
          right[c] = load(b + c * V::lanes);
      });
      unrolled<tile_rows>([&](auto r) __attribute__((always_inline)) {
        const V left = V::broadcast(from[r][i]);
        unrolled<tile_columns>([&](auto c) __attribute__((always_inline)) { fma_into(sum[r][c], left, right[c]); });
      });
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int c = 0; c < tile_columns; ++c)
        if (lanes(c)) put(row + r, column + c * V::lanes, sum[r][c], lanes(c));
  }

  const Problem& p_;
  const Args& args_;
  int64_t keys_, depth_, wide_, padded_, step_;
};

int64_t workspace(const Problem& p, int threads) {
  int64_t bytes = 0;
  with_dtype(p.dtype, [&](auto* t) {
    bytes = threads * Attention<std::remove_pointer_t<decltype(t)>>(p, Args()).thread_bytes();
  });
  return bytes;
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  if (p.y_elements() == 0) return;
  with_dtype(p.dtype, [&](auto* t) { Attention<std::remove_pointer_t<decltype(t)>>(p, args).run(parallel); });
}

}  // namespace

extern const KernelBody attention_fprop_blocks{.refuses = refuses_attention, .workspace = workspace, .run = run};

}  // namespace fastconv::FASTCONV_ISA
