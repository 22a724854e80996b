// Memory of results and workspaces. A fresh page costs more than what a kernel writes into it: filling two new tensors
// of 25 MB in turns takes 20 ms, filling old ones 0.9 (a virtual Zen 4, 2 threads, 2026-11-22). The C library hands
// large blocks back to the system when they are freed, so a network pays this for each large activation in each call.
// Here freed blocks are kept for the next result, and large ones lie in huge pages.
//
// What is kept never makes live and kept blocks together larger than twice the most that was ever live at once;
// release_memory() gives all of it back. Small blocks are the C library's.
#pragma once

#include <ATen/ATen.h>

namespace fastconv {

struct MemoryStats {
  size_t live = 0;  // bytes in use
  size_t kept = 0;  // bytes freed and kept
  size_t peak = 0;  // the most that was live at once since release_memory()
};

// Allocates like PyTorch's CPU allocator: 64-byte aligned, seen by the profiler, its error when memory runs out.
c10::Allocator& memory();

// Like at::empty_strided and at::empty, which serve other devices than the CPU.
at::Tensor empty_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options);
at::Tensor empty_result(at::IntArrayRef sizes, at::MemoryFormat format, const at::TensorOptions& options);

MemoryStats memory_stats();
void release_memory();

// Switched off, what is kept is given back and PyTorch's allocator serves everything.
void keep_memory(bool keep);

}  // namespace fastconv
