// A network as a list of steps over one arena: no Python, no torch, and no allocation between the first and the last.
// What each step runs and where its operands lie was decided when the program was compiled (fastconv/graph).
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernel.h"

namespace fastconv {

// Where an operand of a step lies that is not the same in every run.
struct Place {
  enum In : int32_t { nowhere, arena, input, output };
  In in = nowhere;
  int64_t at = 0;  // bytes from the arena's start, or the number of the input or output
};

struct Step {
  const Kernel* kernel;
  Problem problem;
  Args args;  // with the constants: filters, biases, norms
  Place x, y, out, residual, scale;
  int64_t workspace;    // bytes from the arena's start
  bool serial = false;  // too small to share out among threads
};

class Program {
 public:
  // threads: the most that a run may use; workspaces are made for as many.
  Program(std::vector<Step> steps, int64_t arena_bytes, int threads);

  // inputs, outputs: the tensors of one run, dense in the layouts the program was compiled for. arena: arena_bytes(),
  // 64-byte aligned, of no other run at the same time. seconds: null, or one a step, written.
  void run(const void* const* inputs, void* const* outputs, void* arena, const Parallel& parallel,
           double* seconds = nullptr) const;

  const std::vector<Step>& steps() const { return steps_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int threads() const { return threads_; }

 private:
  std::vector<Step> steps_;
  int64_t arena_bytes_;
  int threads_;
};

}  // namespace fastconv
