// Bugs planted in small kernels of sm_90's instructions, each of which the emulator must catch for every order of
// threads. Prints what fails; exits with the number of failures.
#include "hopper_world.h"

namespace {

void must_fail(const char* name, Kernel kernel, const std::string& part, int threads = 128) {
  const World world = plain_world();
  for (uint64_t seed = 0; seed < seeds; ++seed) try {
      start(kernel, world, seed, threads);
      expect(false, std::string(name) + " was not caught");
    } catch (const Failure& error) {
      expect(std::string(error.what()).find(part) != std::string::npos, std::string(name) + ": " + error.what());
    }
}

// --- bugs -----------------------------------------------------------------------------------------------------------
void no_wait_for_load(World world) {
  make_barriers();
  load(world);
  if (this_thread() == 0) world.out[0] = Shared<float>::at(tile_at).get(0);
  loaded().wait(0);
}
void wrong_parity(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(1);
  fence_products();
  multiply(sums);
  finish();
}
void too_many_bytes_expected(World world) {
  make_barriers();
  load(world, box_bytes + 16);
  loaded().wait(0);
}
void too_few_bytes_expected(World world) {
  make_barriers();
  load(world, box_bytes - 16);
  loaded().wait(0);
}
void too_many_arrivals(World) {
  make_barriers(2);
  if (this_thread() == 0) loaded().arrive_expecting(16);
  loaded().arrive();
}
void barrier_not_fenced(World) {
  if (this_thread() == 0) loaded().make(128);
  barrier();
  loaded().arrive();
}
void barrier_not_ordered(World) {
  if (this_thread() == 0) {
    loaded().make(128);
    Mbarrier::fence_made();
    named_arrive(2, 128);
  } else if (this_thread() == 1) {
    loaded().arrive();
  }
}
void barrier_not_made(World) { loaded().arrive(); }
void load_not_waited_for(World world) {
  make_barriers();
  load(world);
}
void load_off_alignment(World world) {
  make_barriers();
  load(world, box_bytes, 64);
}
void load_beyond_shared(World world) {
  make_barriers();
  load(world, box_bytes, static_cast<int>(shared) - tile_at - 1024);
}
void load_over_a_load(World world) {
  make_barriers();
  load(world, 2 * box_bytes);
  if (this_thread() == 0) load_box(world.map, tile(), loaded(), 0, 0);
}
void load_over_reads(World world) {
  make_barriers();
  if (this_thread() == 1) world.out[0] = Shared<float>::at(tile_at).get(0);
  if (this_thread() < 64) named_wait(1, 64);
  if (this_thread() == 127) {
    loaded().arrive_expecting(box_bytes);
    load_box(world.map, tile(), loaded(), 0, 0);
  }
  loaded().wait(0);
}
void product_of_nothing(World) {
  float sums[32];
  fence_products();
  multiply(sums);
  finish();
}
void product_before_load(World world) {
  make_barriers();
  load(world);
  float sums[32];
  fence_products();
  multiply(sums);
  finish();
}
void product_not_fenced(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  multiply(sums);
  finish();
}
void product_not_fenced_again(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  multiply(sums);
  finish();
  sums[0] += 1;
  multiply(sums, true);
  finish();
}
void product_left_behind(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  multiply(sums);
  commit_products();
}
void load_over_a_product(World world) {  // freed before the product has been waited for
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  multiply(sums);
  commit_products();
  barrier();
  load(world);
  wait_products<0>();
}
void freed_by_one_warp(World world) {  // the others may still read
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  multiply(sums);
  finish();
  if (this_thread() == 0) freed().arrive();
  if (this_thread() == 0) {
    freed().wait(0);
    loaded().arrive_expecting(box_bytes);
    load_box(world.map, tile(), loaded(), 0, 0);
  }
  loaded().wait(1);
}
void warps_disagree(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  const uint64_t a = operand(this_thread() < 32 ? 32 : 0);
  Product::multiply<Lies::along, Lies::along>(sums, a, operand(), false);
  finish();
}
void half_a_warp(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  if (this_thread() % 32 < 16) multiply(sums);
  finish();
}
void starts_inside_a_pattern(World world) {
  make_barriers();
  load(world);
  float sums[32];
  loaded().wait(0);
  fence_products();
  Product::multiply<Lies::along, Lies::along>(sums, operand(128), operand(), false);
  finish();
}
void write_tile() {
  const Shared<float> own = Shared<float>::at(tile_at);
  for (int i = this_thread(); i < box_bytes / 4; i += 128) own.put(i, 0);
}
void written_without_fence(World) {
  write_tile();
  barrier();
  float sums[32];
  fence_products();
  multiply(sums);
  finish();
}
void written_without_barrier(World) {
  write_tile();
  fence_for_copies();
  float sums[32];
  fence_products();
  multiply(sums);
  finish();
}
void store_without_fence(World world) {
  write_tile();
  barrier();
  if (this_thread() == 0) {
    store_box(world.map, tile(), 0, 0);
    commit_boxes();
    wait_boxes<0>();
  }
}
void write_into_a_store(World world) {
  write_tile();
  fence_for_copies();
  barrier();
  if (this_thread() == 0) {
    store_box(world.map, tile(), 0, 0);
    commit_boxes();
    Shared<float>::at(tile_at).put(0, 1);
    wait_boxes<0>();
  }
}
void store_left_behind(World world) {
  write_tile();
  fence_for_copies();
  barrier();
  if (this_thread() == 0) {
    store_box(world.map, tile(), 0, 0);
    commit_boxes();
  }
}
void store_through_a_map_for_loads(World world) {
  world.map = tiled_map<float, 2>({world.out, {32, 8}, {128}, 128}, {32, 8});
  write_tile();
  fence_for_copies();
  barrier();
  if (this_thread() == 0) {
    store_box(world.map, tile(), 0, 0);
    commit_boxes();
    wait_boxes<0>();
  }
}
void named_by_too_few(World) {
  if (this_thread() < 32) named_wait(1, 64);
}
void named_in_two_sizes(World) { named_wait(1, this_thread() < 64 ? 64 : 128); }
void named_orders_its_own(World world) {  // threads 64.. are not in it
  const Shared<int> all = Shared<int>::at(0);
  if (this_thread() == 0) all.put(0, 1);
  if (this_thread() < 64)
    named_wait(1, 64);
  else
    world.out[0] = static_cast<float>(all.get(0));
}
void lanes_not_joined(World world) {
  const Shared<int> all = Shared<int>::at(0);
  all.put(this_thread(), 1);
  world.out[this_thread()] = static_cast<float>(all.get(this_thread() ^ 1));
}
void odd_registers() { more_registers<36>(); }
void odd_register_count(World) { odd_registers(); }
void too_many_registers(World) {
  if (this_thread() < 128)
    more_registers<240>();
  else
    more_registers<232>();
}

void column_from_outside(World world) {
  make_barriers();
  if (this_thread() == 0) {
    loaded().arrive_expecting(static_cast<int>(world.map.bytes()));
    load_column(world.map, tile(), loaded(), 0, world.from == 1 ? 9 : 0, 0, 0, world.from == 2 ? 256 : 0, 0);
  }
  loaded().wait(0);
}
void check_bad_columns_and_boxes() {
  source.assign(8 * 9 * 6, 1);
  World world;
  world.map =
      im2col_map<float>({source.data(), {8, 9, 6, 1}, {32, 9 * 32, 54 * 32}, 32}, {{0, 0}, {0, 0}, {1, 1}, 8, 8});
  for (int which : {1, 2}) try {
      world.from = which;
      start(column_from_outside, world, 1);
      expect(false, "a column from outside was not caught");
    } catch (const Failure& error) {
      const std::string part = which == 1 ? "which its box of pixels has not" : "not 0 to 255";
      expect(std::string(error.what()).find(part) != std::string::npos, error.what());
    }
  // The map says more rows than the operand has.
  world.map = tiled_map<float, 2>({source.data(), {8, 56}, {32}, 32}, {8, 64}), world.out = floats.data();
  from = {0, 0};
  try {
    const Allowed allowed({{source.data(), static_cast<int64_t>(source.size() * 4), false}});
    start(keep_box, world, 1);
    expect(false, "a box outside its operand was not caught");
  } catch (const Failure& error) {
    expect(std::string(error.what()).find("outside the operands") != std::string::npos, error.what());
  }
  const char* const base = reinterpret_cast<const char*>(source.data());
  auto refused = [](const char* part, auto make) {
    try {
      make();
      expect(false, std::string("a map was made: ") + part);
    } catch (const Failure& error) {
      expect(std::string(error.what()).find(part) != std::string::npos, error.what());
    }
  };
  refused("no multiple of 16", [&] { tiled_map<float, 2>({base + 4, {8, 8}, {32}, 0}, {8, 8}); });
  refused("A stride in bytes is 40", [&] { tiled_map<float, 2>({base, {8, 8}, {40}, 0}, {8, 8}); });
  refused("A box's size is 512", [&] { tiled_map<float, 2>({base, {8, 8}, {32}, 0}, {8, 512}); });
  refused("wider than the swizzle: it is 64", [&] { tiled_map<float, 2>({base, {16, 8}, {64}, 32}, {16, 8}); });
  refused("A corner is -200",
          [&] { im2col_map<float>({base, {8, 9, 6, 1}, {32, 288, 1728}, 32}, {{-200, 0}, {0, 0}, {1, 1}, 8, 8}); });
  refused("An element stride is 9",
          [&] { im2col_map<float>({base, {8, 9, 6, 1}, {32, 288, 1728}, 32}, {{0, 0}, {0, 0}, {9, 1}, 8, 8}); });
}

}  // namespace

