// Products of a warpgroup (wgmma): 64 rows by Columns columns, 32 bytes of depth, operands in shared memory (or A in
// registers), sums in registers. They run by themselves between commit and wait; what they read must stay until then.
//
// A thread of warp w has of its 64 x Columns sums those of rows 16 w + lane / 4 + 8 (i / 2 % 2) and columns
// 8 (i / 4) + 2 (lane % 4) + i % 2 (PTX ISA, "wgmma Register Fragments").
#pragma once

#include "barriers.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int group_rows = 64, group_depth_bytes = 32;

// A matrix in shared memory whose lines are 128 bytes long and swizzled in spans of eight lines, 1024 bytes, at which
// it starts. Along: the depth runs along a line, `stride` bytes from eight lines to the next. Across: rows run along a
// line, `leading` bytes from those in one span to the next, `stride` from eight of depth to the next.
FASTCONV_DEVICE uint64_t matrix_at(const void* start, int leading, int stride) {
  constexpr int leading_at = 16, stride_at = 32, swizzle_at = 62, unit_bits = 4;
#if defined(__CUDACC__)
  const unsigned address = shared_address(start);
#else
  const auto address = static_cast<unsigned>(static_cast<const char*>(start) - shared_base());
#endif
  constexpr unsigned field = 0x3ffff;
  return static_cast<uint64_t>((address & field) >> unit_bits) |
         static_cast<uint64_t>(leading >> unit_bits) << leading_at |
         static_cast<uint64_t>(stride >> unit_bits) << stride_at | uint64_t{1} << swizzle_at;
}

// How an operand lies: the depth along its lines, or across them (16-bit operands alone).
enum class Lies { along, across };

#if defined(__CUDACC__)

// Behind this, products may use registers that the thread has written or read.
FASTCONV_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FASTCONV_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Left>
FASTCONV_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
// The compiler moves no access to these registers over this place.
template <int Count>
FASTCONV_DEVICE void hold(float (&sums)[Count]) {
  FASTCONV_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Lists of 16, 32, 64 and 128 operands, as text and as constraints.
#define FASTCONV_R8(a, b, c, d, e, f, g, h) "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define FASTCONV_R16 FASTCONV_R8(0, 1, 2, 3, 4, 5, 6, 7) ", " FASTCONV_R8(8, 9, 10, 11, 12, 13, 14, 15)
#define FASTCONV_R32 \
  FASTCONV_R16 ", " FASTCONV_R8(16, 17, 18, 19, 20, 21, 22, 23) ", " FASTCONV_R8(24, 25, 26, 27, 28, 29, 30, 31)
#define FASTCONV_R64                                                                                                  \
  FASTCONV_R32                                                                                                        \
  ", " FASTCONV_R8(32, 33, 34, 35, 36, 37, 38, 39) ", " FASTCONV_R8(40, 41, 42, 43, 44, 45, 46, 47) ", " FASTCONV_R8( \
      48, 49, 50, 51, 52, 53, 54, 55) ", " FASTCONV_R8(56, 57, 58, 59, 60, 61, 62, 63)
#define FASTCONV_R128 \
  FASTCONV_R64 ", " FASTCONV_R8(64, 65, 66, 67, 68, 69, 70, 71) ", " FASTCONV_R8(72, 73, 74, 75, 76, 77, 78, 79) ", " FASTCONV_R8(80, 81, 82, 83, 84, 85, 86, 87) ", " FASTCONV_R8(88, 89, 90, 91, 92, 93, 94, 95) ", " FASTCONV_R8(96, 97, 98, 99, 100, 101, 102, 103) ", " FASTCONV_R8(104, 105, 106, 107, 108, 109, 110, 111) ", " FASTCONV_R8(112, 113, 114, 115, 116, 117, 118, 119) ", " FASTCONV_R8(120, 121, 122, 123, 124, 125, 126, 127)
#define FASTCONV_C8(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FASTCONV_C16 FASTCONV_C8(0), FASTCONV_C8(8)
#define FASTCONV_C32 FASTCONV_C16, FASTCONV_C8(16), FASTCONV_C8(24)
#define FASTCONV_C64 FASTCONV_C32, FASTCONV_C8(32), FASTCONV_C8(40), FASTCONV_C8(48), FASTCONV_C8(56)
#define FASTCONV_C128                                                                                                  \
  FASTCONV_C64, FASTCONV_C8(64), FASTCONV_C8(72), FASTCONV_C8(80), FASTCONV_C8(88), FASTCONV_C8(96), FASTCONV_C8(104), \
      FASTCONV_C8(112), FASTCONV_C8(120)

template <class T, int Columns>
struct GroupProduct;

// d = a b, or d += a b. A, B: operand numbers behind the sums.
#define FASTCONV_WGMMA16(T, name, Columns, R, C, i0, i1, i2, i3, i4, i5, i6)                                           \
  template <>                                                                                                          \
  struct GroupProduct<T, Columns> {                                                                                    \
    template <Lies A, Lies B>                                                                                          \
    FASTCONV_DEVICE static void multiply(float (&d)[Columns / 2], uint64_t a, uint64_t b, bool adds) {                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #Columns         \
                   "k16.f32." name "." name " {" R "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"            \
                   : C                                                                                                 \
                   : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(static_cast<int>(A)), "n"(static_cast<int>(B))); \
    }                                                                                                                  \
    template <Lies B>                                                                                                  \
    FASTCONV_DEVICE static void multiply(float (&d)[Columns / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #Columns         \
                   "k16.f32." name "." name " {" R "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4                \
                   ", p, 1, 1, %" #i6 ";\n}"                                                                           \
                   : C                                                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)),                  \
                     "n"(static_cast<int>(B)));                                                                        \
    }                                                                                                                  \
  };
#define FASTCONV_WGMMA8(Columns, R, C, i0, i1, i2, i3, i4, i5)                                                     \
  template <>                                                                                                      \
  struct GroupProduct<float, Columns> {                                                                            \
    template <Lies A, Lies B>                                                                                      \
    FASTCONV_DEVICE static void multiply(float (&d)[Columns / 2], uint64_t a, uint64_t b, bool adds) {             \
      static_assert(A == Lies::along && B == Lies::along, "wgmma transposes 16-bit operands alone.");              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #Columns     \
                   "k8.f32.tf32.tf32 {" R "}, %" #i0 ", %" #i1 ", p, 1, 1;\n}"                                     \
                   : C                                                                                             \
                   : "l"(a), "l"(b), "r"(static_cast<int>(adds)));                                                 \
    }                                                                                                              \
    template <Lies B>                                                                                              \
    FASTCONV_DEVICE static void multiply(float (&d)[Columns / 2], const uint32_t (&a)[4], uint64_t b, bool adds) { \
      static_assert(B == Lies::along, "wgmma transposes 16-bit operands alone.");                                  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #Columns     \
                   "k8.f32.tf32.tf32 {" R "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1;\n}"     \
                   : C                                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)));             \
    }                                                                                                              \
  };
