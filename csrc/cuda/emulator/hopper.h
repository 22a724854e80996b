// What a block's thread may ask of sm_90 beside block.h: barriers in shared memory and of some threads, bulk tensor
// copies, products of a warpgroup. As strict as block.h, with these errors more:
//   - an mbarrier touched before it was made, made visible or ordered; more arrivals or bytes than its phase has;
//   - a bulk load to shared memory that is still read, still written, or not ordered behind what touched it;
//   - a bulk store or product of shared memory that nobody has written, that is still on its way, whose writer is not
//     ordered before, or whose ordinary writes were not fenced (fence.proxy.async); a store through a map that rounds;
//   - a product whose registers were not fenced; warps of a group that multiply different things; sums read before
//     wgmma.wait_group are NaN;
//   - anything left on its way when a thread ends; a block of the cluster touched when it has ended, or its mbarriers
//     before the cluster has met.
// Loads happen when somebody waits for their mbarrier, products and stores when their groups are waited for.
#pragma once

#include <cstdint>

#include "block.h"

namespace fastconv::emulated {

// What a CUtensorMap says, in the order of cuTensorMapEncode's arguments: dimension 0 is the innermost.
struct TensorMap {
  static constexpr int most_dimensions = 5;
  const char* base = nullptr;
  int element_bytes = 0, rank = 0;
  bool round_tf32 = false;  // floats lose what tf32 has not, on the way (CU_TENSOR_MAP_DATA_TYPE_TFLOAT32)
  int64_t size[most_dimensions] = {}, stride[most_dimensions] = {};  // elements; bytes, stride[0] the element's
  int box[most_dimensions] = {}, step[most_dimensions] = {1, 1, 1, 1, 1};
  int swizzle = 0;  // bytes of a span: 0, 32, 64, 128
  bool im2col = false;
  int lower[most_dimensions] = {}, upper[most_dimensions] = {};  // corners of the pixels, by dimension (1: W, 2: H)
  int pixels = 0;                                                // of a column; box[0] has the channels

  int64_t bytes() const;  // that a copy moves, whatever of it lies outside
  // Empty, or why cuTensorMapEncode would refuse it.
  std::string refused() const;
};

void join_warp(uint32_t mask, Site site);  // __syncwarp
int rank_in_cluster();
void meet_cluster(Site site);
void* shared_of(int rank, const void* own);  // the same place in another block's shared memory
void meet_named(int id, int threads, bool waits, Site site);

void make_barrier(const void* at, int threads);
void fence_barriers();
void fence_writes();  // fence.proxy.async
void arrive(const void* at, int64_t expected_bytes);
void wait_for_phase(const void* at, uint32_t parity, Site site);

// `at`: coordinates; `offsets`: of the tap, im2col only (1: W, 2: H, from 0); `ranks`: the blocks that get it, a bit
// each, 0: the thread's own.
void load_tensor(const TensorMap& map, void* to, const void* barrier, const int* at, const int* offsets,
                 uint32_t ranks = 0);
void store_tensor(const TensorMap& map, const void* from, const int* at);
void commit_stores();
void wait_for_stores(int newest_left);

enum class Operand : uint8_t { f16, bf16, tf32 };
// One product of 64 rows, `columns` columns and 32 bytes of depth. a and b are matrix descriptors.
struct Wgmma {
  Operand operand;
  int columns;
  uint64_t a, b;
  bool a_in_registers, across_a, across_b;  // across: the depth runs across the lines (transposed)
  bool adds;
  bool operator==(const Wgmma&) const = default;
};
void multiply_group(const Wgmma& what, float* sums, const uint32_t* a, Site site);
void fence_multiplies(Site site);
void commit_multiplies(Site site);
void wait_for_multiplies(int newest_left, Site site);

void set_registers(int count, bool more, Site site);

// An access of any length to global memory, inside the operands.
void check_global_range(const void* at, int64_t bytes, bool write);

}  // namespace fastconv::emulated
