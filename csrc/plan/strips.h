// Steps of which each reads what the one before it wrote and nobody else reads, carried out together for a few rows at
// a time, so that what passes between them stays in a core's own caches: 96 channels at 112x112 are 4.8 MB, written and
// read again from the last cache or from memory, but nine rows of them are 390 KB.
//
// A thread takes a run of the last step's rows and cuts it into strips of equal height. Each step computes the rows
// that the next one needs and does not have: rows that a window reaches beyond its stride are kept from strip to strip,
// and only where a run begins are they computed by two threads. The kernels are the same as elsewhere. They get a
// problem of fewer rows, padded only where the map ends.
#pragma once

#include <string>
#include <vector>

#include "step.h"

namespace fastconv {

struct Rows {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
};

// The rows of x that some rows of the result come from.
Rows source_rows(const Problem& problem, Rows rows);

// One image's share of a problem: some rows of its result from those of x.
Problem of_rows(const Problem& problem, Rows rows);

// Why a problem cannot be cut into rows, or nothing.
std::string refuses_rows(const Problem& problem);

class Strips {
 public:
  // links: in order. height: the most rows of the last one's result at a time. Throws std::invalid_argument with the
  // sentence of a kernel that does not run its share of some strip with the filter it has.
  Strips(const std::vector<Step>& links, int64_t height);

  // Bytes of a thread: what passes between the links, and their kernels' workspace.
  int64_t thread_bytes() const { return thread_bytes_; }

  // scratch: thread_bytes() for each thread, 64-byte aligned.
  void run(const std::vector<Step>& links, const Memory& memory, char* scratch, const Parallel& parallel) const;

 private:
  int64_t height_;
  std::vector<int64_t> buffers_;  // where each link's rows begin in a thread's scratch, and then the workspace
  int64_t thread_bytes_;
};

}  // namespace fastconv
