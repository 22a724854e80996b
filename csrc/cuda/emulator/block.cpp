#include "block.h"

#include <cstring>

#include "machine.h"

namespace fastconv::emulated {

namespace {
thread_local Block* running = nullptr;
}

Block& block() {
  if (!running) throw Failure("A kernel's operation was called outside a kernel.");
  return *running;
}

std::string Block::where() const {
  return "Thread " + std::to_string(current_) + " of block (" + std::to_string(index_.x) + ", " +
         std::to_string(index_.y) + ", " + std::to_string(index_.z) + ")";
}

void Block::main(void* self) {
  Block& b = *static_cast<Block*>(self);
  try {
    b.kernel_(b.context_);
    b.check_end();
  } catch (const std::exception& error) {
    if (!b.failure_) b.failure_ = error.what();
  }
  b.me().state = State::ended;
  ++b.ended_;
  b.fibers_->leave(b.current_, /*last=*/true);
}

void Block::check_end() {
  const WarpQueue& warp = queue();
  if (!me().copies.empty()) throw Failure(where() + " ended before its asynchronous copies were waited for.");
  if (!me().stores.empty()) throw Failure(where() + " ended before its bulk stores were waited for.");
  if (!warp.flying.empty()) throw Failure(where() + " ended before its warp's products were waited for.");
}

void Block::run(Grid index, int threads, int64_t shared_bytes, Random& random, void (*kernel)(void*), void* context) {
  index_ = index, kernel_ = kernel, context_ = context;
  ended_ = at_barrier_ = 0;
  ++epoch_;
  failure_.reset();
  if (!fibers_ || fibers_->count() < threads) fibers_ = std::make_unique<Fibers>(threads);
  threads_.resize(static_cast<size_t>(threads));
  meetings_.assign(static_cast<size_t>((threads + warp_lanes - 1) / warp_lanes), {});
  shared_.assign(static_cast<size_t>(shared_bytes), static_cast<char>(poison));
  const size_t wanted = static_cast<size_t>(shared_bytes / cell_bytes + 1);
  if (cells_.size() < wanted) cells_.resize(wanted);
  for (size_t i = 0; i < wanted; ++i) cells_[i].copier = -1, cells_[i].written = false;
  ready_.clear();
  clocks_.clear(), mbarriers_.clear(), barrier_at_.clear(), readings_.clear();
  named_.assign(most_named, {});
  queues_.assign(meetings_.size(), {});
  issued_.assign((meetings_.size() + warps_of_group - 1) / warps_of_group, {});
  for (int i = 0; i < threads; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    t = {};
    fibers_->reset(i, &Block::main, this);
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
  if (ended_ < threads)
    throw Failure("Block (" + std::to_string(index_.x) + ", " + std::to_string(index_.y) + ", " +
                  std::to_string(index_.z) + ") cannot go on: " + who_waits());
  for (const Mbarrier& barrier : mbarriers_)
    if (!barrier.loads.empty()) throw Failure("A block ended before its bulk loads were waited for.");
}

std::string Block::who_waits() const {
  std::string text;
  int shown = 0;
  constexpr int most_shown = 8;
  for (size_t i = 0; i < threads_.size() && shown < most_shown; ++i) {
    const Thread& t = threads_[i];
    if (t.state == State::ended) continue;
    if (i > 0 && threads_[i - 1].state == t.state && threads_[i - 1].site == t.site) continue;
    ++shown;
    const Meeting& m = meetings_[i / warp_lanes];
    std::string place = "at the barrier";
    if (t.state == State::in_warp) place = std::string("in ") + m.what;
    if (t.state == State::at_named) place = "at named barrier " + std::to_string(t.awaits);
    if (t.state == State::at_mbarrier) {
      const Mbarrier& barrier = mbarriers_[static_cast<size_t>(t.awaits)];
      place = "at an mbarrier that lacks " + std::to_string(barrier.pending) + " arrivals and " +
              std::to_string(barrier.expected) + " bytes,";
    }
    text += "thread " + std::to_string(i) + " waits " + place + " of " + t.site.text() + "; ";
  }
  return text + std::to_string(ended_) + " of " + std::to_string(threads_.size()) + " threads have ended.";
}

void Block::pause(State state, Site site) {
  me().state = state, me().site = site;
  const int self = current_;
  fibers_->leave(self, /*last=*/false);
}

void Block::wake(int thread) {
  threads_[static_cast<size_t>(thread)].state = State::ready;
  ready_.push_back(thread);
}

void Block::barrier(Site site) {
  me().site = site;
  if (++at_barrier_ < static_cast<int>(threads_.size())) return pause(State::at_barrier, site);
  for (int i = 0; i < static_cast<int>(threads_.size()); ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    if (!(t.site == site))
      throw Failure(where() + " is at the barrier of " + site.text() + ", but thread " + std::to_string(i) +
                    " is at that of " + t.site.text() + ".");
    if (i != current_) wake(i);
  }
  at_barrier_ = 0;
  ++epoch_;
  std::erase_if(readings_, [](const Reading& r) { return r.pending == 0; });
  wake(current_);
  pause(State::ready, site);
}

void Block::meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site) {
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

void run_grid(Grid grid, int threads, int64_t shared_bytes, uint64_t seed, void (*kernel)(void*), void* context) {
  if (threads < 1 || threads > largest_block)
    throw Failure("A block has 1 to 1024 threads, not " + std::to_string(threads) + ".");
  if (shared_bytes > largest_shared)
    throw Failure("A block has at most " + std::to_string(largest_shared) + " bytes of shared memory, not " +
                  std::to_string(shared_bytes) + ".");
  if (running) throw Failure("A kernel was started inside a kernel.");
  thread_local Block machine;
  Random random{seed};
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  std::vector<size_t> order(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    const size_t j = random.below(i + 1);
    order[i] = order[j], order[j] = i;
  }
  struct Running {
    explicit Running(Block* b) { running = b; }
    ~Running() { running = nullptr; }
  } guard(&machine);
  for (size_t i : order) {
    const Grid index{static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                     static_cast<unsigned>(i / grid.x / grid.y)};
    machine.run(index, threads, shared_bytes, random, kernel, context);
  }
}

int this_thread() { return block().thread(); }
Grid this_block() { return block().index(); }
void meet_block(Site site) { block().barrier(site); }
void meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site) {
  block().meet(mask, what, operands, body, site);
}
char* shared_memory() { return block().shared(); }
void check_shared(const void* at, int bytes, bool write) { block().check_shared(at, bytes, write); }
void copy_later(void* to, const void* from, int bytes, int from_bytes) {
  block().copy_later({static_cast<char*>(to), static_cast<const char*>(from), bytes, from_bytes});
}
void commit_copies() { block().commit(); }
void wait_for_copies(int newest_left) { block().wait(newest_left); }

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
