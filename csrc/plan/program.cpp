#include "program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/machine.h"

namespace fastconv {

namespace {

int64_t workspace_bytes(const Stage& stage, int threads) {
  if (stage.serial) threads = 1;
  if (stage.strips) return stage.strips->thread_bytes() * threads;
  return stage.links.front().kernel->body.workspace(stage.links.front().problem, threads);
}

// The filter of a stage, whose reading may begin before the stage.
void announce(const Stage& stage, Args& before) {
  const Step& step = stage.links.front();
  const Args& args = step.args;
  if (!step.problem.is_conv()) return;
  before.next = args.packed ? args.packed : args.w;
  if (args.packed)
    before.next_bytes = step.kernel->body.packed(step.problem).bytes;
  else if (args.w)
    before.next_bytes = step.problem.w_elements() * dtype_bytes(step.problem.dtype);
  before.next_bytes = std::min(before.next_bytes, machine().l3 / 4);  // of more, the first would be gone by then
}

}  // namespace

Program::Program(std::vector<Stage> stages, int64_t arena_bytes, int threads)
    : stages_(std::move(stages)), arena_bytes_(arena_bytes), threads_(threads) {
  for (Stage& stage : stages_) {
    if (stage.height) stage.strips.emplace(stage.links, stage.height);
    const std::string name = stage.links.front().kernel->name;
    const int64_t end = stage.workspace + workspace_bytes(stage, threads);
    if (stage.workspace < 0 || end > arena_bytes)
      throw std::invalid_argument("The workspace of " + name + " ends at byte " + std::to_string(end) +
                                  " of an arena of " + std::to_string(arena_bytes) + ".");
    const Place& out = stage.links.back().out;
    if (out.in != Place::arena && out.in != Place::output)
      throw std::invalid_argument("A step of " + name + " writes nowhere.");
  }
  for (size_t i = 0; i + 1 < stages_.size(); ++i)
    if (!stages_[i].strips)
      for (size_t j = i + 1; j < stages_.size() && !stages_[i].links.front().args.next; ++j)
        announce(stages_[j], stages_[i].links.front().args);
}

void Program::run(const void* const* inputs, void* const* outputs, void* arena, const Parallel& parallel,
                  double* seconds) const {
  if (parallel.threads() > threads_)
    throw std::invalid_argument("The program was compiled for " + std::to_string(threads_) + " threads, not for " +
                                std::to_string(parallel.threads()) + ".");
  const Memory memory{inputs, outputs, static_cast<char*>(arena)};
  const Serial serial;
  auto before = std::chrono::steady_clock::now();
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const Parallel& those = stage.serial ? static_cast<const Parallel&>(serial) : parallel;
    char* const workspace = memory.arena + stage.workspace;
    if (stage.strips) {
      stage.strips->run(stage.links, memory, workspace, those);
    } else {
      const Step& step = stage.links.front();
      Args args = memory.args_of(step);
      args.workspace = workspace;
      step.kernel->body.run(step.problem, args, those);
    }
    if (!seconds) continue;
    const auto now = std::chrono::steady_clock::now();
    seconds[i] = std::chrono::duration<double>(now - std::exchange(before, now)).count();
  }
}

}  // namespace fastconv
