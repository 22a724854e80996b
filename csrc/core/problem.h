// One problem: everything that decides which kernel may run and how. It prints to one string and parses back
// without loss (problem_text.cpp); the string is the test id, the benchmark id and the tuning key.
//
//   [op_]n8c64h56w56_k64r3s3[_u2][_p1][_d2][_g8]_f32nhwc[_dgrad][_bias][_res][_relu][_in0of96][_out64of256][_packed]
//
// u is the stride, p the padding ("p1x2" per axis, "p0:1x2:3" per side), d the dilation, g the groups.
// Pools drop k; adaptive pools and unpool2d name the output size with o7x7; "ceil", "nopad" (divisor leaves the
// padding out), "div5" (divisor override), "indexu8"/"indexi64" (index kind) are pool words.
//
// batchnorm2d_n8c64h56w56_f32nhwc[_train][_dgrad]: "train" takes mean and variance from the batch. Its dgrad writes dx
// and the gradients of weight and bias, its wgrad those two alone.
//
// lrn2d_n8c96h55w55_size5_f32nhwc[_dgrad]: local response norm over windows of 5 channels.
//
// "packed": the filter comes in the form that the kernel packs it into, prepared apart (kernel.h).
//
// map2d_n8c96h56w56_f32nhwc[_scale][_res][_relu]: x, times a factor for each image and channel, plus the residual,
// through the activation. reorder2d_n8c3h224w224_f32nchw: x in the layout named, written in the other one.
// bilinear2d_n8c21h28w28_o224x224_f32nhwc[_corners]: interpolated to 224x224; "corners" aligns the corner pixels.
// nearest2d_n8c256h28w28_o56x56_f32nhwc: each pixel of 56x56 is the one of 28x28 that it lies in.
//
// layernorm2d_n8c96h56w56_f32nhwc, softmax2d_n96c49h49w1_f32nhwc: every pixel over its channels.
// copy2d_n8c3h5w7_f32nhwc: dense, from an x of any strides. attention_n8c768h197w1_k768r197s1_g12_f32nhwc[_mask]:
// softmax(q·kᵀ + mask)·v for 12 heads of 197 queries and 197 keys; c: channels of all heads' queries, and of their
// keys; k: of their values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>

#include "types.h"

namespace fastconv {

struct Axis {
  int64_t in = 1;      // H or W
  int64_t window = 1;  // R or S
  int64_t stride = 1;
  int64_t pad_lo = 0;  // top or left
  int64_t pad_hi = 0;  // bottom or right; negative when a transposed convolution crops
  int64_t dilation = 1;
  int64_t out = 1;  // P or Q

  int64_t reach() const { return dilation * (window - 1) + 1; }

  auto fields() const { return std::tie(in, window, stride, pad_lo, pad_hi, dilation, out); }
  bool operator==(const Axis& other) const { return fields() == other.fields(); }
};

struct Epilogue {
  bool bias = false;
  bool residual = false;  // added before the activation; shape and layout of the dense output
  Activation activation = Activation::none;
  double alpha = 0;          // leaky_relu's negative slope
  int64_t out_offset = 0;    // the output is channels [out_offset, out_offset + K) of a buffer
  int64_t out_channels = 0;  // of this many channels; 0: the output is dense

  auto fields() const { return std::tie(bias, residual, activation, alpha, out_offset, out_channels); }
  bool operator==(const Epilogue& other) const { return fields() == other.fields(); }
};

struct Problem {
  Op op = Op::conv2d;
  Pass pass = Pass::fprop;
  Dtype dtype = Dtype::f32;
  Layout layout = Layout::nhwc;
  int64_t n = 1, c = 1, k = 1, groups = 1;
  Axis h, w;
  Epilogue epilogue;
  // Pools only.
  bool ceil_mode = false;
  bool count_include_pad = true;
  int64_t divisor_override = 0;  // 0: none
  Index index = Index::none;
  // Batch norms only: by the batch's own statistics.
  bool training = false;
  // Local response norms only: the channels of a window, size / 2 of them before its own and (size - 1) / 2 behind.
  int64_t size = 0;
  int64_t in_offset = 0;    // the input is channels [in_offset, in_offset + C) of a buffer
  int64_t in_channels = 0;  // of this many channels; 0: the input is dense
  bool packed = false;      // convolutions: Args::packed stands for the filter
  bool scale = false;       // map2d: Args::scale holds a factor for each image and channel
  bool corners = false;     // bilinear2d: corner pixels of input and output coincide (torch's align_corners)
  bool mask = false;        // attention: Args::mask is added to the scores

