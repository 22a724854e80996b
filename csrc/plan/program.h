// A network as a list of stages over one arena: no Python, no torch, and no allocation of tensors between the first and
// the last. What each runs and where its operands lie was decided when the program was compiled (fastconv/graph).
#pragma once

#include <optional>
#include <vector>

#include "strips.h"

namespace fastconv {

// One step that all threads share, or several that are carried out in strips.
struct Stage {
  std::vector<Step> links;
  int64_t height = 0;                 // of a strip; 0: a single step
  int64_t workspace = 0;              // bytes from the arena's start
  bool serial = false;                // too small to share out among threads
  std::optional<Strips> strips = {};  // made by the program
};

class Program {
 public:
  // threads: the most that a run may use; workspaces are made for as many.
  Program(std::vector<Stage> stages, int64_t arena_bytes, int threads);

  // inputs, outputs: the tensors of one run, dense in the layouts the program was compiled for. arena: arena_bytes(),
  // 64-byte aligned, of no other run at the same time. seconds: null, or one a stage, written.
  void run(const void* const* inputs, void* const* outputs, void* arena, const Parallel& parallel,
           double* seconds = nullptr) const;

  const std::vector<Stage>& stages() const { return stages_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int threads() const { return threads_; }

 private:
  std::vector<Stage> stages_;
  int64_t arena_bytes_;
  int threads_;
};

}  // namespace fastconv
