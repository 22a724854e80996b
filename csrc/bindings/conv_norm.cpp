// The norm's factor goes into the filter, the rest into the bias: what a batch norm of running statistics does to a
// result, done to fewer numbers, once a call. Nothing is kept from call to call.
#include "conv_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>

#include <cmath>

namespace fastconv {

namespace {

constexpr int64_t grain = 1 << 14;  // elements of a filter that are worth another thread

bool plain(const at::Tensor& t, at::ScalarType type) {
  return t.is_cpu() && t.layout() == at::kStrided && t.scalar_type() == type && !at::isTensorSubclassLike(t);
}
bool channel_each(const at::Tensor& t, int64_t channels, at::ScalarType type) {
  return plain(t, type) && t.dim() == 1 && t.size(0) == channels && t.is_contiguous();
}
bool absent_or_channel_each(const OptionalTensor& t, int64_t channels, at::ScalarType type) {
  return !t || channel_each(*t, channels, type);
}

// Filters lie one behind the other.
bool dense(const at::Tensor& w) { return w.is_contiguous() || w.is_contiguous(at::MemoryFormat::ChannelsLast); }

// Pixels of one channel of the result; 0 for what the convolution will refuse.
int64_t pixels(const at::Tensor& x, const at::Tensor& w, const ConvGeometry& g) {
  int64_t count = x.size(0);
  for (int64_t i = 0; i < 2; ++i) {
    if (g.stride[i] < 1 || g.dilation[i] < 1 || g.padding[2 * i] < 0) return 0;
    const int64_t reach = g.dilation[i] * (w.size(2 + i) - 1) + 1;
    const int64_t padded = x.size(2 + i) + g.padding[2 * i] + g.padding[2 * i + 1];
    if (padded < reach) return 0;
    count *= (padded - reach) / g.stride[i] + 1;
  }
  return count;
}

}  // namespace

bool folds(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& bias, const RunningNorm& norm,
           const ConvGeometry& g) {
  const at::ScalarType type = x.scalar_type();
  if (type != at::kFloat && type != at::kDouble) return false;
  if (!plain(x, type) || !plain(w, type) || !dense(w)) return false;
  const int64_t k = w.size(0);
  if (!channel_each(norm.mean, k, type) || !channel_each(norm.variance, k, type)) return false;
  for (const OptionalTensor* t : {&norm.weight, &norm.bias, &bias})
    if (!absent_or_channel_each(*t, k, type)) return false;
  return norm.eps > 0 && w.numel() > 0 && w.numel() / k <= pixels(x, w, g);
}

Folded fold(const at::Tensor& w, const OptionalTensor& bias, const RunningNorm& norm) {
  Folded folded{at::empty_like(w), at::empty_like(norm.mean)};
  AT_DISPATCH_FLOATING_TYPES(w.scalar_type(), "fold", [&] {
    const auto values = [](const OptionalTensor& t) { return t ? t->const_data_ptr<scalar_t>() : nullptr; };
    const scalar_t *mean = values(norm.mean), *variance = values(norm.variance), *before = values(bias);
    const scalar_t *weight = values(norm.weight), *shift = values(norm.bias), *from = values(w);
    scalar_t *to = folded.w.mutable_data_ptr<scalar_t>(), *sum = folded.bias.mutable_data_ptr<scalar_t>();
    const int64_t size = w.numel() / w.size(0);
    at::parallel_for(0, w.size(0), std::max<int64_t>(1, grain / size), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const auto scale = static_cast<scalar_t>((weight ? weight[k] : 1) / std::sqrt(double(variance[k]) + norm.eps));
        for (int64_t i = k * size; i < (k + 1) * size; ++i) to[i] = from[i] * scale;
        sum[k] = ((before ? before[k] : 0) - mean[k]) * scale + (shift ? shift[k] : 0);
      }
    });
  });
  return folded;
}

}  // namespace fastconv
