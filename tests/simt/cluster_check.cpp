// Clusters of blocks in the emulator: what its copies and barriers do, and bugs planted in them, each of which it must
// catch for every order of threads. Prints what fails; exits with the number of failures.
#include "hopper_world.h"

namespace {

// Kernels of two blocks. Each brings half of the tile to both; freed() counts both.
constexpr int half_rows = 32, half_bytes = box_bytes / 2;

void make_pair_barriers() {
  if (this_thread() == 0) {
    loaded().make(1), freed().make(2);
    Mbarrier::fence_made();
  }
  cluster_barrier();
}
void share(const World& world, uint32_t ranks = 3) {
  if (this_thread() != 0) return;
  loaded().arrive_expecting(box_bytes);
  const int own = rank_in_cluster();
  share_box(world.map, tile(own * half_bytes), loaded(), ranks, 0, own * half_rows);
}
World pair_world() {
  World world = plain_world();
  world.map = tiled_map<bf16, 2>({matrix.data(), {64, 64}, {128}, 0}, {64, half_rows});
  return world;
}

// Both blocks read the whole tile, twice, the second time one row on.
void both_have_it_all(World world) {
  make_pair_barriers();
  for (unsigned round = 0; round < 2; ++round) {
    share(world);
    loaded().wait(round);
    for (int i = this_thread(); i < 64 * 64; i += 128)
      world.out[(rank_in_cluster() * 2 + static_cast<int>(round)) * 64 * 64 + i] =
          to_float(Shared<bf16>::at(tile_at).get(i));
    named_wait(1, 128);
    if (this_thread() < 2) freed().arrive_in(this_thread());
    freed().wait(round);
  }
  cluster_barrier();
}
void each_has_its_own(World world) {
  make_pair_barriers();
  if (this_thread() == 0) {
    loaded().arrive_expecting(half_bytes);
    share_box(world.map, tile(), loaded(), 1u << rank_in_cluster(), 0, rank_in_cluster());
  }
  loaded().wait(0);
  if (this_thread() == 0)
    world.out[rank_in_cluster()] = to_float(Shared<bf16>::at(tile_at).get(0)),
    world.out[2 + rank_in_cluster()] = static_cast<float>(this_block().x);
  cluster_barrier();
}

void check_models() {
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const World world = pair_world();
    start_pair(both_have_it_all, world, seed);
    bool equal = true;
    for (size_t i = 0; i < 4 * matrix.size(); ++i) equal &= floats[i] == to_float(matrix[i % matrix.size()]);
    expect(equal, "boxes shared by a pair");
    start_pair(each_has_its_own, world, seed);
    for (size_t rank = 0; rank < 2; ++rank)
      expect(floats[rank] == to_float(matrix[rank * 64]) && floats[2 + rank] == static_cast<float>(rank),
             "a copy to one block of a pair");
  }
}

// --- bugs -----------------------------------------------------------------------------------------------------------
void cluster_not_met(World world) {
  make_barriers();
  share(world);
  loaded().wait(0);
  cluster_barrier();
}
void left_too_early(World world) {
  make_pair_barriers();
  if (rank_in_cluster() == 0) return;
  for (int i = 0; i < 8; ++i) named_wait(1, 128);
  freed().arrive_in(0);
  (void)world;
}
void not_freed_by_the_other(World world) {
  make_pair_barriers();
  share(world);
  loaded().wait(0);
  world.out[rank_in_cluster() * 128 + this_thread()] = Shared<float>::at(tile_at).get(this_thread());
  named_wait(1, 128);
  share(world);
  loaded().wait(1);
  cluster_barrier();
}
void half_is_missing(World world) {
  make_pair_barriers();
  share(world, 1u << rank_in_cluster());
  loaded().wait(0);
  cluster_barrier();
}
void one_stays_away(World) {
  if (rank_in_cluster() == 0 || this_thread() > 0) cluster_barrier();
}
void beyond_the_cluster(World) {
  make_pair_barriers();
  if (this_thread() == 0) freed().arrive_in(2);
  cluster_barrier();
}

void must_fail(const char* name, Kernel kernel, const std::string& part) {
  const World world = pair_world();
  for (uint64_t seed = 0; seed < seeds; ++seed) try {
      start_pair(kernel, world, seed);
      expect(false, std::string(name) + " was not caught");
    } catch (const Failure& error) {
      expect(std::string(error.what()).find(part) != std::string::npos, std::string(name) + ": " + error.what());
    }
}

}  // namespace

#define MUST_FAIL(kernel, part) must_fail(#kernel, kernel, part)

int main() {
  check_models();
  MUST_FAIL(cluster_not_met, "without a barrier behind its making");
  MUST_FAIL(left_too_early, "which has ended");
  MUST_FAIL(not_freed_by_the_other, "shared memory");
  MUST_FAIL(half_is_missing, "lacks 0 arrivals and 4096 bytes");
  MUST_FAIL(one_stays_away, "at the cluster's barrier");
  MUST_FAIL(beyond_the_cluster, "reaches for block 2 of a cluster of 2");
  if (!failures) std::printf("ok\n");
  return failures;
}
