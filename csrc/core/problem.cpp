#include "problem.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "steps.h"

namespace fastconv {

namespace {

template <class T>
void mix(size_t& seed, const T& value) {
  seed = (seed ^ std::hash<T>{}(value)) * 0x9e3779b97f4a7c15ull;
  seed ^= seed >> 29;
}

void mix(size_t& seed, const Axis& axis) {
  std::apply([&](const auto&... field) { (mix(seed, field), ...); }, axis.fields());
}

void mix(size_t& seed, const Epilogue& epilogue) {
  std::apply([&](const auto&... field) { (mix(seed, field), ...); }, epilogue.fields());
}

// True when the product of the factors overflows 63 bits.
bool overflows(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product)) return true;
  return false;
}

// Kernels add and multiply these freely in 64 bits.
constexpr int64_t step_limit = int64_t{1} << 31;  // of window, stride, padding and dilation
constexpr int64_t size_limit = int64_t{1} << 60;

std::string check_axis(const Axis& a, const char* axis, bool sized_output) {
  const std::string where = std::string(" along ") + axis;
  if (std::max(a.in, a.out) >= size_limit)
    return "A size" + where + " is " + std::to_string(std::max(a.in, a.out)) + " and must be less than 2^60.";
  for (const auto& [name, value] : {std::pair{"window", a.window},
                                    {"stride", a.stride},
                                    {"dilation", a.dilation},
                                    {"padding", a.pad_lo},
                                    {"padding", a.pad_hi}})
    if (value >= step_limit || value <= -step_limit)
      return std::string(name) + where + " is " + std::to_string(value) + " and too large: it must be less than 2^31.";
  if (a.in < 0) return "The input size" + where + " is " + std::to_string(a.in) + " and must not be negative.";
  if (sized_output) return {};
  if (a.window <= 0) return "The window" + where + " is " + std::to_string(a.window) + " and must be positive.";
  if (a.stride <= 0) return "stride" + where + " is " + std::to_string(a.stride) + " and must be positive.";
  if (a.dilation <= 0) return "dilation" + where + " is " + std::to_string(a.dilation) + " and must be positive.";
  return {};
}

}  // namespace

size_t hash_value(const Problem& problem) {
  size_t seed = 0;
  std::apply([&](const auto&... field) { (mix(seed, field), ...); }, problem.fields());
  return seed;
}

double Problem::flops() const {
  const double outputs = static_cast<double>(n) * (is_conv() ? k : c) * out_pixels();
  if (is_conv()) return 2.0 * outputs * channels_per_group() * taps();
  if (op == Op::reorder2d || op == Op::nearest2d || op == Op::copy2d) return 0;
  if (is_attention()) return 2.0 * n * out_pixels() * h.window * (c + k);
  if (op == Op::map2d)
    return outputs * (int{scale} + int{epilogue.residual} + int{epilogue.activation != Activation::none});
  if (op == Op::bilinear2d) return 6.0 * outputs;                          // three interpolations of two operations
  if (op == Op::layernorm2d || op == Op::softmax2d) return 5.0 * outputs;  // two sums, and an element's own
  if (is_lrn()) return 2.0 * outputs * std::min(size, c) * (pass == Pass::dgrad ? 2 : 1);
  if (is_norm()) return 2.0 * outputs * ((training ? 2 : 1) + (pass == Pass::dgrad ? 1 : 0));
  if (op == Op::adaptivemax2d || op == Op::adaptiveavg2d) return std::max(outputs, static_cast<double>(x_elements()));
  return outputs * taps();
}

