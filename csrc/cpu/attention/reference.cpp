// The definition of attention, one query at a time in double: the last row of the list. It loses to every other kernel.
#include "core/integers.h"
#include "core/machine.h"
#include "cpu/epilogue.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

int64_t scratch_step(const Problem& p) { return round_up(p.h.window * int64_t{sizeof(double)}, cache_line); }

int64_t workspace(const Problem& p, int threads) { return threads * scratch_step(p); }

template <class T>
void one_query(const Problem& p, const Args& args, int64_t n, int64_t head, int64_t query, double* weight) {
  const int64_t keys = p.h.window, depth = p.c / p.groups, wide = p.k / p.groups;
  const auto at = [&](const int64_t* stride, int64_t token, int64_t channel) {
    return n * stride[0] + head * stride[1] + token * stride[2] + channel * stride[3];
  };
  const auto read = [](const void* from, int64_t place) -> double { return widen(static_cast<const T*>(from)[place]); };
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t s = 0; s < keys; ++s) {
    weight[s] = 0;
    for (int64_t d = 0; d < depth; ++d)
      weight[s] += read(args.x, at(args.x_stride, query, d)) * read(args.keys, at(args.keys_stride, s, d));
    weight[s] *= args.factor;
    if (p.mask) weight[s] += read(args.mask, at(args.mask_stride, query, s));
    most = weight[s] > most || weight[s] != weight[s] ? weight[s] : most;
  }
  const bool masked =
      most == -std::numeric_limits<double>::infinity();  // no key is left: weights of 0, as torch has it
  for (int64_t s = 0; s < keys; ++s) sum += weight[s] = masked ? 0 : std::exp(weight[s] - most);
  if (masked) sum = 1;
  for (int64_t c = 0; c < wide; ++c) {
    double y = 0;
    for (int64_t s = 0; s < keys; ++s) y += weight[s] / sum * read(args.values, at(args.values_stride, s, c));
    static_cast<T*>(args.out)[(n * p.h.in + query) * p.k + head * wide + c] = narrow<T>(static_cast<arithmetic<T>>(y));
  }
}

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    parallel(p.n * p.groups * p.h.in, [&](int64_t begin, int64_t end, int thread) {
      auto* weight = reinterpret_cast<double*>(static_cast<char*>(args.workspace) + thread * scratch_step(p));
      for (int64_t i = begin; i < end; ++i)
        one_query<std::remove_pointer_t<decltype(t)>>(p, args, i / (p.groups * p.h.in), i / p.h.in % p.groups,
                                                      i % p.h.in, weight);
    });
  });
}

}  // namespace

extern const KernelBody attention_fprop_reference{.refuses = refuses_attention, .workspace = workspace, .run = run};

}  // namespace fastconv::FASTCONV_ISA
