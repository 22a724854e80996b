// The emulator's own view of a running cluster of blocks, which most often is one block: threads, shared memory and who
// touched it, and what is on its way. Kernels see block.h and hopper.h. Threads are numbered through all blocks, whose
// shared memories lie one behind the other.
//
// Order between threads. A barrier of a whole block orders all that its threads do: each begins an epoch, and no two
// epochs of any blocks have the same number. Barriers of the cluster begin one in every block. Barriers of some threads
// (named, mbarriers, a warp's) order what their threads did: each thread has a clock and knows a clock of every other
// (vector clocks, made when a kernel first uses such a barrier). An access is stamped with its thread's clock; who has
// not heard of that clock races with it. Copies into shared memory are stamped with the phase of their mbarrier.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "block.h"
#include "fiber.h"
#include "hopper.h"

namespace fastconv::emulated {

inline constexpr int poison = 0xff;   // NaN in every floating-point type
inline constexpr int cell_bytes = 2;  // of shared memory that one record of the race check stands for
inline constexpr int chunk_bytes = 16;
inline constexpr int largest_block = 1024, largest_cluster = 8, most_barriers = 128, most_named = 16;
inline constexpr int warps_of_group = 4;
inline constexpr int64_t largest_shared = 227 << 10;  // bytes a block may have on sm_90

enum class State : uint8_t { ready, at_barrier, at_cluster, in_warp, at_named, at_mbarrier, ended };

using Clocks = std::vector<uint32_t>;

struct Copy {  // cp.async
  char* to;
  const char* from;
  int bytes, from_bytes;
};

struct BulkStore {
  const TensorMap* map;
  std::vector<int> at;
  const char* from;
  int64_t bytes;
};

struct Thread {
  State state = State::ready;
  Site site{};
  std::vector<Copy> copies;    // not yet carried out, oldest first
  std::vector<size_t> groups;  // copies in each committed group, oldest first
  size_t open = 0;             // copies behind the last group
  uint32_t clock = 1;
  uint32_t fenced = 0;  // what this thread wrote up to this clock is visible to copies and wgmma
  uint64_t fenced_epoch = 0;
  int awaits = 0;  // barrier, while it waits
  uint32_t parity = 0;
  int registers = 0;  // by setmaxnreg; 0: not set
  std::vector<BulkStore> stores;
  std::vector<size_t> store_groups;
  size_t open_stores = 0;
};

struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Exchange body = nullptr;
  Site site{};
  void* operands[warp_lanes] = {};
};

// Who touched a cell of shared memory since the last barrier of the block.
struct Cell {
  uint64_t write_epoch = 0, read_epoch = 0;
  uint32_t write_clock = 0, read_clock = 0;
  int16_t writer = -1, reader = -1;  // a column of Clocks; reader: the only one, or `several`
  int16_t copier = -1;               // whose asynchronous copy is on its way here
  bool written = false, by_copy = false;
};
inline constexpr int16_t several = -2;

// Shared memory that wgmma or a bulk store reads in its own time.
struct Reading {
  const char *begin, *end;
  int reader;     // thread, or a warp's first lane
  Clocks clocks;  // of the thread or of each lane, when it had waited: knowing one is enough
  int pending;    // operations that have not been waited for
  const char* what;
};

struct NamedBarrier {
  int wanted = 0, came = 0;
  std::vector<int> waiting;
  Clocks clocks;
};

struct BulkLoad {
  const TensorMap* map;
  std::vector<int> at, offsets;
  char* to;
  int64_t bytes;
  int copier;
};

struct Mbarrier {
  int threads = 0;  // arrivals of a phase; 0: not made
  int pending = 0;
  int64_t expected = 0;  // bytes
  uint32_t phase = 0;    // completed ones
  int maker = 0;
  bool fenced = false;
  uint64_t make_epoch = 0;
  int make_meeting = 0;  // barriers of the cluster before
  uint32_t make_clock = 0;
  std::vector<BulkLoad> loads;
  Clocks clocks, last;  // of arrivals of this phase; of the last
};

// One wgmma of a warp: its 16 rows.
struct Multiply {
  Wgmma what;
  std::vector<float*> sums;   // of lanes
  std::vector<uint32_t> a;    // of lanes, where A lies in registers
  std::vector<float> before;  // the sums as they were, where no earlier one in flight makes them
};

struct WarpQueue {
  std::deque<Multiply> flying;
  std::vector<size_t> groups;
  size_t open = 0;
  int64_t issued = 0;
  bool fenced = false;
};

// Numbers without a library's state: splitmix64.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }
};

