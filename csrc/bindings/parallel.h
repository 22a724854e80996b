// Parallel over torch's own thread pool: torch.set_num_threads is obeyed, and there is no second pool.
#pragma once

#include <ATen/Parallel.h>

#include "core/parallel.h"

namespace fastconv {

// Whether this process was forked from one that had loaded the extension. The pool's threads did not come along, and
// its runtime would wait for them for ever: such a process computes on one thread.
bool forked();

class TorchParallel final : public Parallel {
 public:
  TorchParallel() : threads_(at::in_parallel_region() || forked() ? 1 : at::get_num_threads()) {}
  int threads() const override { return threads_; }
  void run(int64_t tasks, Body body, void* context) const override {
    if (tasks <= 0) return;
    if (tasks == 1 || threads_ == 1) return body(context, 0, tasks, 0);
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(context, begin, end, at::get_thread_num()); });
  }

 private:
  int threads_;
};

}  // namespace fastconv