  int64_t channels_per_group() const { return c / groups; }  // C/g
  int64_t filters_per_group() const { return k / groups; }   // K/g
  int64_t taps() const { return h.window * w.window; }       // R·S
  int64_t out_pixels() const { return h.out * w.out; }       // P·Q
  int64_t in_pixels() const { return h.in * w.in; }          // H·W
  int64_t x_elements() const { return n * c * in_pixels(); }
  int64_t y_elements() const { return n * k * out_pixels(); }
  int64_t w_elements() const { return k * channels_per_group() * taps(); }
  bool is_conv() const { return op == Op::conv2d; }
  bool is_norm() const { return op == Op::batchnorm2d || is_lrn(); }
  bool is_lrn() const { return op == Op::lrn2d; }
  bool is_attention() const { return op == Op::attention; }
  bool is_depthwise() const { return is_conv() && groups == c && groups > 1; }
  bool is_one_pixel() const { return in_pixels() == 1 && out_pixels() == 1; }  // both layouts are the same
  bool is_pointwise() const {  // 1x1 without padding: a plain matrix product per pixel
    return is_conv() && taps() == 1 && h.pad_lo == 0 && w.pad_lo == 0 && h.pad_hi <= 0 && w.pad_hi <= 0;
  }
  // Whether the output's size is stated, not derived from a window that slides.
  bool names_output() const {
    return op == Op::adaptivemax2d || op == Op::adaptiveavg2d || op == Op::unpool2d || op == Op::bilinear2d ||
           op == Op::nearest2d;
  }
  bool keeps_size() const {
    return is_norm() || op == Op::map2d || op == Op::reorder2d || op == Op::layernorm2d || op == Op::softmax2d ||
           op == Op::copy2d;
  }
  // Channels of the tensor this pass writes, and of the buffer it writes them into.
  int64_t written_channels() const { return pass == Pass::dgrad ? c : k; }
  int64_t buffer_channels() const { return epilogue.out_channels ? epilogue.out_channels : written_channels(); }
  int64_t source_channels() const { return in_channels ? in_channels : c; }  // of the buffer that x lies in

  // 2·N·K·P·Q·(C/g)·R·S whatever the pass and the algorithm; window reads for a pool; a multiply-add an element and
  // pass over the tensor for a batch norm, and for a local response norm one for every channel of its windows.
  double flops() const;
  // Every operand read once and the result written once.
  double bytes() const;

  auto fields() const {
    return std::tie(op, pass, dtype, layout, n, c, k, groups, h, w, epilogue, ceil_mode, count_include_pad,
                    divisor_override, index, training, size, in_offset, in_channels, packed, scale, corners, mask);
  }
  bool operator==(const Problem& other) const { return fields() == other.fields(); }

  std::string text() const;
};

size_t hash_value(const Problem& problem);

// Output size of a window that slides by `stride` over a padded axis (torch's formula). With ceil_mode the last
// window may hang over the end but must start inside the input or the leading padding.
int64_t window_output(const Axis& axis, bool ceil_mode);

// Throws std::invalid_argument with a sentence naming what is wrong.
Problem parse_problem(std::string_view text);

// Empty when every size is positive, groups divide and all element counts fit 63 bits; a sentence otherwise.
std::string invalid(const Problem& problem);

}  // namespace fastconv
