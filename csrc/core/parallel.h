// The parallel-for seam. Kernels split work into tasks; who runs them (torch's own thread pool, one thread in a test)
// is decided outside. Results must not depend on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastconv {

class Parallel {
 public:
  using Body = void (*)(void* context, int64_t begin, int64_t end, int thread);

  virtual ~Parallel() = default;
  virtual int threads() const = 0;
  virtual void run(int64_t tasks, Body body, void* context) const = 0;

  // Calls body(begin, end, thread) on disjoint ranges covering [0, tasks); thread < threads() numbers the caller's
  // private share of the workspace.
  template <class F>
  void operator()(int64_t tasks, F&& body) const {
    using Callable = std::remove_reference_t<F>;
    run(
        tasks,
        [](void* context, int64_t begin, int64_t end, int thread) {
          (*static_cast<Callable*>(context))(begin, end, thread);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }
};

class Serial final : public Parallel {
 public:
  int threads() const override { return 1; }
  void run(int64_t tasks, Body body, void* context) const override {
    if (tasks > 0) body(context, 0, tasks, 0);
  }
};

}  // namespace fastconv
