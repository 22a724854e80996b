// Linked with the kernels' device code: prints their names, then those of kernels of two problems, and, asked to start
// one where there is no GPU, the error.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "cuda/table.h"

int main(int count, char** words) {
  using namespace fastconv;
  for (const GpuKernel& kernel : device::gpu_kernels()) {
    std::puts(kernel.name.c_str());
    if (count < 2 || std::strcmp(words[1], kernel.name.c_str()) != 0) continue;
    Problem problem;  // one pixel, one channel
    Args args;
    try {
      kernel.body.run(problem, args, Stream{});
      std::puts("started");
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
    }
  }
  for (const GpuPair& pair : device::gpu_pairs()) std::puts(pair.name.c_str());
}
