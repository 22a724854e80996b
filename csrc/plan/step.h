// One kernel's call in a program, with its operands' places.
#pragma once

#include <cstdint>

#include "core/kernel.h"

namespace fastconv {

// Where an operand of a step lies that is not the same in every run.
struct Place {
  enum In : int32_t { nowhere, arena, input, output };
  In in = nowhere;
  int64_t at = 0;      // bytes from the arena's start, or the number of the input or output
  int64_t behind = 0;  // bytes from there on
};

struct Step {
  const Kernel* kernel;
  Problem problem;
  Args args = {};  // with the constants: filters, biases, norms
  Place x = {}, y = {}, out = {}, residual = {}, scale = {}, keys = {}, values = {}, mask = {};
};

// The memory of one run.
struct Memory {
  const void* const* inputs;
  void* const* outputs;
  char* arena;

  const void* at(const Place& place) const {
    switch (place.in) {
      case Place::nowhere:
        break;
      case Place::arena:
        return arena + place.at + place.behind;
      case Place::input:
        return static_cast<const char*>(inputs[place.at]) + place.behind;
      case Place::output:
        return static_cast<char*>(outputs[place.at]) + place.behind;
    }
    return nullptr;
  }

  // The step's operands in this run.
  Args args_of(const Step& step) const {
    Args args = step.args;
    if (step.x.in) args.x = at(step.x);
    if (step.y.in) args.y = at(step.y);
    if (step.residual.in) args.residual = at(step.residual);
    if (step.scale.in) args.scale = at(step.scale);
    if (step.keys.in) args.keys = at(step.keys);
    if (step.values.in) args.values = at(step.values);
    if (step.mask.in) args.mask = at(step.mask);
    args.out = const_cast<void*>(at(step.out));
    return args;
  }
};

}  // namespace fastconv
