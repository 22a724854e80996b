// The Python face of csrc/plan: programs that compile, run and report their steps' times.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

void bind_program(pybind11::module_& m);

}  // namespace fastconv
