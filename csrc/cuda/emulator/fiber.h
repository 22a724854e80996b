// One stack for each emulated thread, and the switch between stacks: a call that returns on another stack.
#pragma once

#include <cstddef>
#include <memory>

namespace fastconv::emulated {

// A set of stacks that blocks use one after another. Fibers run on the thread that calls enter().
class Fibers {
 public:
  using Main = void (*)(void* context);  // never returns: its last act is leave()

  explicit Fibers(int count);
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  int count() const { return count_; }
  // Makes fiber i start at main(context) when it is next entered. What it had on its stack is forgotten.
  void reset(int i, Main main, void* context);
  // From the scheduler: runs fiber i until it leaves.
  void enter(int i);
  // From fiber i: goes back to the scheduler. last: the fiber will not be entered again before a reset.
  void leave(int i, bool last);

 private:
  struct State;
  int count_;
  std::unique_ptr<State> state_;
};

}  // namespace fastconv::emulated
