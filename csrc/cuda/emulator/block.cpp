#include "block.h"

#include <cstring>
#include <numeric>

#include "machine.h"

namespace fastconv::emulated {

namespace {
thread_local Cluster* running = nullptr;
}

Cluster& cluster() {
  if (!running) throw Failure("A kernel's operation was called outside a kernel.");
  return *running;
}

std::string Cluster::where() const {
  const Grid at = index();
  return "Thread " + std::to_string(thread()) + " of block (" + std::to_string(at.x) + ", " + std::to_string(at.y) +
         ", " + std::to_string(at.z) + ")";
}

std::string Cluster::name(int thread) const {
  const std::string number = std::to_string(thread % threads_each_);
  return blocks_ == 1 ? number : number + " of the cluster's block " + std::to_string(thread / threads_each_);
}

void Cluster::main(void* self) {
  Cluster& b = *static_cast<Cluster*>(self);
  try {
    b.kernel_(b.context_);
    b.check_end();
  } catch (const std::exception& error) {
    if (!b.failure_) b.failure_ = error.what();
  }
  b.me().state = State::ended;
  ++b.ended_[static_cast<size_t>(b.rank())];
  b.fibers_->leave(b.current_, /*last=*/true);
}

void Cluster::check_end() {
  const WarpQueue& warp = queue();
  if (!me().copies.empty()) throw Failure(where() + " ended before its asynchronous copies were waited for.");
  if (!me().stores.empty()) throw Failure(where() + " ended before its bulk stores were waited for.");
  if (!warp.flying.empty()) throw Failure(where() + " ended before its warp's products were waited for.");
}

void Cluster::run(Grid first, int blocks, int threads_each, int64_t shared_bytes, Random& random, void (*kernel)(void*),
                  void* context) {
  constexpr int64_t alignment = 1024;
  first_ = first, blocks_ = blocks, threads_each_ = threads_each, kernel_ = kernel, context_ = context;
  shared_bytes_ = shared_bytes;
  shared_pitch_ = std::max<int64_t>(1, (shared_bytes + alignment - 1) / alignment) * alignment;
  const int threads = blocks * threads_each;
  const auto count = static_cast<size_t>(blocks);
  ended_.assign(count, 0), at_barrier_.assign(count, 0), epochs_.assign(count, 0);
  at_cluster_ = meetings_of_all_ = 0;
  for (uint64_t& epoch : epochs_) epoch = ++last_epoch_;
  failure_.reset();
  if (!fibers_ || fibers_->count() < threads) fibers_ = std::make_unique<Fibers>(threads);
  threads_.resize(static_cast<size_t>(threads));
  meetings_.assign(static_cast<size_t>((threads + warp_lanes - 1) / warp_lanes), {});
  shared_.assign(static_cast<size_t>(blocks * shared_pitch_), static_cast<char>(poison));
  const size_t wanted = shared_.size() / cell_bytes + 1;
  if (cells_.size() < wanted) cells_.resize(wanted);
  for (size_t i = 0; i < wanted; ++i) cells_[i].copier = -1, cells_[i].written = false;
  ready_.clear();
  clocks_.clear(), mbarriers_.clear(), barrier_at_.clear(), readings_.clear();
  named_.assign(count * most_named, {});
  queues_.assign(meetings_.size(), {});
  issued_.assign((meetings_.size() + warps_of_group - 1) / warps_of_group, {});
  for (int i = 0; i < threads; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    t = {};
    fibers_->reset(i, &Cluster::main, this);
    ready_.push_back(i);
  }
  while (!ready_.empty()) {
    const size_t pick = random.below(ready_.size());
    current_ = ready_[pick];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    fibers_->enter(current_);
    if (failure_) throw Failure(*failure_);
  }
  if (std::accumulate(ended_.begin(), ended_.end(), 0) < threads)
    throw Failure("Block (" + std::to_string(first_.x) + ", " + std::to_string(first_.y) + ", " +
                  std::to_string(first_.z) + ") cannot go on: " + who_waits());
  for (const Mbarrier& barrier : mbarriers_)
    if (!barrier.loads.empty()) throw Failure("A block ended before its bulk loads were waited for.");
}

std::string Cluster::who_waits() const {
  std::string text;
  int shown = 0;
  constexpr int most_shown = 8;
  for (size_t i = 0; i < threads_.size() && shown < most_shown; ++i) {
    const Thread& t = threads_[i];
    if (t.state == State::ended) continue;
    if (i > 0 && threads_[i - 1].state == t.state && threads_[i - 1].site == t.site) continue;
    ++shown;
    const Meeting& m = meetings_[i / warp_lanes];
    std::string place = t.state == State::at_cluster ? "at the cluster's barrier" : "at the barrier";
    if (t.state == State::in_warp) place = std::string("in ") + m.what;
    if (t.state == State::at_named) place = "at named barrier " + std::to_string(t.awaits);
    if (t.state == State::at_mbarrier) {
      const Mbarrier& barrier = mbarriers_[static_cast<size_t>(t.awaits)];
      place = "at an mbarrier that lacks " + std::to_string(barrier.pending) + " arrivals and " +
              std::to_string(barrier.expected) + " bytes,";
    }
    text += "thread " + name(static_cast<int>(i)) + " waits " + place + " of " + t.site.text() + "; ";
  }
  return text + std::to_string(std::accumulate(ended_.begin(), ended_.end(), 0)) + " of " +
         std::to_string(threads_.size()) + " threads have ended.";
}

void Cluster::pause(State state, Site site) {
  me().state = state, me().site = site;
  const int self = current_;
  fibers_->leave(self, /*last=*/false);
}

void Cluster::wake(int thread) {
  threads_[static_cast<size_t>(thread)].state = State::ready;
  ready_.push_back(thread);
}

// A barrier of `count` threads from `first` on, of whom `came` have come; returns at once for the last.
void Cluster::meet_at_barrier(State state, Site site, int first, int count, int& came) {
  me().site = site;
  if (++came < count) return pause(state, site);
  for (int i = first; i < first + count; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    if (!(t.site == site))
      throw Failure(where() + " is at the barrier of " + site.text() + ", but thread " + name(i) + " is at that of " +
                    t.site.text() + ".");
    if (i != current_) wake(i);
  }
  came = 0;
  if (state == State::at_cluster) ++meetings_of_all_;
  for (int rank = first / threads_each_; rank < (first + count) / threads_each_; ++rank)
    epochs_[static_cast<size_t>(rank)] = ++last_epoch_;
  std::erase_if(readings_,
                [&](const Reading& r) { return r.pending == 0 && r.reader >= first && r.reader < first + count; });
  wake(current_);
  pause(State::ready, site);
}

void Cluster::barrier(Site site) {
  const int own = rank();
  meet_at_barrier(State::at_barrier, site, own * threads_each_, threads_each_, at_barrier_[static_cast<size_t>(own)]);
}

void Cluster::barrier_of_all(Site site) {
  meet_at_barrier(State::at_cluster, site, 0, static_cast<int>(threads_.size()), at_cluster_);
}

// What lies there in the block of that rank.
char* Cluster::shared_of(int rank, const void* own) {
  if (rank < 0 || rank >= blocks_)
    throw Failure(where() + " reaches for block " + std::to_string(rank) + " of a cluster of " +
                  std::to_string(blocks_) + ".");
  if (ended_[static_cast<size_t>(rank)] == threads_each_)
    throw Failure(where() + " reaches for block " + std::to_string(rank) + " of its cluster, which has ended.");
  return shared_.data() + rank * shared_pitch_ + (static_cast<const char*>(own) - shared());
}

void Cluster::meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site) {
  const int lane = current_ % warp_lanes;
  if (!(mask >> lane & 1))
    throw Failure(where() + " calls " + what + " in " + site.text() + " but is not in its mask.");
  Meeting& m = meetings_[static_cast<size_t>(current_ / warp_lanes)];
  if (m.arrived == 0) {
    m.mask = mask, m.what = what, m.body = body, m.site = site;
  } else if (m.mask != mask || m.body != body || !(m.site == site)) {
    throw Failure(where() + " joins " + what + " of " + site.text() + " with mask " + std::to_string(mask) +
                  " while lanes of its warp are in " + m.what + " of " + m.site.text() + " with mask " +
                  std::to_string(m.mask) + ".");
  }
  m.arrived |= uint32_t{1} << lane;
  m.operands[lane] = operands;
  if (m.arrived != mask) return pause(State::in_warp, site);
  m.body(m.operands, mask);
  m.arrived = 0;
  const int first = current_ - lane;
  for (int i = 0; i < warp_lanes; ++i)
    if (i != lane && mask >> i & 1) wake(first + i);
}

