#include "program.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastconv {

namespace {

struct Memory {
  const void* const* inputs;
  void* const* outputs;
  char* arena;

  const void* at(const Place& place) const {
    switch (place.in) {
      case Place::nowhere:
        break;
      case Place::arena:
        return arena + place.at;
      case Place::input:
        return inputs[place.at];
      case Place::output:
        return outputs[place.at];
    }
    return nullptr;
  }
};

}  // namespace

Program::Program(std::vector<Step> steps, int64_t arena_bytes, int threads)
    : steps_(std::move(steps)), arena_bytes_(arena_bytes), threads_(threads) {
  for (const Step& step : steps_) {
    const int64_t end = step.workspace + step.kernel->body.workspace(step.problem, step.serial ? 1 : threads);
    if (step.workspace < 0 || end > arena_bytes)
      throw std::invalid_argument("The workspace of " + step.kernel->name + " ends at byte " + std::to_string(end) +
                                  " of an arena of " + std::to_string(arena_bytes) + ".");
    if (step.out.in != Place::arena && step.out.in != Place::output)
      throw std::invalid_argument("A step of " + step.kernel->name + " writes nowhere.");
  }
}

void Program::run(const void* const* inputs, void* const* outputs, void* arena, const Parallel& parallel,
                  double* seconds) const {
  if (parallel.threads() > threads_)
    throw std::invalid_argument("The program was compiled for " + std::to_string(threads_) + " threads, not for " +
                                std::to_string(parallel.threads()) + ".");
  const Memory memory{inputs, outputs, static_cast<char*>(arena)};
  const Serial serial;
  auto before = std::chrono::steady_clock::now();
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    Args args = step.args;
    if (step.x.in) args.x = memory.at(step.x);
    if (step.y.in) args.y = memory.at(step.y);
    if (step.residual.in) args.residual = memory.at(step.residual);
    if (step.scale.in) args.scale = memory.at(step.scale);
    args.out = const_cast<void*>(memory.at(step.out));
    args.workspace = memory.arena + step.workspace;
    step.kernel->body.run(step.problem, args, step.serial ? static_cast<const Parallel&>(serial) : parallel);
    if (!seconds) continue;
    const auto now = std::chrono::steady_clock::now();
    seconds[i] = std::chrono::duration<double>(now - std::exchange(before, now)).count();
  }
}

}  // namespace fastconv
