// Tensor cores of sm_80 and up, a warp at a time: ldmatrix and mma.sync.
//
// Operands are taken 32 bytes of depth at a time, which is 16 f16 or bf16 (m16n8k16) and 8 tf32 (m16n8k8): the
// fragments of all three lie in the same bytes of the same lanes, so a kernel is one source for them. With g = lane / 4
// and t = lane % 4, register i of A holds 4 bytes of row g + 8 (i % 2) at byte 4 t + 16 (i / 2); register i of B those
// of column g at byte 4 t + 16 i; accumulator i is row g + 8 (i / 2), column 2 t + i % 2 (PTX ISA, "Matrix Fragments").
#pragma once

#include "shared.h"

namespace fastconv::FASTCONV_GPU {

inline constexpr int mma_rows = 16, mma_columns = 8, mma_depth_bytes = 32;

// d += a · b, by the instruction for operands stored as T; float storage is multiplied as tf32.
template <class T>
struct MatrixOf;

#if defined(__CUDACC__)

// Four 8x8 matrices of 2-byte elements: lane l gives the address of 16 bytes, row l % 8 of matrix l / 8, and gets bytes
// 4 (l % 4).. of row l / 4 of each.
template <class T>
FASTCONV_DEVICE void load_matrices(uint32_t (&out)[4], Shared<T> row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row.data));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}
// The same, each matrix transposed: lane l gets elements 2 (l % 4) and one more of column l / 4.
template <class T>
FASTCONV_DEVICE void load_transposed(uint32_t (&out)[4], Shared<T> row) {
  static_assert(sizeof(T) == 2);
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row.data));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

#define FASTCONV_MMA(T, instruction)                                                               \
  template <>                                                                                      \
  struct MatrixOf<T> {                                                                             \
    FASTCONV_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t b0, \
                                         const uint32_t b1) {                                      \
      asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"  \
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                \
    }                                                                                              \
  };
FASTCONV_MMA(f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
FASTCONV_MMA(bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
FASTCONV_MMA(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FASTCONV_MMA

#else

namespace detail {

inline constexpr int matrix_rows = 8;  // of 16 bytes, loaded by ldmatrix

struct LoadOperand {
  const char* row;
  uint32_t* out;
};

template <bool Transposed>
void load_matrices(void* const operands[warp_lanes], uint32_t) {
  for (int lane = 0; lane < warp_lanes; ++lane)
    for (int i = 0; i < 4; ++i) {
      auto row = [&](int r) { return static_cast<const LoadOperand*>(operands[matrix_rows * i + r])->row; };
      uint32_t& out = static_cast<LoadOperand*>(operands[lane])->out[i];
      if constexpr (Transposed) {
        for (int half = 0; half < 2; ++half)
          std::memcpy(reinterpret_cast<char*>(&out) + 2 * half, row(2 * (lane % 4) + half) + 2 * (lane / 4), 2);
      } else {
        std::memcpy(&out, row(lane / 4) + 4 * (lane % 4), sizeof out);
      }
    }
}

struct MmaOperand {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Element `place` of a register's 4 bytes. What tf32 does not hold is not read.
template <class T>
float element(uint32_t bits, int place) {
  if constexpr (sizeof(T) == sizeof(float)) {
    bits &= ~tf32_dropped;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return widen(T{static_cast<uint16_t>(bits >> (16 * place))});
  }
}

template <class T>
void multiply(void* const operands[warp_lanes], uint32_t) {
  constexpr int per_register = 4 / sizeof(T), depth = mma_depth_bytes / sizeof(T), half = depth / 2;
  float a[mma_rows][depth], b[mma_columns][depth];
  auto lane_of = [&](int l) { return static_cast<const MmaOperand*>(operands[l]); };
  for (int l = 0; l < warp_lanes; ++l)
    for (int e = 0; e < per_register; ++e) {
      const int group = l / 4, at = l % 4 * per_register + e;
      for (int i = 0; i < 4; ++i) a[group + 8 * (i % 2)][at + half * (i / 2)] = element<T>(lane_of(l)->a[i], e);
      for (int i = 0; i < 2; ++i) b[group][at + half * i] = element<T>(lane_of(l)->b[i], e);
    }
  for (int l = 0; l < warp_lanes; ++l)
    for (int i = 0; i < 4; ++i) {
      const float *row = a[l / 4 + 8 * (i / 2)], *column = b[l % 4 * 2 + i % 2];
      double sum = 0;
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(row[k]) * static_cast<double>(column[k]);
      float& d = lane_of(l)->d[i];
      d = static_cast<float>(static_cast<double>(d) + sum);
    }
}

}  // namespace detail

template <class T>
void load_matrices(uint32_t (&out)[4], Shared<T> row, Site site = Site::here()) {
  check_shared(row.data, vector_bytes, /*write=*/false);
  detail::LoadOperand operand{reinterpret_cast<const char*>(row.data), out};
  meet(0xffffffffu, "ldmatrix", &operand, detail::load_matrices<false>, site);
}
template <class T>
void load_transposed(uint32_t (&out)[4], Shared<T> row, Site site = Site::here()) {
  static_assert(sizeof(T) == 2);
  check_shared(row.data, vector_bytes, /*write=*/false);
  detail::LoadOperand operand{reinterpret_cast<const char*>(row.data), out};
  meet(0xffffffffu, "ldmatrix.trans", &operand, detail::load_matrices<true>, site);
}
template <class T>
struct MatrixOf {
  static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1,
                       Site site = Site::here()) {
    detail::MmaOperand operand{d, a, {b0, b1}};
    meet(0xffffffffu, "mma.sync", &operand, detail::multiply<T>, site);
  }
};

#endif

}  // namespace fastconv::FASTCONV_GPU