bool Site::operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }

std::string Site::text() const {
  const char* name = std::strrchr(file, '/');
  return std::string(name ? name + 1 : file) + ":" + std::to_string(line);
}

void run_grid(Grid grid, int cluster, int threads, int64_t shared_bytes, uint64_t seed, void (*kernel)(void*),
              void* context) {
  if (threads < 1 || threads > largest_block)
    throw Failure("A block has 1 to 1024 threads, not " + std::to_string(threads) + ".");
  if (shared_bytes > largest_shared)
    throw Failure("A block has at most " + std::to_string(largest_shared) + " bytes of shared memory, not " +
                  std::to_string(shared_bytes) + ".");
  const auto size = static_cast<unsigned>(cluster);
  if (cluster < 1 || cluster > largest_cluster || grid.x % size || (cluster > 1 && threads % warp_lanes))
    throw Failure("A cluster has 1 to 8 blocks of whole warps, and a grid whole clusters: not " +
                  std::to_string(cluster) + " of " + std::to_string(threads) + " threads, " + std::to_string(grid.x) +
                  " blocks.");
  if (running) throw Failure("A kernel was started inside a kernel.");
  thread_local Cluster machine;
  Random random{seed};
  const size_t across = grid.x / size, clusters = across * grid.y * grid.z;
  std::vector<size_t> order(clusters);
  for (size_t i = 0; i < clusters; ++i) {
    const size_t j = random.below(i + 1);
    order[i] = order[j], order[j] = i;
  }
  struct Running {
    explicit Running(Cluster* c) { running = c; }
    ~Running() { running = nullptr; }
  } guard(&machine);
  for (size_t i : order) {
    const Grid first{static_cast<unsigned>(i % across) * size, static_cast<unsigned>(i / across % grid.y),
                     static_cast<unsigned>(i / across / grid.y)};
    machine.run(first, cluster, threads, shared_bytes, random, kernel, context);
  }
}

