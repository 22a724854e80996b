#include "conv_problem.h"

#include "core/steps.h"
#include "dispatch.h"

namespace fastconv {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_device_and_dtype(const at::Tensor& first, const char* first_name, const at::Tensor& second,
                            const char* second_name) {
  TORCH_CHECK(first.device() == second.device(), "Expected all tensors to be on the same device, but ", first_name,
              " is on ", first.device(), " and ", second_name, " is on ", second.device(), ".");
  TORCH_CHECK(first.scalar_type() == second.scalar_type(), first_name, " has dtype ", first.scalar_type(), " but ",
              second_name, " has dtype ", second.scalar_type(), "; they must be the same.");
}

void set_geometry(Problem& p, const ConvGeometry& g) {
  TORCH_CHECK(g.stride.size() == 2 && g.padding.size() == 4 && g.dilation.size() == 2,
              "stride and dilation take 2 values and padding 4, but got ", g.stride.size(), ", ", g.dilation.size(),
              " and ", g.padding.size(), ".");
  p.h.stride = g.stride[0], p.w.stride = g.stride[1];
  p.h.dilation = g.dilation[0], p.w.dilation = g.dilation[1];
  p.h.pad_lo = g.padding[0], p.h.pad_hi = g.padding[1];
  p.w.pad_lo = g.padding[2], p.w.pad_hi = g.padding[3];
  p.groups = g.groups;
  TORCH_CHECK(p.groups > 0, "groups must be positive, but is ", p.groups, ".");
  TORCH_CHECK(p.h.stride > 0 && p.w.stride > 0, "stride must be positive, but is (", p.h.stride, ", ", p.w.stride,
              ").");
  TORCH_CHECK(p.h.dilation > 0 && p.w.dilation > 0, "dilation must be positive, but is (", p.h.dilation, ", ",
              p.w.dilation, ").");
  TORCH_CHECK(p.h.pad_lo >= 0 && p.w.pad_lo >= 0, "padding must not be negative, but is (", p.h.pad_lo, ", ",
              p.w.pad_lo, ").");
}

void set_filter(Problem& p, at::IntArrayRef sizes) {
  p.k = sizes[0];
  p.h.window = sizes[2], p.w.window = sizes[3];
  TORCH_CHECK(p.k % p.groups == 0, "groups=", p.groups, " must divide the ", p.k, " output channels of weight ", sizes,
              ".");
}

void set_bias(Problem& p, const OptionalTensor& bias, const at::Tensor& like) {
  if (!bias || !bias->defined()) return;
  check_device_and_dtype(like, "input", *bias, "bias");
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.written_channels(), "bias must have shape [", p.written_channels(),
              "], one value per output channel, but has shape ", bias->sizes(), ".");
  p.epilogue.bias = true;
}

// (dilation * (window - 1) + 1) and the padded size, refusing what does not fit 63 bits.
void check_reach(const Axis& a, const char* axis) {
  int64_t reach, padded;
  const bool overflow = __builtin_mul_overflow(a.dilation, a.window - 1, &reach) ||
                        __builtin_add_overflow(reach, 1, &reach) || __builtin_add_overflow(a.in, a.pad_lo, &padded) ||
                        __builtin_add_overflow(padded, a.pad_hi, &padded);
  TORCH_CHECK(!overflow && reach < (int64_t{1} << 61) && padded < (int64_t{1} << 61), "dilation ", a.dilation,
              " or padding ", a.pad_lo, " along ", axis, " is too large: sizes must fit 64 bits.");
}

void set_output(Axis& a, const char* axis) {
  check_reach(a, axis);
  const int64_t padded = a.in + a.pad_lo + a.pad_hi;
  TORCH_CHECK(a.window > 0, "weight's size along ", axis, " must be positive, but is ", a.window, ".");
  TORCH_CHECK(padded >= a.reach(), "The kernel reaches over ", a.reach(), " along ", axis, " (size ", a.window,
              ", dilation ", a.dilation, "), but the padded input has only ", padded, ".");
  a.out = window_output(a, false);
  drop_unused_steps(a);
}

bool suggests_channels_last(const at::Tensor& t) {
  return t.dim() == 4 && t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

// What suggests_channels_last answers after t.contiguous(channels_last).
bool suggests_when_dense(const at::Tensor& t) {
  if (t.is_contiguous(at::MemoryFormat::ChannelsLast)) return suggests_channels_last(t);
  return t.sym_size(1) != 1 || t.sym_size(2) != 1 || t.sym_size(3) != 1;
}

void check_filter(const Problem& p, const at::Tensor& w) {
  TORCH_CHECK(p.k > 0 && w.size(1) > 0, "weight must have at least one input and one output channel, but has shape ",
              w.sizes(), ".");
}

void finish(const Problem& p) {
  const std::string sentence = invalid(p);
  TORCH_CHECK(sentence.empty(), sentence);
}

}  // namespace

