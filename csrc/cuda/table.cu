// The rows of kernels.inc for what this file is compiled for.
#include "common/target.h"

namespace fastconv::FASTCONV_GPU {

#define FASTCONV_GPU_KERNEL(family, op, pass, algorithm, target) \
  extern const GpuKernelBody family##_##pass##_##algorithm##_##target;
#include "kernels.inc"
#undef FASTCONV_GPU_KERNEL

#define FASTCONV_GPU_KERNEL(family, op, pass, algorithm, target) \
  {#family "/" #pass "_" #algorithm "_" #target, Op::op, Pass::pass, family##_##pass##_##algorithm##_##target},

const std::vector<GpuKernel>& gpu_kernels() {
  static const std::vector<GpuKernel> kernels{
#include "kernels.inc"
  };
  return kernels;
}

}  // namespace fastconv::FASTCONV_GPU
