// The vocabulary every other file uses: dtypes, layouts, passes, operations, activations, and their names.
// An X-macro list is the only place a name is spelled; parsing, printing and the Python enums all expand it.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace fastconv {

#define FASTCONV_DTYPES(X) X(f64) X(f32) X(tf32) X(f16) X(bf16) X(other)
#define FASTCONV_LAYOUTS(X) X(nchw) X(nhwc)
#define FASTCONV_PASSES(X) X(fprop) X(dgrad) X(wgrad)
#define FASTCONV_POOL_OPS(X) X(maxpool2d) X(avgpool2d) X(adaptivemax2d) X(adaptiveavg2d) X(unpool2d)
#define FASTCONV_MAP_OPS(X) X(batchnorm2d) X(lrn2d) X(map2d) X(reorder2d) X(bilinear2d) X(nearest2d)
#define FASTCONV_ROW_OPS(X) X(layernorm2d) X(softmax2d) X(copy2d) X(attention)
#define FASTCONV_OPS(X) X(conv2d) FASTCONV_POOL_OPS(X) FASTCONV_MAP_OPS(X) FASTCONV_ROW_OPS(X)
#define FASTCONV_ACTIVATIONS(X) \
  X(none) X(relu) X(relu6) X(leaky_relu) X(silu) X(hardswish) X(hardsigmoid) X(sigmoid) X(gelu) X(gelutanh)
#define FASTCONV_INDICES(X) X(none) X(u8) X(i64)
#define FASTCONV_ISAS(X) X(scalar) X(neon) X(avx2) X(avx512)

#define FASTCONV_ENUM_VALUE(name) name,
#define FASTCONV_ENUM_NAME(name) std::string_view(#name),
#define FASTCONV_ENUM(Type, LIST)                                                                      \
  enum class Type : int32_t { LIST(FASTCONV_ENUM_VALUE) };                                             \
  inline constexpr std::array Type##_names{LIST(FASTCONV_ENUM_NAME)};                                  \
  constexpr const auto& names_of(Type*) { return Type##_names; }                                       \
  constexpr std::string_view name_of(Type value) { return Type##_names[static_cast<int32_t>(value)]; } \
  constexpr std::optional<Type> Type##_from(std::string_view name) {                                   \
    for (size_t i = 0; i < Type##_names.size(); ++i)                                                   \
      if (Type##_names[i] == name) return static_cast<Type>(i);                                        \
    return std::nullopt;                                                                               \
  }

FASTCONV_ENUM(Dtype, FASTCONV_DTYPES)
FASTCONV_ENUM(Layout, FASTCONV_LAYOUTS)
FASTCONV_ENUM(Pass, FASTCONV_PASSES)
FASTCONV_ENUM(Op, FASTCONV_OPS)
FASTCONV_ENUM(Activation, FASTCONV_ACTIVATIONS)
FASTCONV_ENUM(Index, FASTCONV_INDICES)
FASTCONV_ENUM(Isa, FASTCONV_ISAS)

// 16-bit storage types; arithmetic always happens in float (simd/convert.h), rounding once at the store.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(bf16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &wide, sizeof out);
  return out;
}

// Round to nearest even; a NaN stays a quiet NaN.
inline bf16 to_bf16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  if (v != v) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

#if defined(__aarch64__)
using compiler_half = __fp16;
#else
using compiler_half = _Float16;
#endif
inline float to_float(f16 v) { return static_cast<float>(__builtin_bit_cast(compiler_half, v.bits)); }
inline f16 to_f16(float v) { return {__builtin_bit_cast(uint16_t, static_cast<compiler_half>(v))}; }

constexpr int64_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return 8;
    case Dtype::f32:
    case Dtype::tf32:
      return 4;
    case Dtype::f16:
    case Dtype::bf16:
      return 2;
    case Dtype::other:
      return 0;
  }
  return 0;
}

}  // namespace fastconv
