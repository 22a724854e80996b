#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <bit>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/integers.h"

namespace fastconv {

namespace {

constexpr size_t huge_page = size_t{2} << 20;
constexpr size_t smallest = size_t{1} << 20;  // bytes of a block worth keeping
constexpr size_t steps = 8;                   // sizes between two powers of two, so that near sizes share blocks
constexpr size_t most_slack = 2;              // a block serves requests down to this part of its size

struct Block {
  char* data;
  size_t bytes;
};

Block map(size_t bytes) {
  const size_t reserved = bytes + huge_page;  // room to begin at a huge page
  void* const raw = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return {nullptr, 0};
  char* const begin = static_cast<char*>(raw);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % huge_page;
  char* const data = begin + before;
  if (before > 0) munmap(begin, before);
  munmap(data + bytes, huge_page - before);
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

void unmap(const Block& block) { munmap(block.data, block.bytes); }

class Store {
 public:
  // Null when the system has no more memory, or nothing is to be kept.
  char* take(size_t bytes) {
    const auto size = static_cast<size_t>(round_up(bytes, std::bit_floor(bytes) / steps));
    std::lock_guard lock(mutex_);
    if (!keep_) return nullptr;
    Block block = reuse(size);
    if (!block.data) block = map(size);
    if (!block.data) {
      shrink_to(0);
      block = map(size);
    }
    if (!block.data) return nullptr;
    sizes_[block.data] = block.bytes;
    stats_.live += block.bytes;
    stats_.peak = std::max(stats_.peak, stats_.live);
    shrink();
    return block.data;
  }

  void give_back(void* data) {
    std::lock_guard lock(mutex_);
    const auto found = sizes_.find(static_cast<char*>(data));
    const Block block{found->first, found->second};
    sizes_.erase(found);
    stats_.live -= block.bytes;
    stats_.kept += block.bytes;
    kept_.push_back(block);
    shrink();
  }

  void keep(bool keep) {
    std::lock_guard lock(mutex_);
    keep_ = keep;
    shrink();
  }

  void release() {
    std::lock_guard lock(mutex_);
    shrink_to(0);
    stats_.peak = stats_.live;
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  // The smallest kept block that is large enough and not wasted on so little; of equal ones the last that was freed,
  // whose lines the caches may still hold.
  Block reuse(size_t size) {
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->bytes >= size && block->bytes <= most_slack * size &&
          (best == kept_.end() || block->bytes <= best->bytes))
        best = block;
    if (best == kept_.end()) return {nullptr, 0};
    const Block block = *best;
    kept_.erase(best);
    stats_.kept -= block.bytes;
    return block;
  }

  void shrink() {
    const size_t most = 2 * stats_.peak;
    shrink_to(keep_ ? most - stats_.live : 0);
  }

  // Oldest first.
  void shrink_to(size_t bytes) {
    auto end = kept_.begin();
    for (; stats_.kept > bytes; ++end) {
      unmap(*end);
      stats_.kept -= end->bytes;
    }
    kept_.erase(kept_.begin(), end);
  }

  std::mutex mutex_;
  std::unordered_map<char*, size_t> sizes_;  // of live blocks
  std::vector<Block> kept_;                  // in the order in which they were freed
  MemoryStats stats_;
  bool keep_ = true;
};

Store& store() {
  static Store* const instance = new Store;  // tensors may die after everything else
  return *instance;
}

void free_block(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  store().give_back(data);
}

struct Memory final : c10::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    char* const data = bytes < smallest ? nullptr : store().take(bytes);
    if (!data) return c10::GetCPUAllocator()->allocate(bytes);  // with its error when there is no more
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &free_block, at::Device(at::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

const c10::DispatchKeySet cpu_keys(c10::DispatchKey::CPU);

}  // namespace

c10::Allocator& memory() {
  static Memory* const instance = new Memory;
  return *instance;
}

at::Tensor empty_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::empty_strided(sizes, strides, options);
  return at::detail::empty_strided_generic(sizes, strides, &memory(), cpu_keys,
                                           at::typeMetaToScalarType(options.dtype()));
}

at::Tensor empty_result(at::IntArrayRef sizes, at::MemoryFormat format, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::empty(sizes, options.memory_format(format));
  return at::detail::empty_generic(sizes, &memory(), cpu_keys, at::typeMetaToScalarType(options.dtype()), format);
}

MemoryStats memory_stats() { return store().stats(); }
void release_memory() { store().release(); }
void keep_memory(bool keep) { store().keep(keep); }

}  // namespace fastconv
