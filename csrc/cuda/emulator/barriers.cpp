// Barriers of some threads, and what they tell whom: clocks of threads, and phases of mbarriers as columns behind them.
#include <algorithm>

#include "machine.h"

namespace fastconv::emulated {

void Cluster::know_clocks() {
  if (clocks_.empty()) clocks_.assign(threads_.size(), Clocks(static_cast<size_t>(columns())));
}

bool Cluster::ordered(int column, uint32_t clock) const {
  return column >= 0 && !clocks_.empty() &&
         clocks_[static_cast<size_t>(current_)][static_cast<size_t>(column)] >= clock;
}

// What this thread knows and did until now goes into `into`.
void Cluster::release(Clocks& into) {
  know_clocks();
  Clocks& own = clocks_[static_cast<size_t>(current_)];
  own[static_cast<size_t>(current_)] = me().clock++;
  if (into.empty()) {
    into = own;
    return;
  }
  for (size_t i = 0; i < own.size(); ++i) into[i] = std::max(into[i], own[i]);
}

void Cluster::acquire(const Clocks& from) {
  if (from.empty()) return;
  know_clocks();
  Clocks& own = clocks_[static_cast<size_t>(current_)];
  for (size_t i = 0; i < own.size(); ++i) own[i] = std::max(own[i], from[i]);
}

// --- __syncwarp ------------------------------------------------------------------------------------------------------
void Cluster::join_warp(uint32_t mask) {
  Clocks all;
  const int self = current_, first = self - self % warp_lanes;
  for (int pass = 0; pass < 2; ++pass)
    for (int lane = 0; lane < warp_lanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      current_ = first + lane;
      if (pass == 0)
        release(all);
      else
        acquire(all);
    }
  current_ = self;
}

// --- bar.sync and bar.arrive -----------------------------------------------------------------------------------------
void Cluster::named(int id, int threads, bool waits, Site site) {
  auto refuse = [&](const std::string& why) {  // a string made before the wait would stay on a stack that is left
    throw Failure(where() + " uses named barrier " + std::to_string(id) + " in " + site.text() + why);
  };
  if (id < 1 || id >= most_named) refuse(", but they are numbered from 1 to 15.");
  if (threads < 1 || threads % warp_lanes || threads > threads_each_)
    refuse(" for " + std::to_string(threads) + " threads.");
  NamedBarrier& barrier = named_[static_cast<size_t>(rank() * most_named + id)];
  if (barrier.came && barrier.wanted != threads)
    refuse(" for " + std::to_string(threads) + " threads while it waits for " + std::to_string(barrier.wanted) + ".");
  barrier.wanted = threads;
  release(barrier.clocks);
  ++barrier.came;
  if (barrier.came < threads) {
    if (!waits) return;
    barrier.waiting.push_back(current_);
    me().awaits = id;
    return pause(State::at_named, site);
  }
  const Clocks all = std::move(barrier.clocks);
  const std::vector<int> waiting = std::move(barrier.waiting);
  barrier = {};
  const int self = current_;
  for (int thread : waiting) {
    current_ = thread;
    acquire(all);
    wake(thread);
  }
  current_ = self;
  if (waits) acquire(all);
}

// --- mbarriers -------------------------------------------------------------------------------------------------------
void Cluster::make_barrier(const void* at, int threads) {
  constexpr int bytes = 8;
  check_shared(at, bytes, /*write=*/true);
  if (threads < 1) throw Failure(where() + " makes an mbarrier for " + std::to_string(threads) + " arrivals.");
  const int64_t offset = static_cast<const char*>(at) - shared_.data();
  if (barrier_at_.count(offset)) throw Failure(where() + " makes an mbarrier twice.");
  if (static_cast<int>(mbarriers_.size()) == most_barriers) throw Failure("A block makes too many mbarriers.");
  know_clocks();
  barrier_at_[offset] = static_cast<int>(mbarriers_.size());
  Mbarrier barrier;
  barrier.threads = barrier.pending = threads;
  barrier.maker = current_, barrier.make_epoch = epoch(), barrier.make_clock = me().clock;
  barrier.make_meeting = meetings_of_all_;
  mbarriers_.push_back(std::move(barrier));
}

void Cluster::fence_barriers() {
  for (Mbarrier& barrier : mbarriers_) barrier.fenced |= barrier.maker == current_;
}

void Cluster::fence_writes() {
  me().fenced = me().clock++;
  me().fenced_epoch = epoch();
}

Mbarrier& Cluster::mbarrier(const void* at) {
  const auto found = barrier_at_.find(static_cast<const char*>(at) - shared_.data());
  if (found == barrier_at_.end()) throw Failure(where() + " uses an mbarrier that was not made.");
  Mbarrier& barrier = mbarriers_[static_cast<size_t>(found->second)];
  const bool own = rank_of(at) == rank();
  const bool known = own ? barrier.make_epoch != epoch() : barrier.make_meeting != meetings_of_all_;
  if (barrier.maker != current_ && !known && !ordered(barrier.maker, barrier.make_clock))
    throw Failure(where() + " uses an mbarrier without a barrier behind its making.");
  if (!barrier.fenced) throw Failure(where() + " uses an mbarrier whose making was not fenced.");
  return barrier;
}

void Cluster::arrive(const void* at, int64_t expected_bytes) {
  Mbarrier& barrier = mbarrier(at);
  if (barrier.pending == 0) throw Failure(where() + " arrives at an mbarrier whose phase has all its arrivals.");
  barrier.expected += expected_bytes;
  release(barrier.clocks);
  --barrier.pending;
  settle(barrier);
}

// A phase ends with its last arrival and byte. Loads are carried out when somebody waits for them and all arrivals are
// there.
void Cluster::settle(Mbarrier& barrier) {
  const int index = static_cast<int>(&barrier - mbarriers_.data());
  auto waits = [&](const Thread& t) {
    return t.state == State::at_mbarrier && t.awaits == index && t.parity == (barrier.phase & 1);
  };
  if (barrier.pending || std::none_of(threads_.begin(), threads_.end(), waits)) {
    if (barrier.pending || barrier.expected || !barrier.loads.empty()) return;
  }
  for (const BulkLoad& load : barrier.loads) {
    carry_out(barrier, load);
    barrier.expected -= load.bytes;
  }
  barrier.loads.clear();
  if (barrier.expected < 0)
    throw Failure("Copies brought " + std::to_string(-barrier.expected) + " bytes more than their mbarrier expects.");
  if (barrier.expected) return;
  barrier.last = std::move(barrier.clocks);
  barrier.clocks.clear();
  const uint32_t parity = barrier.phase & 1;
  ++barrier.phase;
  barrier.last[threads_.size() + static_cast<size_t>(index)] = barrier.phase;
  barrier.pending = barrier.threads;
  const int self = current_;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& t = threads_[i];
    if (t.state != State::at_mbarrier || t.awaits != index || t.parity != parity) continue;
    current_ = static_cast<int>(i);
    acquire(barrier.last);
    wake(current_);
  }
  current_ = self;
}

