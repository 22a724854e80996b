// The machine that GPU kernels run on where there is no GPU: their sources, compiled as host C++, one fiber a thread.
//
// A thread runs until it waits. Who runs next is drawn from a seed, so that a result which depends on the order of
// threads differs between seeds. It is stricter than a device: what the programming model leaves undefined is an error
// with a sentence (Failure), not luck:
//   - a barrier that not every thread of the block reaches, or that some reach elsewhere; a thread that ends before it;
//   - a warp operation that not every lane of its mask joins, or joins with another mask, or from outside the mask;
//   - two threads touching the same shared memory between two barriers, one of them writing;
//   - shared memory touched outside its size, off alignment, or while an asynchronous copy is on its way there;
//   - global memory touched off alignment, or outside the operands of the call, even where nothing comes of it.
// hopper.h adds what sm_90 has. Shared memory is all NaN when a block starts. An asynchronous copy happens when its
// thread waits for it, and what it will overwrite is NaN from its start. Global memory is host memory.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastconv::emulated {

inline constexpr int warp_lanes = 32;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in a kernel's source an operation stands.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const;
  std::string text() const;
};

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// Runs kernel(context) in every thread of every block, those of a cluster (`cluster` blocks along x) at once. Throws
// Failure.
void run_grid(Grid grid, int cluster, int threads, int64_t shared_bytes, uint64_t seed, void (*kernel)(void*),
              void* context);

// --- What a thread may ask and do; each function is called from inside a kernel. -------------------------------------
int this_thread();
Grid this_block();
void meet_block(Site site);

// Every lane of `mask` calls it with operands of its own; the last to come runs body(operands of all lanes, mask), and
// then all go on.
using Exchange = void (*)(void* const operands[warp_lanes], uint32_t mask);
void meet(uint32_t mask, const char* what, void* operands, Exchange body, Site site);

// The block's shared memory. Reads and writes name bytes that lie in it.
char* shared_memory();
void check_shared(const void* at, int bytes, bool write);

// cp.async: `bytes` at `to` in shared memory, the first `from_bytes` of them from global memory, zeros behind.
void copy_later(void* to, const void* from, int bytes, int from_bytes);
void commit_copies();
void wait_for_copies(int newest_left);

// An access to global memory at `at`, which must be a multiple of `bytes` and lie in a range of Allowed.
void check_global(const void* at, int bytes, bool write);

// While it lives, kernels of this thread may touch these ranges of global memory alone. Without one, all memory.
struct Range {
  const void* begin;
  int64_t bytes;
  bool written;  // may be
};
class Allowed {
 public:
  explicit Allowed(std::vector<Range> ranges);
  ~Allowed();
  Allowed(const Allowed&) = delete;
  Allowed& operator=(const Allowed&) = delete;
};

}  // namespace fastconv::emulated
