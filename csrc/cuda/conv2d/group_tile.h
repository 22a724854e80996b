// A tile of a matrix product on sm_90, and the pipeline that feeds it: one producer thread, two consumer warpgroups.
//
// A stage holds 128 bytes of depth for `rows` rows of the left operand and `columns` of the right, brought by the copy
// engine and multiplied by wgmma in place. The two groups take tiles in turns (ping-pong): while one multiplies, the
// other stores, so that short sums, the rule in networks, hide their epilogue; sharing a tile between both
// (cooperative) would leave the tensor cores idle for it. 128 x 128 sums of one group read 96 of 128 bytes a cycle of
// shared memory. A stage is read by one group alone: its four warps free it.
#pragma once

#include "cuda/common/tensor_map.h"
#include "cuda/common/warpgroup.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int line_bytes = 128;             // of depth in a stage, and of a swizzle's span
inline constexpr int span_bytes = 8 * line_bytes;  // eight lines
inline constexpr int consumer_groups = 2, warps_of_consumer = threads_of_group / lanes_of_warp;
inline constexpr int producer_registers = 40, consumer_registers = 232;

template <int Columns>
struct GroupTile {
  static constexpr int rows = 128, columns = Columns, halves = rows / group_rows;
  static constexpr int threads = (1 + consumer_groups) * threads_of_group;
  static constexpr int left_bytes = rows * line_bytes, stage_bytes = left_bytes + Columns * line_bytes;
  static constexpr int stages = Columns > 64 ? 5 : Columns > 32 ? 6 : 8;
  // A warp's sums pass through memory of its own, 16 rows and up to 64 columns at a time, to threads that store
  // neighbours.
  static constexpr int part_rows = 16, part_columns = Columns < 64 ? Columns : 64, pitch = part_columns + 8;
  static constexpr int part_bytes = part_rows * pitch * 4;
  static constexpr int parts_at = stages * stage_bytes;
  static constexpr int barriers_at = parts_at + consumer_groups * warps_of_consumer * part_bytes;
  static constexpr int shared_bytes = barriers_at + 2 * stages * 8;
  static_assert(Columns % part_columns == 0 && shared_bytes <= 227 << 10);
};

// What both sides of the pipeline count: steps of all tiles so far.
template <class Tile>
struct Pipeline {
  unsigned step = 0;

  FASTCONV_DEVICE static Mbarrier full(int stage) { return Mbarrier::at(Tile::barriers_at) + stage; }
  FASTCONV_DEVICE static Mbarrier empty(int stage) { return full(Tile::stages + stage); }
  FASTCONV_DEVICE int stage() const { return static_cast<int>(step % Tile::stages); }
  FASTCONV_DEVICE unsigned parity() const { return step / Tile::stages & 1; }
  FASTCONV_DEVICE static char* left(int stage) { return shared_base() + stage * Tile::stage_bytes; }
  FASTCONV_DEVICE static char* right(int stage) { return left(stage) + Tile::left_bytes; }

  // By all threads, before anything else.
  FASTCONV_DEVICE static void make() {
    if (this_thread() == 0) {
      for (int i = 0; i < Tile::stages; ++i) full(i).make(1), empty(i).make(warps_of_consumer);
      Mbarrier::fence_made();
    }
    barrier();
  }
  // bring(step, left, right, barrier) starts the copies of one step: stage_bytes in all.
  template <class Bring>
  FASTCONV_DEVICE void produce(int steps, Bring&& bring) {
    for (int i = 0; i < steps; ++i, ++step) {
      const int at = stage();
      empty(at).wait(parity() ^ 1);
      full(at).arrive_expecting(Tile::stage_bytes);
      bring(i, left(at), right(at), full(at));
    }
  }
};

// A thread's share of a tile's sums.
template <class T, class Tile, Lies How>
struct GroupSums {
  float sum[Tile::halves][Tile::columns / 2];

  // The products of one stage, not waited for.
  FASTCONV_DEVICE void multiply(const char* left, const char* right, bool adds) {
    constexpr int slices = line_bytes / group_depth_bytes, leading = group_rows * line_bytes;
    constexpr int slice = How == Lies::along ? group_depth_bytes : 16 / 8 * span_bytes;
    fence_products();
    FASTCONV_UNROLL
    for (int k = 0; k < slices; ++k) {
      const uint64_t b = matrix_at(right + k * slice, leading, span_bytes);
      FASTCONV_UNROLL
      for (int half = 0; half < Tile::halves; ++half) {
        const uint64_t a = matrix_at(left + half * leading + k * slice, leading, span_bytes);
        GroupProduct<T, Tile::columns>::template multiply<How, How>(sum[half], a, b, adds || k > 0);
      }
    }
    commit_products();
  }

  // first, last: of the block's tiles.
  FASTCONV_DEVICE void consume(Pipeline<Tile>& pipeline, int steps, bool first, bool last_tile) {
    const int group = this_thread() / threads_of_group;  // 1 or 2, which are its barrier and the other's
    if (!first) named_wait(group, consumer_groups * threads_of_group);
    const bool frees = this_thread() % lanes_of_warp == 0;
    int last = -1;
    for (int i = 0; i < steps; ++i, ++pipeline.step) {
      const int at = pipeline.stage();
      Pipeline<Tile>::full(at).wait(pipeline.parity());
      multiply(Pipeline<Tile>::left(at), Pipeline<Tile>::right(at), i > 0);
      wait_products<1>();
      if (frees && last >= 0) Pipeline<Tile>::empty(last).arrive();
      last = at;
    }
    if (!last_tile) named_arrive(1 + consumer_groups - group, consumer_groups * threads_of_group);
    wait_products<0>();
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) hold(sum[half]);
    if (frees && last >= 0) Pipeline<Tile>::empty(last).arrive();
    if (steps == 0) FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int i = 0; i < Tile::columns / 2; ++i) sum[half][i] = 0;
  }

  // Calls put(row, column, V neighbouring sums) for all of the tile that this warp has, V = 1 or a power of 2.
  template <int V, class Put>
  FASTCONV_DEVICE void each(Put&& put) const {
    constexpr int part = Tile::part_columns, across = part / V;
    const int lane = this_thread() % lanes_of_warp, warp = this_thread() / lanes_of_warp - warps_of_consumer;
    const Shared<float> own = Shared<float>::at(Tile::parts_at + warp * Tile::part_bytes);
    const int first_row = warp % warps_of_consumer * Tile::part_rows;
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int column = 0; column < Tile::columns; column += part) {
      FASTCONV_UNROLL
      for (int i = 0; i < part / 2; i += 2)
        own.write((lane / 4 + i / 2 % 2 * 8) * Tile::pitch + i / 4 * 8 + lane % 4 * 2,
                  Pack<float, 2>{{sum[half][column / 2 + i], sum[half][column / 2 + i + 1]}});
      join_lanes();
      for (int i = lane; i < Tile::part_rows * across; i += lanes_of_warp) {
        const int row = i / across, beside = i % across * V;
        float value[V];
        own.read_all(value, row * Tile::pitch + beside);
        put(half * group_rows + first_row + row, column + beside, value);
      }
      join_lanes();
    }
  }
};

}  // namespace fastconv::FASTCONV_GPU
