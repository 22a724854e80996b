// Picks the burst of one instruction set.
#include "roofline.h"

#include <stdexcept>
#include <string>

#include "core/cpu_features.h"

namespace fastconv {

#define FASTCONV_DECLARE_BURST(isa)         \
  namespace isa {                           \
  double multiply_add_burst(bool, int64_t); \
  }
FASTCONV_DECLARE_BURST(scalar)
#if defined(FASTCONV_HAS_AVX2)
FASTCONV_DECLARE_BURST(avx2)
#endif
#if defined(FASTCONV_HAS_AVX512)
FASTCONV_DECLARE_BURST(avx512)
#endif
#if defined(FASTCONV_HAS_NEON)
FASTCONV_DECLARE_BURST(neon)
#endif

double multiply_add_burst(Isa isa, bool wide, int64_t rounds) {
  if (cpu_supports(isa)) {
    if (isa == Isa::scalar) return scalar::multiply_add_burst(wide, rounds);
#if defined(FASTCONV_HAS_AVX2)
    if (isa == Isa::avx2) return avx2::multiply_add_burst(wide, rounds);
#endif
#if defined(FASTCONV_HAS_AVX512)
    if (isa == Isa::avx512) return avx512::multiply_add_burst(wide, rounds);
#endif
#if defined(FASTCONV_HAS_NEON)
    if (isa == Isa::neon) return neon::multiply_add_burst(wide, rounds);
#endif
  }
  throw std::invalid_argument("This CPU or this build has no " + std::string(name_of(isa)) + ".");
}

}  // namespace fastconv
