// The rows of kernels.inc for what this file is compiled for.
#include "common/target.h"

namespace fastconv::FASTCONV_GPU {

#define FASTCONV_GPU_KERNEL(family, op, pass, algorithm, target) \
  extern const GpuKernelBody family##_##pass##_##algorithm##_##target;
#define FASTCONV_GPU_PAIR(family, pass, algorithm, target) \
  extern const GpuPairBody family##_##pass##_##algorithm##_##target;
#include "kernels.inc"
#undef FASTCONV_GPU_KERNEL
#undef FASTCONV_GPU_PAIR

const std::vector<GpuKernel>& gpu_kernels() {
#define FASTCONV_GPU_KERNEL(family, op, pass, algorithm, target) \
  {#family "/" #pass "_" #algorithm "_" #target, Op::op, Pass::pass, family##_##pass##_##algorithm##_##target},
#define FASTCONV_GPU_PAIR(family, pass, algorithm, target)
  static const std::vector<GpuKernel> kernels{
#include "kernels.inc"
  };
#undef FASTCONV_GPU_KERNEL
#undef FASTCONV_GPU_PAIR
  return kernels;
}

const std::vector<GpuPair>& gpu_pairs() {
#define FASTCONV_GPU_KERNEL(family, op, pass, algorithm, target)
#define FASTCONV_GPU_PAIR(family, pass, algorithm, target) \
  {#family "/" #pass "_" #algorithm "_" #target, Pass::pass, family##_##pass##_##algorithm##_##target},
  static const std::vector<GpuPair> pairs{
#include "kernels.inc"
  };
#undef FASTCONV_GPU_KERNEL
#undef FASTCONV_GPU_PAIR
  return pairs;
}

}  // namespace fastconv::FASTCONV_GPU
