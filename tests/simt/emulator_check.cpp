// The emulator against naive models of each instruction, and bugs planted in small kernels, each of which it must
// catch. Prints what fails; exits with the number of failures. With an argument it reads outside global memory instead,
// for AddressSanitizer to catch.
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "cuda/common/async_copy.h"
#include "cuda/common/launch.h"
#include "cuda/common/matrix.h"
#include "cuda/common/warp.h"

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

using Kernel = void (*)(int*);

void start(Kernel kernel, int* memory, uint64_t seed, int threads = 64, int64_t shared = 4096, Grid grid = {}) {
  launch<int*>(kernel, memory, grid, threads, shared, Stream{seed});
}

// The kernel must end in a Failure that says `part`, for every order of threads.
void must_fail(const char* name, Kernel kernel, const std::string& part) {
  std::vector<int> memory(256);
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    try {
      start(kernel, memory.data(), seed);
      expect(false, std::string(name) + " was not caught");
    } catch (const Failure& error) {
      expect(std::string(error.what()).find(part) != std::string::npos, std::string(name) + ": " + error.what());
    }
  }
}

// --- bugs --------------------------------------------------------------------------------------------------------
void missing_barrier(int* out) {
  const Shared<int> shared = Shared<int>::at(0);
  shared.put(this_thread(), this_thread());
  out[this_thread()] = shared.get(this_thread() ^ 1);
}
void barrier_not_reached_by_all(int*) {
  if (this_thread() != 5) barrier();
}
void two_barriers(int*) {
  if (this_thread() % 2)
    barrier();
  else
    barrier();
}
void missing_wait(int* memory) {
  const Shared<int> to = Shared<int>::at(this_thread() * 16);
  copy_async(to, memory, true);
  commit_group();
  memory[0] = to.get(0);
}
void wait_for_too_few(int* memory) {
  const Shared<int> to = Shared<int>::at(this_thread() * 16);
  copy_async(to, memory, true);
  commit_group();
  wait_groups<1>();
  memory[0] = to.get(0);
  wait_groups<0>();
}
void wait_without_barrier(int* memory) {
  const Shared<int> all = Shared<int>::at(0);
  copy_async(all + this_thread() * 4, memory, true);
  commit_group();
  wait_groups<0>();
  memory[this_thread()] = all.get((this_thread() ^ 1) * 4);
}
void copy_left_behind(int* memory) {
  copy_async(Shared<int>::at(this_thread() * 16), memory, true);
  commit_group();
}
void copy_off_alignment(int* memory) {
  copy_async(Shared<int>::at(this_thread() * 16), memory + 1, true);
  commit_group();
  wait_groups<0>();
}
void wrong_mask(int* out) {
  if (this_thread() % 32 < 16) out[0] = static_cast<int>(shuffle_xor(1.0f, 1));
}
void outside_its_mask(int* out) { out[0] = static_cast<int>(shuffle_xor(1.0f, 1, 0x0000ffffu)); }
void shuffle_from_outside(int* out) {
  if (this_thread() % 32 < 16) out[0] = static_cast<int>(shuffle_xor(1.0f, 16, 0x0000ffffu));
}
void beyond_shared(int* out) { out[0] = Shared<int>::at(4096).get(0); }
void off_alignment(int* out) { out[0] = load<4>(out + 1).v[0]; }
void off_alignment_in_shared(int* out) { out[0] = Shared<int>::at(4).read<4>(0).v[0]; }
void write_after_read(int* out) {
  const Shared<int> shared = Shared<int>::at(0);
  if (this_thread() == 0) shared.put(0, 1);
  barrier();
  out[this_thread()] = shared.get(0);
  if (this_thread() == 7) shared.put(0, 2);
}
void beyond_global(int* out) { out[0] = load<4>(out + 256).v[this_thread() % 4]; }
void read_behind(int* out) { out[0] = fetch(out + 256); }
void write_where_it_may_read(int* out) { store(out + 128, Pack<int, 1>{{1}}); }
void half_a_warp_multiplies(int* out) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (this_thread() % 32 < 16) MatrixOf<f16>::multiply(d, a, 0, 0);
  out[0] = static_cast<int>(d[0]);
}

