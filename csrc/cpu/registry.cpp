// Merges the tables of the instruction sets this build has: row order first, then the widest set first.
#include <algorithm>

#include "core/cpu_features.h"
#include "table.h"

namespace fastconv {

namespace scalar {
std::vector<Kernel> table();
}
#if defined(FASTCONV_HAS_AVX2)
namespace avx2 {
std::vector<Kernel> table();
}
#endif
#if defined(FASTCONV_HAS_AVX512)
namespace avx512 {
std::vector<Kernel> table();
}
#endif
#if defined(FASTCONV_HAS_NEON)
namespace neon {
std::vector<Kernel> table();
}
#endif

namespace {

// "conv2d/fprop_igemm_avx2" -> "conv2d/fprop_igemm"
std::string row_of(const Kernel& kernel) { return kernel.name.substr(0, kernel.name.rfind('_')); }

#define FASTCONV_KERNEL(family, op, pass, algorithm) #family "/" #pass "_" #algorithm,
#define FASTCONV_KERNEL_PORTABLE FASTCONV_KERNEL
#define FASTCONV_KERNEL_AVX512 FASTCONV_KERNEL
constexpr const char* rows[] = {
#include "kernels.inc"
};

std::vector<Kernel> merged() {
  std::vector<Kernel> tables;
  auto append = [&](std::vector<Kernel> table) { tables.insert(tables.end(), table.begin(), table.end()); };
#if defined(FASTCONV_HAS_AVX512)
  append(avx512::table());
#endif
#if defined(FASTCONV_HAS_AVX2)
  append(avx2::table());
#endif
#if defined(FASTCONV_HAS_NEON)
  append(neon::table());
#endif
  append(scalar::table());
  std::vector<Kernel> all;
  for (const char* row : rows)
    std::copy_if(tables.begin(), tables.end(), std::back_inserter(all),
                 [&](const Kernel& kernel) { return row_of(kernel) == row; });
  return all;
}

}  // namespace

const std::vector<Kernel>& cpu_kernels() {
  static const std::vector<Kernel> kernels = merged();
  return kernels;
}

std::string refuses_isa(Isa isa, Isa limit) {
  if (!cpu_supports(isa)) return "This CPU has no " + std::string(name_of(isa)) + ".";
  if (isa > limit) return "The configuration limits instruction sets to " + std::string(name_of(limit)) + ".";
  return {};
}

}  // namespace fastconv
