#include "depthwise.h"
namespace fastconv::FASTCONV_ISA::depthwise {
void gather_nchw(const Problem&, const Args&, const Parallel&) {}
int64_t gather_nchw_workspace(const Problem&, int) { return 0; }
void wgrad_nchw(const Problem&, const Args&, const Parallel&) {}
int64_t wgrad_nchw_workspace(const Problem&, int) { return 0; }
}  // namespace fastconv::FASTCONV_ISA::depthwise