// Until the phase of this parity has completed: an mbarrier starts in one of parity 0, as if one of parity 1 had.
void Cluster::wait_for_phase(const void* at, uint32_t parity, Site site) {
  if (parity > 1) throw Failure(where() + " waits for parity " + std::to_string(parity) + ".");
  Mbarrier& barrier = mbarrier(at);
  Thread& t = me();
  t.awaits = static_cast<int>(&barrier - mbarriers_.data()), t.parity = parity;
  if ((barrier.phase & 1) != parity) return acquire(barrier.last);
  // As a waiter first, so that what is on its way is carried out for it.
  const uint32_t phase = barrier.phase;
  t.state = State::at_mbarrier, t.site = site;
  if (barrier.pending == 0) settle(barrier);
  if (barrier.phase != phase) {
    std::erase(ready_, current_);
    t.state = State::ready;
    return;
  }
  pause(State::at_mbarrier, site);
}

// --- setmaxnreg ------------------------------------------------------------------------------------------------------
void Cluster::set_registers(int count, bool more) {
  constexpr int least = 24, most = 256, step = 8, all = 65536;
  if (count < least || count > most || count % step)
    throw Failure(where() + " sets " + std::to_string(count) + " registers; they are multiples of 8 from 24 to 256.");
  me().registers = count;
  int64_t sum = 0;
  for (int i = 0; i < threads_each_; ++i) sum += threads_[static_cast<size_t>(rank() * threads_each_ + i)].registers;
  if (sum > all) throw Failure("The threads of a block set " + std::to_string(sum) + " registers in all.");
  (void)more;
}

void join_warp(uint32_t mask, Site site) {
  meet(mask, "syncwarp", nullptr, [](void* const*, uint32_t joined) { cluster().join_warp(joined); }, site);
}
void meet_named(int id, int threads, bool waits, Site site) { cluster().named(id, threads, waits, site); }
void make_barrier(const void* at, int threads) { cluster().make_barrier(at, threads); }
void fence_barriers() { cluster().fence_barriers(); }
void fence_writes() { cluster().fence_writes(); }
void arrive(const void* at, int64_t expected_bytes) { cluster().arrive(at, expected_bytes); }
void wait_for_phase(const void* at, uint32_t parity, Site site) { cluster().wait_for_phase(at, parity, site); }
void set_registers(int count, bool more, Site site) {
  meet(0xffffffffu, "setmaxnreg", nullptr, [](void* const*, uint32_t) {}, site);
  cluster().set_registers(count, more);
}

}  // namespace fastconv::emulated