// --- what must work ----------------------------------------------------------------------------------------------
void reverse(int* out) {
  const Shared<int> shared = Shared<int>::at(0);
  out[this_thread()] = -1;
  const bool poisoned = shared.get(this_thread()) == -1;
  barrier();
  shared.put(this_thread(), this_thread());
  barrier();
  if (poisoned) out[this_thread()] = shared.get(63 - this_thread());
}
void record_order(int* out) { out[1 + out[0]++] = static_cast<int>(this_block().x) * 64 + this_thread(); }
void copies_arrive_in_order(int* memory) {
  const Shared<int> to = Shared<int>::at(this_thread() * 32);
  copy_async(to, memory, true);
  commit_group();
  copy_async(to + 4, memory, false);
  commit_group();
  wait_groups<1>();
  const bool first = to.get(0) == 7;
  wait_groups<0>();
  memory[4 + this_thread()] = first && to.get(4) == 0;
}
void sum_lanes(int* out) { out[this_thread()] = static_cast<int>(sum_of_warp(static_cast<float>(this_thread()))); }

void check_ranges() {
  std::vector<int> memory(257);
  const Allowed allowed({{memory.data(), 512, true}, {memory.data() + 128, 512, false}});
  const std::pair<const char*, Kernel> bugs[] = {{"reads", read_behind}, {"writes", write_where_it_may_read}};
  for (const auto& [verb, kernel] : bugs) try {
      start(kernel, memory.data(), 1);
      expect(false, std::string("a kernel that ") + verb + " outside its operands was not caught");
    } catch (const Failure& error) {
      expect(
          std::string(error.what()).find(std::string(verb) + " 4 bytes of global memory outside") != std::string::npos,
          error.what());
    }
}

void check_basics() {
  std::vector<int> memory(256);
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    start(reverse, memory.data(), seed);
    for (int i = 0; i < 64; ++i) expect(memory[static_cast<size_t>(i)] == 63 - i, "a barrier orders shared memory");
    memory.assign(256, 7);
    start(copies_arrive_in_order, memory.data(), seed);
    for (size_t i = 0; i < 64; ++i)
      expect(memory[4 + i] == 1, "a group's copies are there, zeros where none is present");
    start(sum_lanes, memory.data(), seed);
    for (size_t i = 0; i < 64; ++i) expect(memory[i] == (i < 32 ? 496 : 1520), "shuffles sum a warp");
  }
  std::vector<std::vector<int>> orders;
  for (uint64_t seed : {1, 1, 2}) {
    memory.assign(256, 0);
    start(record_order, memory.data(), seed, 64, 0, {2, 1, 1});
    expect(memory[0] == 128, "every thread of every block runs once");
    orders.push_back(memory);
  }
  expect(orders[0] == orders[1], "a seed repeats an order");
  expect(orders[0] != orders[2], "another seed gives another order");
}

// --- matrices, against products of plain arrays -------------------------------------------------------------------
// From the PTX manual's tables for m16n8k16 and m16n8k8, written out per element and not per register.
struct Place {
  int lane, element;
};
Place place_of_a(int row, int k, int depth) {
  const int half = depth / 2, pair = half / 4;  // elements of a lane's register: 2 (f16) or 1 (tf32)
  return {row % 8 * 4 + k % half / pair, (row / 8 + 2 * (k / half)) * pair + k % pair};
}
Place place_of_b(int k, int column, int depth) {
  const int half = depth / 2, pair = half / 4;
  return {column * 4 + k % half / pair, k / half * pair + k % pair};
}
Place place_of_d(int row, int column) { return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2}; }

template <class T>
struct Fragments {
  T a[32][16 / sizeof(T)], b[32][8 / sizeof(T)];
  float d[32][4];
};
template <class T>
void multiply_fragments(Fragments<T>* f) {
  Fragments<T>& all = *f;
  const int lane = this_thread();
  uint32_t a[4], b[2];
  std::memcpy(a, all.a[lane], sizeof a);
  std::memcpy(b, all.b[lane], sizeof b);
  MatrixOf<T>::multiply(all.d[lane], a, b[0], b[1]);
}