#define MUST_FAIL(kernel, part) must_fail(#kernel, kernel, part)

int main() {
  MUST_FAIL(no_wait_for_load, "shared memory");
  MUST_FAIL(wrong_parity, "multiplies shared memory");
  MUST_FAIL(too_many_bytes_expected, "lacks 0 arrivals and 16 bytes");
  MUST_FAIL(too_few_bytes_expected, "16 bytes more than their mbarrier expects");
  MUST_FAIL(too_many_arrivals, "arrives at an mbarrier");
  MUST_FAIL(barrier_not_fenced, "whose making was not fenced");
  MUST_FAIL(barrier_not_ordered, "mbarrier");
  MUST_FAIL(barrier_not_made, "was not made");
  MUST_FAIL(load_not_waited_for, "before its bulk loads were waited for");
  MUST_FAIL(load_off_alignment, "no multiple of 128");
  MUST_FAIL(load_beyond_shared, "bytes of shared memory");
  MUST_FAIL(load_over_a_load, "over one that is on its way");
  MUST_FAIL(load_over_reads, "shared memory");
  MUST_FAIL(product_of_nothing, "that nobody has written");
  MUST_FAIL(product_before_load, "multiplies shared memory");
  MUST_FAIL(product_not_fenced, "without wgmma.fence");
  MUST_FAIL(product_not_fenced_again, "without wgmma.fence");
  MUST_FAIL(product_left_behind, "before its warp's products were waited for");
  MUST_FAIL(load_over_a_product, "still reads");
  MUST_FAIL(freed_by_one_warp, "that a product of thread");
  MUST_FAIL(warps_disagree, "other matrices than another warp");
  MUST_FAIL(half_a_warp, "lanes of its warp are in");
  MUST_FAIL(starts_inside_a_pattern, "inside the pattern of its swizzle");
  MUST_FAIL(written_without_fence, "without a fence");
  MUST_FAIL(written_without_barrier, "multiplies");
  MUST_FAIL(store_without_fence, "without a fence");
  MUST_FAIL(write_into_a_store, "still reads");
  MUST_FAIL(store_through_a_map_for_loads, "that rounds");
  MUST_FAIL(store_left_behind, "before its bulk stores were waited for");
  MUST_FAIL(named_by_too_few, "waits at named barrier 1");
  MUST_FAIL(named_in_two_sizes, "threads while it waits for");
  MUST_FAIL(named_orders_its_own, "since the last barrier");
  MUST_FAIL(lanes_not_joined, "since the last barrier");
  MUST_FAIL(odd_register_count, "36 registers");
  must_fail("too_many_registers", too_many_registers, "registers in all", 384);
  check_bad_columns_and_boxes();
  if (!failures) std::printf("ok\n");
  return failures;
}
