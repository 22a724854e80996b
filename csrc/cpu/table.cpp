// The rows of kernels.inc for one instruction set; compiled once per instruction set, like the kernels themselves.
#include "table.h"

#include "simd/isa.h"

namespace fastconv::FASTCONV_ISA {

#if defined(FASTCONV_PORTABLE)
#define FASTCONV_KERNEL_PORTABLE FASTCONV_KERNEL
#else
#define FASTCONV_KERNEL_PORTABLE(family, op, pass, algorithm)
#endif

#if defined(__AVX512F__)
#define FASTCONV_KERNEL_AVX512 FASTCONV_KERNEL
#else
#define FASTCONV_KERNEL_AVX512(family, op, pass, algorithm)
#endif

#define FASTCONV_KERNEL(family, op, pass, algorithm) extern const KernelBody family##_##pass##_##algorithm;
#include "kernels.inc"
#undef FASTCONV_KERNEL

#define FASTCONV_KERNEL(family, op, pass, algorithm)                                                     \
  {#family "/" #pass "_" #algorithm "_" FASTCONV_ISA_STRING(FASTCONV_ISA), Op::op, Pass::pass, this_isa, \
   family##_##pass##_##algorithm},

std::vector<Kernel> table() {
  return {
#include "kernels.inc"
  };
}

}  // namespace fastconv::FASTCONV_ISA
