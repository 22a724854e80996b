// What the checks of the emulator's sm_90 share: a world that kernels see, and pieces of kernels.
#pragma once

#include <cstdio>
#include <random>
#include <vector>

#include "cuda/common/launch.h"
#include "cuda/common/tensor_map.h"
#include "cuda/common/warpgroup.h"

using namespace fastconv;
using namespace fastconv::emulated;

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("%s\n", what.c_str());
}

constexpr uint64_t seeds = 5;
constexpr int64_t shared = 96 << 10;
constexpr int tile_at = 1024;  // barriers lie before it

// What every kernel here gets.
struct World {
  TensorMap map, second;
  float* out = nullptr;
  int from = 0;  // a parameter of some
};
using Kernel = void (*)(World);

void start(Kernel kernel, const World& world, uint64_t seed, int threads = 128, Grid grid = {}) {
  launch<World>(kernel, world, grid, threads, shared, Stream{seed});
}
[[maybe_unused]] void start_pair(Kernel kernel, const World& world, uint64_t seed) {
  launch<World>(kernel, world, Start{{2}, 128, shared, 2}, Stream{seed});
}

std::vector<float> floats(1 << 16);
std::vector<bf16> matrix(64 * 64);

World plain_world() {
  World world;
  std::mt19937 random(5);
  for (bf16& v : matrix) v = to_bf16(static_cast<float>(static_cast<int>(random() % 9) - 4));
  world.map = tiled_map<bf16, 2>({matrix.data(), {64, 64}, {128}, 128}, {64, 64});
  world.out = floats.data();
  return world;
}

// --- pieces of kernels ----------------------------------------------------------------------------------------------
constexpr int box_bytes = 64 * 64 * 2;

char* tile(int byte = 0) { return shared_base() + tile_at + byte; }
Mbarrier loaded() { return Mbarrier::at(0); }
Mbarrier freed() { return Mbarrier::at(8); }
[[maybe_unused]] void make_barriers(int arrivals = 1) {
  if (this_thread() == 0) {
    loaded().make(arrivals), freed().make(1);
    Mbarrier::fence_made();
  }
  barrier();
}
[[maybe_unused]] void load(const World& world, int bytes = box_bytes, int to = 0) {
  if (this_thread() != 0) return;
  loaded().arrive_expecting(bytes);
  load_box(world.map, tile(to), loaded(), 0, 0);
}
uint64_t operand(int byte = 0) { return matrix_at(tile(byte), 0, 1024); }
using Product = GroupProduct<bf16, 64>;
[[maybe_unused]] void multiply(float (&sums)[32], bool adds = false) {
  Product::multiply<Lies::along, Lies::along>(sums, operand(), operand(), adds);
}
[[maybe_unused]] void finish() {
  commit_products();
  wait_products<0>();
}

std::vector<float> source;
std::vector<int> from(5), tap(2);

void keep_box(World world) {
  make_barriers();
  if (this_thread() == 0) {
    loaded().arrive_expecting(static_cast<int>(world.map.bytes()));
    load_tensor(world.map, tile(), loaded().data, from.data(), tap.data());
  }
  loaded().wait(0);
  for (int i = this_thread(); i < static_cast<int>(world.map.bytes() / 4); i += 128)
    world.out[i] = Shared<float>::at(tile_at).get(i);
}

}  // namespace