int this_thread() { return cluster().thread(); }
Grid this_block() { return cluster().index(); }
void meet_block(Site site) { cluster().barrier(site); }
int rank_in_cluster() { return cluster().rank(); }
void* shared_of(int rank, const void* own) { return cluster().shared_of(rank, own); }
void meet_cluster(Site site) { cluster().barrier_of_all(site); }
void meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site) {
  cluster().meet(mask, what, operands, body, site);
}
char* shared_memory() { return cluster().shared(); }
void check_shared(const void* at, int bytes, bool write) { cluster().check_shared(at, bytes, write); }
void copy_later(void* to, const void* from, int bytes, int from_bytes) {
  cluster().copy_later({static_cast<char*>(to), static_cast<const char*>(from), bytes, from_bytes});
}
void commit_copies() { cluster().commit(); }
void wait_for_copies(int newest_left) { cluster().wait(newest_left); }

namespace {
thread_local std::vector<Range> allowed;
}

Allowed::Allowed(std::vector<Range> ranges) { allowed = std::move(ranges); }
Allowed::~Allowed() { allowed.clear(); }

void check_global(const void* at, int bytes, bool write) {
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes))
    throw Failure("A thread touches " + std::to_string(bytes) + " bytes of global memory off their alignment.");
  check_global_range(at, bytes, write);
}

void check_global_range(const void* at, int64_t bytes, bool write) {
  if (allowed.empty()) return;
  const auto first = reinterpret_cast<uintptr_t>(at);
  for (const Range& range : allowed) {
    const auto begin = reinterpret_cast<uintptr_t>(range.begin);
    const bool inside =
        first >= begin && first + static_cast<uintptr_t>(bytes) <= begin + static_cast<uintptr_t>(range.bytes);
    if (inside && (range.written || !write)) return;
  }
  throw Failure(std::string("A thread ") + (write ? "writes " : "reads ") + std::to_string(bytes) +
                " bytes of global memory outside the operands.");
}

}  // namespace fastconv::emulated
