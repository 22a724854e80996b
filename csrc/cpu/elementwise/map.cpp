// map2d: out = activation(x·scale[n][c] + residual), between channel slices of buffers: the multiplication by a
// squeeze-and-excitation's gates, a sum behind a branch, an activation alone, a copy into a concatenation.
//
// One pass (affine.h): x and the residual are read once, out is written once, past the caches where it is larger than
// the last one.
#include "affine.h"
#include "refuses.h"

namespace fastconv::FASTCONV_ISA {

namespace {

void run(const Problem& p, const Args& args, const Parallel& parallel) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Channelwise<T> by;
    if (p.scale) by.scale = static_cast<const T*>(args.scale), by.image_step = p.c;
    Affine<T, T>(p, args, by).run(parallel);
  });
}

}  // namespace

extern const KernelBody map2d_fprop_runs{
    .refuses = refuses_unknown, .workspace = no_workspace, .run = run, .reads_slices = true};

}  // namespace fastconv::FASTCONV_ISA