class Cluster {
 public:
  // `first`: of its blocks, which follow each other along x.
  void run(Grid first, int blocks, int threads, int64_t shared_bytes, Random& random, void (*kernel)(void*),
           void* context);

  int thread() const { return current_ % threads_each_; }
  int rank() const { return current_ / threads_each_; }
  Grid index() const { return {first_.x + static_cast<unsigned>(rank()), first_.y, first_.z}; }
  char* shared() { return shared_.data() + rank() * shared_pitch_; }
  char* shared_of(int rank, const void* own);
  void barrier(Site site);
  void barrier_of_all(Site site);
  void meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site);

  // shared.cpp
  void check_shared(const void* at, int bytes, bool write);
  void copy_later(Copy copy);
  void commit();
  void wait(int newest_left);

  // barriers.cpp
  void join_warp(uint32_t mask);
  void named(int id, int threads, bool waits, Site site);
  void make_barrier(const void* at, int threads);
  void fence_barriers();
  void fence_writes();
  void arrive(const void* at, int64_t bytes);
  void wait_for_phase(const void* at, uint32_t parity, Site site);
  void set_registers(int count, bool more);

  // tensor.cpp
  void load_later(BulkLoad load, const void* barrier);
  void store_later(BulkStore store);
  void commit_stores();
  void wait_for_stores(int newest_left);

  // warpgroup.cpp
  void fence_multiplies();
  void multiply_later(Multiply multiply);
  void commit_multiplies();
  void wait_for_multiplies(int newest_left);

 private:
  static void main(void* block);
  Thread& me() { return threads_[static_cast<size_t>(current_)]; }
  WarpQueue& queue() { return queues_[static_cast<size_t>(current_ / warp_lanes)]; }
  std::string where() const;
  std::string name(int thread) const;
  std::string who_waits() const;
  void check_end();
  void pause(State state, Site site);
  void wake(int thread);

  Cell* cells(const void* at, int64_t bytes, const char* verb);
  void check_alignment(const void* at, int64_t multiple, const char* what);
  void note_reading(int reader, const char* begin, const char* end, const char* what);
  void finish_reading(int reader, int lanes, const char* begin, const char* end);
  void check_readings(const void* at, int64_t bytes, const char* verb);
  void check_async_read(const char* at, int64_t bytes, const char* what);

  int columns() const { return static_cast<int>(threads_.size()) + most_barriers; }
  void know_clocks();
  bool ordered(int column, uint32_t clock) const;
  void release(Clocks& into);
  void acquire(const Clocks& from);

  Mbarrier& mbarrier(const void* at);
  void settle(Mbarrier& barrier);
  void carry_out(Mbarrier& barrier, const BulkLoad& load);
  void multiply(const Multiply& m, const std::vector<float>& before, std::vector<float>& sums);
  std::vector<const char*> chunks_of(const Wgmma& what, bool left, int rows, int first);

  // The block that a place in shared memory belongs to, and its epoch; of the running thread's own.
  int rank_of(const void* at) const {
    return static_cast<int>((static_cast<const char*>(at) - shared_.data()) / shared_pitch_);
  }
  uint64_t& epoch_at(const void* at) { return epochs_[static_cast<size_t>(rank_of(at))]; }
  uint64_t& epoch() { return epochs_[static_cast<size_t>(rank())]; }
  void meet_at_barrier(State state, Site site, int first, int count, int& came);

  Grid first_;
  int blocks_ = 1, threads_each_ = 0;
  int64_t shared_bytes_ = 0, shared_pitch_ = 0;  // of a block; from one to the next
  int current_ = 0, at_cluster_ = 0, meetings_of_all_ = 0;
  std::vector<int> ended_, at_barrier_;  // threads of each block
  std::vector<uint64_t> epochs_;
  uint64_t last_epoch_ = 0;
  void (*kernel_)(void*) = nullptr;
  void* context_ = nullptr;
  std::optional<std::string> failure_;
  std::vector<Thread> threads_;
  std::vector<Meeting> meetings_;
  std::vector<int> ready_;
  std::vector<char> shared_;
  std::vector<Cell> cells_;
  std::unique_ptr<Fibers> fibers_;

  std::vector<Clocks> clocks_;  // of each thread; empty until one is needed
  std::vector<NamedBarrier> named_;
  std::vector<Mbarrier> mbarriers_;
  std::map<int64_t, int> barrier_at_;  // offset in shared memory to index
  std::vector<Reading> readings_;
  std::vector<WarpQueue> queues_;
  std::vector<std::vector<std::pair<uint64_t, uint64_t>>> issued_;  // descriptors of each warpgroup, in order
};

Cluster& cluster();  // that runs

}  // namespace fastconv::emulated