template <class T>
void check_product(const char* name) {
  constexpr int depth = mma_depth_bytes / sizeof(T);
  std::mt19937 random(3);
  auto number = [&] { return static_cast<float>(static_cast<int>(random() % 9) - 4); };
  float a[16][depth], b[depth][8], d[16][8];
  Fragments<T> f{};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < depth; ++k) {
      a[i][k] = number();
      const Place at = place_of_a(i, k, depth);
      f.a[at.lane][at.element] = narrow<T>(a[i][k]);
    }
  for (int k = 0; k < depth; ++k)
    for (int j = 0; j < 8; ++j) {
      b[k][j] = number();
      const Place at = place_of_b(k, j, depth);
      f.b[at.lane][at.element] = narrow<T>(b[k][j]);
    }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      d[i][j] = number();
      f.d[place_of_d(i, j).lane][place_of_d(i, j).element] = d[i][j];
      for (int k = 0; k < depth; ++k) d[i][j] += a[i][k] * b[k][j];
    }
  launch<Fragments<T>*>(multiply_fragments<T>, &f, {}, 32, 0, Stream{4});
  bool equal = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) equal &= f.d[place_of_d(i, j).lane][place_of_d(i, j).element] == d[i][j];
  expect(equal, std::string("mma.sync of ") + name);
}

// Matrix m, row r, element e holds 64 m + 8 r + e.
void load_and_keep(int* out) {
  const Shared<uint16_t> all = Shared<uint16_t>::at(0);
  const int lane = this_thread();
  for (int e = 0; e < 8; ++e) all.put(8 * lane + e, static_cast<uint16_t>(8 * lane + e));
  barrier();
  uint32_t plain[4], transposed[4];
  load_matrices(plain, all + 8 * lane);
  load_transposed(transposed, all + 8 * lane);
  std::memcpy(out + 8 * lane, plain, sizeof plain);
  std::memcpy(out + 8 * lane + 4, transposed, sizeof transposed);
}

void check_load_matrices() {
  std::vector<int> memory(256);
  start(load_and_keep, memory.data(), 1, 32);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m)
      for (int half = 0; half < 2; ++half) {
        auto got = [&](int place) { return memory[static_cast<size_t>(8 * lane + place + m)] >> (16 * half) & 0xffff; };
        const int row = lane / 4, pair = lane % 4 * 2 + half;
        expect(got(0) == 64 * m + 8 * row + pair, "ldmatrix");
        expect(got(4) == 64 * m + 8 * pair + row, "ldmatrix.trans");
      }
}

void check_tf32() {
  auto bits = [](float v) {
    uint32_t b;
    std::memcpy(&b, &v, sizeof b);
    return b;
  };
  expect(to_tf32(bits(1 + 0x1p-11f)) == bits(1 + 0x1p-10f), "a tie of tf32 rounds away from zero");
  expect(to_tf32(bits(-1 - 0x1p-11f)) == bits(-1 - 0x1p-10f), "a negative tie too");
  expect(to_tf32(bits(1 + 0x1p-12f)) == bits(1), "less than a tie rounds down");
  expect(to_tf32(bits(INFINITY)) == bits(INFINITY), "infinity stays");
}

}  // namespace

#define MUST_FAIL(kernel, part) must_fail(#kernel, kernel, part)

int main(int count, char**) {
  if (count > 1) {
    std::vector<int> memory(256);
    start(beyond_global, memory.data(), 1);
    return 0;
  }
  MUST_FAIL(missing_barrier, "has touched since the last barrier");
  MUST_FAIL(barrier_not_reached_by_all, "waits at the barrier of emulator_check.cpp");
  MUST_FAIL(two_barriers, "but thread");
  MUST_FAIL(missing_wait, "is on its way");
  MUST_FAIL(wait_for_too_few, "is on its way");
  MUST_FAIL(wait_without_barrier, "of shared memory");
  MUST_FAIL(copy_left_behind, "before its asynchronous copies were waited for");
  MUST_FAIL(copy_off_alignment, "off their alignment");
  MUST_FAIL(wrong_mask, "waits in shuffle_xor");
  MUST_FAIL(outside_its_mask, "is not in its mask");
  MUST_FAIL(shuffle_from_outside, "which is not in the mask");
  MUST_FAIL(beyond_shared, "of 4096 bytes of shared memory");
  MUST_FAIL(off_alignment, "off their alignment");
  MUST_FAIL(off_alignment_in_shared, "which is no multiple");
  MUST_FAIL(write_after_read, "since the last barrier");
  MUST_FAIL(half_a_warp_multiplies, "waits in mma.sync");
  check_ranges();
  check_basics();
  check_product<f16>("f16");
  check_product<bf16>("bf16");
  check_product<float>("tf32");
  check_load_matrices();
  check_tf32();
  if (!failures) std::printf("ok\n");
  return failures;
}
