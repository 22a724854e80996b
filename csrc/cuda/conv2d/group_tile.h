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
inline constexpr int most_shared_bytes = 227 << 10;  // of a block
inline constexpr int producer_registers = 56, consumer_registers = 224;

// Rows x Columns sums. A warp's pass through memory of its own, 16 rows and a part of the columns at a time: as floats
// to threads that store neighbours, or as boxes to the copy engine.
template <int Rows, int Columns>
struct GroupTile {
  static constexpr int rows = Rows, columns = Columns, halves = Rows / group_rows;
  static constexpr int threads = (1 + consumer_groups) * threads_of_group;
  static constexpr int left_bytes = Rows * line_bytes, stage_bytes = left_bytes + Columns * line_bytes;
  static constexpr int part_rows = 16, part_columns = Columns < 64 ? Columns : 64;
  static constexpr int pitch = part_columns + 8, pitch_down = part_rows + 4;
  static constexpr int part_bytes = 5 * span_bytes, box_slots = 2;
  static constexpr int parts_bytes = consumer_groups * warps_of_consumer * part_bytes;
  static constexpr int fitting = (most_shared_bytes - parts_bytes) / (stage_bytes + 2 * 8);
  static constexpr int stages = fitting < 8 ? fitting : 8;
  static constexpr int parts_at = stages * stage_bytes, barriers_at = parts_at + parts_bytes;
  static constexpr int shared_bytes = barriers_at + 2 * stages * 8;
  static_assert(Rows % group_rows == 0 && Columns % part_columns == 0 && stages >= 4);
  static_assert(part_rows * pitch * 4 <= part_bytes && part_columns * pitch_down * 4 <= part_bytes);
  static_assert(box_slots * part_rows * line_bytes <= part_bytes);
};

// Blocks of a cluster that take neighbouring tiles at the same time, numbered by pixels first. Those of the same
// channels share the filters, those of the same pixels share these: each brings its part to all.
struct Team {
  int pixels = 1, channels = 1;  // blocks along each

  FASTCONV_BOTH int size() const { return pixels * channels; }
  FASTCONV_DEVICE int along_pixels() const { return size() > 1 ? rank_in_cluster() % pixels : 0; }
  FASTCONV_DEVICE int along_channels() const { return size() > 1 ? rank_in_cluster() / pixels : 0; }
  // A bit for each rank.
  FASTCONV_DEVICE uint32_t sharing_filters() const { return ((1u << pixels) - 1) << along_channels() * pixels; }
  FASTCONV_DEVICE uint32_t sharing_pixels() const {
    uint32_t ranks = 0;
    for (int i = 0; i < channels; ++i) ranks |= 1u << (i * pixels + along_pixels());
    return ranks;
  }
  FASTCONV_DEVICE uint32_t sharing() const { return sharing_filters() | sharing_pixels(); }
  FASTCONV_BOTH int sharers() const { return pixels + channels - 1; }
};

// What both sides of the pipeline count: steps of all tiles so far.
template <class Tile>
struct Pipeline {
  Team team;
  unsigned step = 0;

  FASTCONV_DEVICE static Mbarrier full(int stage) { return Mbarrier::at(Tile::barriers_at) + stage; }
  FASTCONV_DEVICE static Mbarrier empty(int stage) { return full(Tile::stages + stage); }
  FASTCONV_DEVICE int stage() const { return static_cast<int>(step % Tile::stages); }
  FASTCONV_DEVICE unsigned parity() const { return step / Tile::stages & 1; }
  FASTCONV_DEVICE static char* left(int stage) { return shared_base() + stage * Tile::stage_bytes; }
  FASTCONV_DEVICE static char* right(int stage) { return left(stage) + Tile::left_bytes; }

