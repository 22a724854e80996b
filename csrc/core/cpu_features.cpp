#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastconv {

bool cpu_supports(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return cpu_supports(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::neon:
      return false;
#elif defined(__aarch64__)
    case Isa::neon:
      return true;
    case Isa::avx2:
    case Isa::avx512:
      return false;
#else
    default:
      return false;
#endif
  }
  return false;
}

bool cpu_multiplies_pairs() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool cpu_has_wide_pipes() {
#if defined(__x86_64__)
  if (!cpu_supports(Isa::avx512)) return false;
  if (__builtin_cpu_is("intel")) return true;
  // The family of a processor that AMD made: the base family, 15, and the extended one (AMD64 manual 3, CPUID 1).
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned zen5 = 0x1a;
  return (eax >> 8 & 0xf) + (eax >> 20 & 0xff) >= zen5;
#else
  return false;
#endif
}

}  // namespace fastconv