double Problem::bytes() const {
  const double size = dtype_bytes(dtype);
  const double x = x_elements(), y = static_cast<double>(n) * (is_conv() || is_attention() ? k : c) * out_pixels();
  const double filter = is_conv()        ? static_cast<double>(w_elements())
                        : is_attention() ? static_cast<double>(n) * h.window * (c + k)  // keys and values
                                         : 0;
  const double written = pass == Pass::dgrad ? x : y;
  const double reread = is_norm() && pass == Pass::dgrad ? x : 0;  // beside dy; dx is written
  const double extra = (epilogue.residual ? written : 0) + (epilogue.bias ? written_channels() : 0) +
                       (scale ? static_cast<double>(n) * c : 0);
  const double index_bytes = index == Index::none ? 0 : y * (index == Index::u8 ? 1 : 8);
  return size * (x + y + reread + filter + extra) + index_bytes;
}

int64_t window_output(const Axis& axis, bool ceil_mode) {
  const int64_t span = axis.in + axis.pad_lo + axis.pad_hi - axis.reach() + (ceil_mode ? axis.stride - 1 : 0);
  int64_t out = span / axis.stride + 1;
  if (span % axis.stride < 0) --out;  // the quotient is rounded down; <= 0: caller reports
  if (ceil_mode && (out - 1) * axis.stride >= axis.in + axis.pad_lo) --out;
  return out;
}

void drop_unused_steps(Axis& axis) {
  const int64_t most = std::max(axis.in + axis.pad_lo + axis.pad_hi, int64_t{1});
  if (axis.out == 1) axis.stride = std::min(axis.stride, most);
  if (axis.window == 1) axis.dilation = std::min(axis.dilation, most);
}

std::string invalid(const Problem& p) {
  const bool sized = p.names_output();
  if (p.n < 0 || p.c < 0) return "Batch and channels must not be negative.";
  if (auto sentence = check_axis(p.h, "H", sized); !sentence.empty()) return sentence;
  if (auto sentence = check_axis(p.w, "W", sized); !sentence.empty()) return sentence;
  if (p.is_attention() && (p.w.in != 1 || p.w.window != 1))
    return "Queries and keys lie along H, but W is " + std::to_string(p.w.in) + " and s " + std::to_string(p.w.window) +
           ".";
  if (p.is_conv() || p.is_attention()) {
    if (p.groups <= 0) return "groups is " + std::to_string(p.groups) + " and must be positive.";
    if (p.c % p.groups)
      return "C=" + std::to_string(p.c) + " is not divisible by groups=" + std::to_string(p.groups) + ".";
    if (p.k % p.groups)
      return "K=" + std::to_string(p.k) + " is not divisible by groups=" + std::to_string(p.groups) + ".";
  }
  if (p.is_lrn() && (p.size < 1 || p.size >= step_limit))
    return "size is " + std::to_string(p.size) + " and must be positive and less than 2^31.";
  const auto& e = p.epilogue;
  if (e.out_channels && (e.out_offset < 0 || e.out_offset + p.written_channels() > e.out_channels))
    return "The output slice starts at channel " + std::to_string(e.out_offset) + " and holds " +
           std::to_string(p.written_channels()) + " channels, but the buffer has " + std::to_string(e.out_channels) +
           ".";
  if (p.in_channels && (p.in_offset < 0 || p.in_offset + p.c > p.in_channels))
    return "The input slice starts at channel " + std::to_string(p.in_offset) + " and holds " + std::to_string(p.c) +
           " channels, but the buffer has " + std::to_string(p.in_channels) + ".";
  if (p.packed && (!p.is_conv() || p.pass == Pass::wgrad))
    return "Only a convolution's fprop and dgrad take a packed filter.";
  if (p.h.out < 0 || p.w.out < 0)
    return "The output would be empty: " + std::to_string(p.h.out) + "x" + std::to_string(p.w.out) + ".";
  const int64_t wide = std::max(p.buffer_channels(), int64_t{8});
  if (overflows({p.n, std::max(p.source_channels(), int64_t{8}), p.h.in, p.w.in, 8}) ||
      overflows({p.n, wide, p.h.out, p.w.out, 8}) || overflows({p.k, p.c, p.h.window, p.w.window, 8}))
    return "A tensor of this problem has more than 2^63 bytes.";
  return {};
}

}  // namespace fastconv
