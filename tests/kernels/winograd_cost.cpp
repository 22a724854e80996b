// Prints the cut and the cost of a Winograd convolution: PROBLEM THREADS OUTPUTS LANES on each line of the input, one
// line of numbers back.
#include "cpu/winograd/cut.h"

#include <iostream>
#include <string>

int main() {
  std::string text;
  for (int threads, outputs, lanes; std::cin >> text >> threads >> outputs >> lanes;) {
    const fastconv::Problem problem = fastconv::parse_problem(text);
    const int64_t element = problem.dtype == fastconv::Dtype::f64 ? sizeof(double) : sizeof(float);
    const fastconv::winograd::Cut cut(problem, threads, outputs, lanes, element);
    const fastconv::Cost cost = fastconv::winograd::cost(problem, threads, outputs, lanes);
    std::cout << cut.by_panels << ' ' << cut.tiles << ' ' << cut.panels << ' ' << cut.blocks << ' ' << cost.flops << ' '
              << cost.moved << ' ' << cost.shared << ' ' << cost.memory << ' ' << cost.imbalance << ' '
              << fastconv::estimated_seconds(cost, threads, fastconv::nominal_rates(fastconv::Isa::avx2, false))
              << '\n';
  }
}