  // By all threads, before anything else and behind everything: blocks of a team touch each other's memory in between.
  FASTCONV_DEVICE void open() const {
    if (this_thread() == 0) {
      for (int i = 0; i < Tile::stages; ++i) full(i).make(1), empty(i).make(team.sharers() * warps_of_consumer);
      Mbarrier::fence_made();
    }
    team.size() > 1 ? cluster_barrier() : barrier();
  }
  FASTCONV_DEVICE void close() const {
    if (team.size() > 1) cluster_barrier();
  }
  // By a warp of consumers, to all who bring to its stage.
  FASTCONV_DEVICE void free(int stage) const {
    const int lane = this_thread() % lanes_of_warp;
    if (team.size() > 1 && lane < team.size() && team.sharing() >> lane & 1) empty(stage).arrive_in(lane);
    if (team.size() == 1 && lane == 0) empty(stage).arrive();
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
    int last = -1;
    for (int i = 0; i < steps; ++i, ++pipeline.step) {
      const int at = pipeline.stage();
      Pipeline<Tile>::full(at).wait(pipeline.parity());
      multiply(Pipeline<Tile>::left(at), Pipeline<Tile>::right(at), i > 0);
      wait_products<1>();
      if (last >= 0) pipeline.free(last);
      last = at;
    }
    if (!last_tile) named_arrive(1 + consumer_groups - group, consumer_groups * threads_of_group);
    wait_products<0>();
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) hold(sum[half]);
    if (last >= 0) pipeline.free(last);
    if (steps == 0) FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int i = 0; i < Tile::columns / 2; ++i) sum[half][i] = 0;
  }

  // Calls put(row, column, V sums that are neighbours along the row) for all of the tile that this warp has, V = 1 or a
  // power of 2.
  template <int V, class Put>
  FASTCONV_DEVICE void each(Put&& put) const {
    constexpr int part = Tile::part_columns, across = part / V;
    const int lane = this_thread() % lanes_of_warp, first_row = own_warp() % warps_of_consumer * Tile::part_rows;
    const Shared<float> own = Shared<float>::at(own_part());
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int column = 0; column < Tile::columns; column += part) {
      FASTCONV_UNROLL
      for (int i = 0; i < part / 2; i += 2)
        own.write(row_of(i) * Tile::pitch + column_of(i),
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

  // The same with neighbours down the column.
  template <int V, class Put>
  FASTCONV_DEVICE void each_down(Put&& put) const {
    constexpr int part = Tile::part_columns, down = Tile::part_rows / V;
    const int lane = this_thread() % lanes_of_warp, first_row = own_warp() % warps_of_consumer * Tile::part_rows;
    const Shared<float> own = Shared<float>::at(own_part());
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int column = 0; column < Tile::columns; column += part) {
      FASTCONV_UNROLL
      for (int i = 0; i < part / 2; ++i)
        own.put((column_of(i) + i % 2) * Tile::pitch_down + row_of(i), sum[half][column / 2 + i]);
      join_lanes();
      for (int i = lane; i < part * down; i += lanes_of_warp) {
        const int beside = i / down, row = i % down * V;
        float value[V];
        own.read_all(value, beside * Tile::pitch_down + row);
        put(half * group_rows + first_row + row, column + beside, value);
      }
      join_lanes();
    }
  }

  // Boxes of 16 rows and box_columns to the copy engine: finish(column, two sums) makes the elements, store(row,
  // column, box) starts the copy. The last boxes may be on their way when it returns (wait_boxes).
  static constexpr int box_line =
      Tile::columns * int{sizeof(T)} < line_bytes ? Tile::columns * int{sizeof(T)} : line_bytes;
  static constexpr int box_columns = box_line / int{sizeof(T)};
  template <class Finish, class Store>
  FASTCONV_DEVICE void each_box(Finish&& finish, Store&& store) const {
    const int first_row = own_warp() % warps_of_consumer * Tile::part_rows;
    const bool stores = this_thread() % lanes_of_warp == 0;
    FASTCONV_UNROLL
    for (int half = 0; half < Tile::halves; ++half) FASTCONV_UNROLL
    for (int column = 0; column < Tile::columns; column += box_columns) {
      constexpr int per_half = Tile::columns / box_columns;
      static_assert(Tile::halves * per_half % Tile::box_slots == 0);
      const int slot = (half * per_half + column / box_columns) % Tile::box_slots;
      const int box = own_part() + slot * Tile::part_rows * line_bytes;
      if (stores) wait_boxes<Tile::box_slots - 1>();
      join_lanes();
      FASTCONV_UNROLL
      for (int i = 0; i < box_columns / 2; i += 2) {
        const float pair[2] = {sum[half][column / 2 + i], sum[half][column / 2 + i + 1]};
        const int byte = row_of(i) * box_line + column_of(i) * int{sizeof(T)};
        Shared<T>::at(box + swizzled_at(byte, box_line)).write(0, finish(column + column_of(i), pair));
      }
      fence_for_copies();
      join_lanes();
      if (!stores) continue;
      store(half * group_rows + first_row, column, shared_base() + box);
      commit_boxes();
    }
  }

 private:
  // Places of sum i and its neighbour in a warp's 16 rows.
  FASTCONV_DEVICE static int row_of(int i) { return this_thread() % lanes_of_warp / 4 + i / 2 % 2 * 8; }
  FASTCONV_DEVICE static int column_of(int i) { return i / 4 * 8 + this_thread() % 4 * 2; }
  FASTCONV_DEVICE static int own_warp() { return this_thread() / lanes_of_warp - warps_of_consumer; }
  FASTCONV_DEVICE static int own_part() { return Tile::parts_at + own_warp() * Tile::part_bytes; }
};

}  // namespace fastconv::FASTCONV_GPU
