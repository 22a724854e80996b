#include "pool_problem.h"

#include "core/steps.h"
#include "dispatch.h"

namespace fastconv {

namespace {

void check_input(const char* what, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 4, "A pool takes a 4-D ", what, ", but got shape ", t.sizes(), ".");
  TORCH_CHECK(t.size(1) > 0 && t.size(2) > 0 && t.size(3) > 0,
              "Only the batch of a pool's input may be empty, but got shape ", t.sizes(), ".");
}

void check_pair(const char* name, at::IntArrayRef values, int64_t least) {
  TORCH_CHECK(values.size() == 2, name, " takes 2 values, but got ", values.size(), ".");
  TORCH_CHECK(values[0] >= least && values[1] >= least, name, " must be at least ", least, ", but is ", values, ".");
}

void set_axis(Axis& a, const PoolGeometry& g, int i) {
  a.window = g.window[i], a.stride = g.stride[i], a.dilation = g.dilation[i];
  a.pad_lo = a.pad_hi = g.padding[i];
  int64_t reach, padded;
  const bool overflow = __builtin_mul_overflow(a.dilation, a.window - 1, &reach) ||
                        __builtin_add_overflow(reach, 1, &reach) ||
                        __builtin_add_overflow(a.in, 2 * (a.pad_lo & ~(int64_t{1} << 62)), &padded);
  constexpr int64_t limit = int64_t{1} << 61;
  TORCH_CHECK(!overflow && reach < limit && a.stride < limit && a.pad_lo < limit, "kernel_size ", a.window, ", stride ",
              a.stride, ", dilation ", a.dilation, " or padding ", a.pad_lo, " is too large: sizes must fit 64 bits.");
  TORCH_CHECK(a.pad_lo <= a.reach() / 2, "pad should be at most half of effective kernel size, but got pad=", a.pad_lo,
              ", kernel_size=", a.window, " and dilation=", a.dilation, ".");
}

void set_geometry(Problem& p, const PoolGeometry& g) {
  check_pair("kernel_size", g.window, 1);
  check_pair("stride", g.stride, 1);
  check_pair("padding", g.padding, 0);
  check_pair("dilation", g.dilation, 1);
  set_axis(p.h, g, 0), set_axis(p.w, g, 1);
  p.h.out = window_output(p.h, g.ceil_mode), p.w.out = window_output(p.w, g.ceil_mode);
  TORCH_CHECK(p.h.out >= 1 && p.w.out >= 1, "The output of pooling ", p.h.in, "x", p.w.in, " with a ", p.h.window, "x",
              p.w.window, " window would be ", p.h.out, "x", p.w.out, ": Output size is too small.");
  drop_unused_steps(p.h), drop_unused_steps(p.w);
  p.ceil_mode = g.ceil_mode;
  p.count_include_pad = g.count_include_pad;
  TORCH_CHECK(!g.divisor_override || *g.divisor_override != 0, "divisor_override must not be zero.");
  p.divisor_override = g.divisor_override.value_or(0);
}

void finish(const Problem& p) {
  const std::string sentence = invalid(p);
  TORCH_CHECK(sentence.empty(), sentence);
}

void set_size(const char* name, Axis& h, Axis& w, int64_t Axis::* side, at::IntArrayRef size) {
  check_pair(name, size, 0);
  h.*side = size[0], w.*side = size[1];
}

Problem from_x(Op op, const at::Tensor& x) {
  check_input("input", x);
  Problem p;
  p.op = op;
  p.dtype = dtype_of(x);
  p.layout = layout_of(x);
  p.n = x.size(0), p.c = p.k = x.size(1), p.h.in = x.size(2), p.w.in = x.size(3);
  return p;
}

Problem from_dy(Op op, const at::Tensor& dy, at::IntArrayRef input_size, bool channels_last) {
  TORCH_CHECK(dy.dim() == 4, "The gradient of a pool takes a 4-D output gradient, but got shape ", dy.sizes(), ".");
  Problem p;
  p.op = op;
  p.pass = Pass::dgrad;
  p.dtype = dtype_of(dy);
  p.layout = channels_last ? Layout::nhwc : Layout::nchw;
  p.n = dy.size(0), p.c = p.k = dy.size(1);
  set_size("input_size", p.h, p.w, &Axis::in, input_size);
  TORCH_CHECK(p.h.in > 0 && p.w.in > 0, "input_size must be positive, but is ", input_size, ".");
  return p;
}

}  // namespace

Problem pool_problem(Op op, const at::Tensor& x, const PoolGeometry& geometry) {
  Problem p = from_x(op, x);
  set_geometry(p, geometry);
  finish(p);
  return p;
}

Problem pool_dgrad_problem(Op op, const at::Tensor& dy, at::IntArrayRef input_size, const PoolGeometry& geometry,
                           bool channels_last) {
  Problem p = from_dy(op, dy, input_size, channels_last);
  set_geometry(p, geometry);
  TORCH_CHECK(p.h.out == dy.size(2) && p.w.out == dy.size(3), "Pooling ", p.h.in, "x", p.w.in, " gives ", p.h.out, "x",
              p.w.out, ", but the gradient has shape ", dy.sizes(), ".");
  finish(p);
  return p;
}

Problem sized_pool_problem(Op op, const at::Tensor& x, at::IntArrayRef output_size) {
  Problem p = from_x(op, x);
  set_size("output_size", p.h, p.w, &Axis::out, output_size);
  finish(p);
  return p;
}

Problem sized_pool_dgrad_problem(Op op, const at::Tensor& dy, at::IntArrayRef input_size, bool channels_last) {
  Problem p = from_dy(op, dy, input_size, channels_last);
  p.h.out = dy.size(2), p.w.out = dy.size(3);
  finish(p);
  return p;
}

void check_index(const Problem& p, const at::Tensor& index) {
  const bool unpool = p.op == Op::unpool2d;
  const at::IntArrayRef sizes = index.sizes();
  const std::array<int64_t, 4> expected{p.n, p.c, unpool ? p.h.in : p.h.out, unpool ? p.w.in : p.w.out};
  TORCH_CHECK(sizes == at::IntArrayRef(expected), "The indices have shape ", sizes, ", but must have shape ",
              at::IntArrayRef(expected), ".");
  TORCH_CHECK(index.scalar_type() == at::kLong || (index.scalar_type() == at::kByte && p.op == Op::maxpool2d),
              "elements in indices should be type int64 but got: ", index.scalar_type());
}

}  // namespace fastconv