Layout result_layout(const at::Tensor& input, const at::Tensor& w) {
  if (!suggests_channels_last(input) && !suggests_channels_last(w)) return Layout::nchw;
  return suggests_when_dense(input) || suggests_when_dense(w) ? Layout::nhwc : Layout::nchw;
}

Problem fprop_problem(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias,
                      const OptionalTensor& residual, const ConvGeometry& geometry) {
  TORCH_CHECK(x.dim() == 4 && w.dim() == 4, "conv2d takes a 4-D input and weight, but got input of shape ", x.sizes(),
              " and weight of shape ", w.sizes(), ".");
  check_device_and_dtype(x, "input", w, "weight");
  Problem p;
  p.dtype = dtype_of(x);
  set_geometry(p, geometry);
  p.n = x.size(0), p.c = x.size(1), p.h.in = x.size(2), p.w.in = x.size(3);
  set_filter(p, w.sizes());
  check_filter(p, w);
  TORCH_CHECK(w.size(1) * p.groups == p.c, "weight of shape ", w.sizes(), " with groups=", p.groups, " takes ",
              w.size(1) * p.groups, " input channels, but input of shape ", x.sizes(), " has ", p.c, ".");
  set_bias(p, bias, x);
  set_output(p.h, "H"), set_output(p.w, "W");
  if (residual && residual->defined()) {
    check_device_and_dtype(x, "input", *residual, "residual");
    TORCH_CHECK(residual->sizes() == at::IntArrayRef({p.n, p.k, p.h.out, p.w.out}), "residual has shape ",
                residual->sizes(), " but the convolution's output has shape [", p.n, ", ", p.k, ", ", p.h.out, ", ",
                p.w.out, "].");
    p.epilogue.residual = true;
  }
  p.layout = result_layout(x, w);
  finish(p);
  return p;
}

Problem dgrad_problem(const at::Tensor& dy, const at::Tensor& w, const OptionalTensor& bias, at::IntArrayRef input_size,
                      const ConvGeometry& geometry) {
  TORCH_CHECK(dy.dim() == 4 && w.dim() == 4 && input_size.size() == 2,
              "The input gradient takes a 4-D output gradient and weight, but got shapes ", dy.sizes(), " and ",
              w.sizes(), ".");
  check_device_and_dtype(dy, "input", w, "weight");
  Problem p;
  p.pass = Pass::dgrad;
  p.dtype = dtype_of(dy);
  set_geometry(p, geometry);
  p.n = dy.size(0), p.c = w.size(1) * p.groups, p.h.in = input_size[0], p.w.in = input_size[1];
  set_filter(p, w.sizes());
  check_filter(p, w);
  TORCH_CHECK(p.k == dy.size(1), "weight of shape ", w.sizes(), " takes ", p.k, " channels, but input of shape ",
              dy.sizes(), " has ", dy.size(1), ".");
  set_bias(p, bias, dy);
  TORCH_CHECK(p.h.in > 0 && p.w.in > 0, "The output would have size ", p.h.in, "x", p.w.in, ", which is too small.");
  set_output(p.h, "H"), set_output(p.w, "W");
  TORCH_CHECK(p.h.out == dy.size(2) && p.w.out == dy.size(3), "A convolution of a ", p.h.in, "x", p.w.in,
              " input gives ", p.h.out, "x", p.w.out, ", but the gradient has shape ", dy.sizes(), ".");
  p.layout = result_layout(dy, w);
  finish(p);
  return p;
}

Problem wgrad_problem(const at::Tensor& dy, const at::Tensor& x, at::IntArrayRef kernel_size,
                      const ConvGeometry& geometry) {
  TORCH_CHECK(dy.dim() == 4 && x.dim() == 4 && kernel_size.size() == 2,
              "The weight gradient takes a 4-D output gradient and input, but got shapes ", dy.sizes(), " and ",
              x.sizes(), ".");
  check_device_and_dtype(dy, "the output gradient", x, "input");
  Problem p;
  p.pass = Pass::wgrad;
  p.dtype = dtype_of(dy);
  set_geometry(p, geometry);
  p.n = x.size(0), p.c = x.size(1), p.h.in = x.size(2), p.w.in = x.size(3);
  TORCH_CHECK(p.c % p.groups == 0, "groups=", p.groups, " must divide the ", p.c, " input channels.");
  set_filter(p, {dy.size(1), p.c / p.groups, kernel_size[0], kernel_size[1]});
  set_output(p.h, "H"), set_output(p.w, "W");
  TORCH_CHECK(p.n == dy.size(0) && p.h.out == dy.size(2) && p.w.out == dy.size(3), "A convolution of input ", x.sizes(),
              " gives ", p.h.out, "x", p.w.out, ", but the gradient has shape ", dy.sizes(), ".");
  p.layout = suggests_channels_last(x) || suggests_channels_last(dy) ? Layout::nhwc : Layout::nchw;
  finish(p);
  return p;
}

}  // namespace fastconv