FASTCONV_WGMMA16(f16, "f16", 32, FASTCONV_R16, FASTCONV_C16, 16, 17, 18, 19, 20, 21, 22)
FASTCONV_WGMMA16(f16, "f16", 64, FASTCONV_R32, FASTCONV_C32, 32, 33, 34, 35, 36, 37, 38)
FASTCONV_WGMMA16(f16, "f16", 128, FASTCONV_R64, FASTCONV_C64, 64, 65, 66, 67, 68, 69, 70)
FASTCONV_WGMMA16(f16, "f16", 256, FASTCONV_R128, FASTCONV_C128, 128, 129, 130, 131, 132, 133, 134)
FASTCONV_WGMMA16(bf16, "bf16", 32, FASTCONV_R16, FASTCONV_C16, 16, 17, 18, 19, 20, 21, 22)
FASTCONV_WGMMA16(bf16, "bf16", 64, FASTCONV_R32, FASTCONV_C32, 32, 33, 34, 35, 36, 37, 38)
FASTCONV_WGMMA16(bf16, "bf16", 128, FASTCONV_R64, FASTCONV_C64, 64, 65, 66, 67, 68, 69, 70)
FASTCONV_WGMMA16(bf16, "bf16", 256, FASTCONV_R128, FASTCONV_C128, 128, 129, 130, 131, 132, 133, 134)
FASTCONV_WGMMA8(32, FASTCONV_R16, FASTCONV_C16, 16, 17, 18, 19, 20, 21)
FASTCONV_WGMMA8(64, FASTCONV_R32, FASTCONV_C32, 32, 33, 34, 35, 36, 37)
FASTCONV_WGMMA8(128, FASTCONV_R64, FASTCONV_C64, 64, 65, 66, 67, 68, 69)
FASTCONV_WGMMA8(256, FASTCONV_R128, FASTCONV_C128, 128, 129, 130, 131, 132, 133)
#undef FASTCONV_WGMMA16
#undef FASTCONV_WGMMA8
#undef FASTCONV_R8
#undef FASTCONV_R16
#undef FASTCONV_R32
#undef FASTCONV_R64
#undef FASTCONV_R128
#undef FASTCONV_C8
#undef FASTCONV_C16
#undef FASTCONV_C32
#undef FASTCONV_C64
#undef FASTCONV_C128

#else

inline void fence_products(Site site = Site::here()) { fence_multiplies(site); }
inline void commit_products(Site site = Site::here()) { commit_multiplies(site); }
template <int Left>
void wait_products(Site site = Site::here()) {
  wait_for_multiplies(Left, site);
}
template <int Count>
void hold(float (&)[Count]) {}

template <class T, int Columns>
struct GroupProduct {
  static constexpr Operand operand = std::is_same_v<T, f16>    ? Operand::f16
                                     : std::is_same_v<T, bf16> ? Operand::bf16
                                                               : Operand::tf32;
  template <Lies A, Lies B>
  static void multiply(float (&d)[Columns / 2], uint64_t a, uint64_t b, bool adds, Site site = Site::here()) {
    multiply_group({operand, Columns, a, b, false, A == Lies::across, B == Lies::across, adds}, d, nullptr, site);
  }
  template <Lies B>
  static void multiply(float (&d)[Columns / 2], const uint32_t (&a)[4], uint64_t b, bool adds,
                       Site site = Site::here()) {
    multiply_group({operand, Columns, 0, b, true, false, B == Lies::across, adds}, d, a, site);
  }
};

#endif

}  // namespace fastconv::FASTCONV_GPU
