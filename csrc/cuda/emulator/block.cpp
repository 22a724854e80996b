#include "block.h"

#include <cstring>
#include <memory>
#include <optional>

#include "fiber.h"

namespace fastconv::emulated {

namespace {

constexpr int poison = 0xff;   // NaN in every floating-point type
constexpr int cell_bytes = 2;  // of shared memory that one record of the race check stands for
constexpr int largest_block = 1024;
constexpr int64_t largest_shared = 227 << 10;  // bytes a block may have on sm_90

enum class State : uint8_t { ready, at_barrier, in_warp, ended };

struct Copy {
  char* to;
  const char* from;
  int bytes, from_bytes;
};

struct Thread {
  State state = State::ready;
  Site site{};
  std::vector<Copy> copies;    // not yet carried out, oldest first
  std::vector<size_t> groups;  // copies in each committed group, oldest first
  size_t open = 0;             // copies behind the last group
};

struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Exchange body = nullptr;
  Site site{};
  void* operands[warp_lanes] = {};
};

// Who touched a cell of shared memory since the last barrier.
struct Cell {
  uint64_t write_epoch = 0, read_epoch = 0;
  int16_t writer = -1, reader = -1;  // reader: the only one, or `several`
  int16_t copier = -1;               // whose asynchronous copy is on its way here
};
constexpr int16_t several = -2;

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

class Block {
 public:
  void run(Grid block, int threads, int64_t shared_bytes, Random& random, void (*kernel)(void*), void* context);

  int thread() const { return current_; }
  Grid index() const { return index_; }
  char* shared() { return shared_.data(); }
  void barrier(Site site);
  void meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site);
  void check_shared(const void* at, int bytes, bool write);
  void copy_later(Copy copy);
  void commit() {
    Thread& t = me();
    t.groups.push_back(t.open);
    t.open = 0;
  }
  void wait(int newest_left);

 private:
  static void main(void* block);
  Thread& me() { return threads_[static_cast<size_t>(current_)]; }
  std::string where() const;
  std::string who_waits() const;
  void pause(State state, Site site);
  void wake(int thread);
  Cell* cells(const void* at, int bytes, const char* verb);

  Grid index_;
  int current_ = 0, ended_ = 0, at_barrier_ = 0;
  uint64_t epoch_ = 0;  // counts barriers of all blocks: records of an earlier block are never of this epoch
  void (*kernel_)(void*) = nullptr;
  void* context_ = nullptr;
  std::optional<std::string> failure_;
  std::vector<Thread> threads_;
  std::vector<Meeting> meetings_;
  std::vector<int> ready_;
  std::vector<char> shared_;
  std::vector<Cell> cells_;
  std::unique_ptr<Fibers> fibers_;
};

thread_local Block* running = nullptr;

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
    if (!b.me().copies.empty()) throw Failure(b.where() + " ended before its asynchronous copies were waited for.");
  } catch (const std::exception& error) {
    if (!b.failure_) b.failure_ = error.what();
  }
  b.me().state = State::ended;
  ++b.ended_;
  b.fibers_->leave(b.current_, /*last=*/true);
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
  for (Cell& cell : cells_) cell.copier = -1;
  ready_.clear();
  for (int i = 0; i < threads; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    t.state = State::ready, t.copies.clear(), t.groups.clear(), t.open = 0;
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
    text += "thread " + std::to_string(i) + " waits " +
            (t.state == State::at_barrier ? "at the barrier" : std::string("in ") + m.what) + " of " + t.site.text() +
            "; ";
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

Cell* Block::cells(const void* at, int bytes, const char* verb) {
  const auto offset = static_cast<const char*>(at) - shared_.data();
  if (offset < 0 || offset + bytes > static_cast<int64_t>(shared_.size()))
    throw Failure(where() + " " + verb + " " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                  " of " + std::to_string(shared_.size()) + " bytes of shared memory.");
  if (offset % bytes)
    throw Failure(where() + " " + verb + " " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                  " of shared memory, which is no multiple.");
  return cells_.data() + offset / cell_bytes;
}

void Block::check_shared(const void* at, int bytes, bool write) {
  Cell* cell = cells(at, bytes, write ? "writes" : "reads");
  const auto self = static_cast<int16_t>(current_);
  for (int i = 0; i < (bytes + cell_bytes - 1) / cell_bytes; ++i, ++cell) {
    int other = -1;
    if (cell->copier >= 0)
      throw Failure(where() + (write ? " writes" : " reads") +
                    " shared memory to which an asynchronous copy of thread " + std::to_string(cell->copier) +
                    " is on its way.");
    if (cell->write_epoch == epoch_ && cell->writer != self) other = cell->writer;
    if (write && cell->read_epoch == epoch_ && cell->reader != self) other = cell->reader;
    if (other != -1)
      throw Failure(where() + (write ? " writes" : " reads") + " offset " +
                    std::to_string((cell - cells_.data()) * cell_bytes) + " of shared memory, which " +
                    (other == several ? "other threads have" : "thread " + std::to_string(other) + " has") +
                    " touched since the last barrier.");
    if (write) {
      cell->write_epoch = epoch_, cell->writer = self;
    } else {
      cell->reader = cell->read_epoch == epoch_ && cell->reader != self ? several : self;
      cell->read_epoch = epoch_;
    }
  }
}

void Block::copy_later(Copy copy) {
  check_shared(copy.to, copy.bytes, /*write=*/true);
  if (copy.from_bytes > 0) check_global(copy.from, copy.bytes, /*write=*/false);
  Cell* cell = cells(copy.to, copy.bytes, "copies");
  for (int i = 0; i < copy.bytes / cell_bytes; ++i) cell[i].copier = static_cast<int16_t>(current_);
  std::memset(copy.to, poison, static_cast<size_t>(copy.bytes));
  me().copies.push_back(copy);
  ++me().open;
}

void Block::wait(int newest_left) {
  Thread& t = me();
  size_t done = 0;
  while (t.groups.size() > static_cast<size_t>(newest_left)) {
    done += t.groups.front();
    t.groups.erase(t.groups.begin());
  }
  for (size_t i = 0; i < done; ++i) {
    const Copy& c = t.copies[i];
    Cell* cell = cells(c.to, c.bytes, "copies");
    for (int k = 0; k < c.bytes / cell_bytes; ++k) cell[k].copier = -1;
    check_shared(c.to, c.bytes, /*write=*/true);
    std::memcpy(c.to, c.from, static_cast<size_t>(c.from_bytes));
    std::memset(c.to + c.from_bytes, 0, static_cast<size_t>(c.bytes - c.from_bytes));
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace

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
