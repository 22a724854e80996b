// What an implicit GEMM refuses and what it costs; igemm.h runs it.
#pragma once

#include <algorithm>
#include <string>

#include "igemm_shape.h"
#include "phase.h"

namespace fastconv::FASTCONV_ISA::igemm {

inline Phase phase_of(const Problem& p) {
  if (p.pass == Pass::dgrad) return {dgrad_axis(p.h, 0), dgrad_axis(p.w, 0)};
  return {fprop_axis(p.h), fprop_axis(p.w)};
}

// How the tiles are shared out: chunks of strips x chunks of panels.
struct Split {
  int64_t strips, panels;
};

inline Split split(int64_t strips, int64_t panels, int threads, bool filter_is_larger) {
  if (threads == 1) return {1, 1};
  const int64_t by_strips = divide_up(strips, threads) * panels, by_panels = divide_up(panels, threads) * strips;
  if (by_panels < by_strips || (filter_is_larger && by_panels == by_strips))
    return {1, std::min<int64_t>(panels, threads)};
  const int64_t chunks = std::min<int64_t>(strips, threads);
  return {chunks, std::min(panels, divide_up(threads, chunks))};
}

// What both kernels refuse alike.
inline std::string refuses_geometry(const Problem& p) {
  if (p.layout != Layout::nhwc && !p.is_one_pixel())
    return "The layout is nchw: the channels of a pixel must lie together.";
  if (p.pass == Pass::dgrad && (p.h.stride > 1 || p.w.stride > 1))
    return "The stride is " + std::to_string(p.h.stride) + "x" + std::to_string(p.w.stride) +
           ": the result falls into as many phases.";
  const int64_t columns = p.written_channels() / p.groups;
  if (p.groups > 1 && columns == 1)
    return "Each of the " + std::to_string(p.groups) +
           " groups writes 1 channel: a register holds consecutive channels.";
  return {};
}

// Products over whole registers; the filter is read and written once by packing, or read packed; the results once and
// twice more for each chunk after the first, and the source once more for each group of panels after the first.
template <class Operand>
Cost cost(const Problem& p, int threads) {
  const Shape<Operand> s(p);
  Cost cost;
  const double element = sizeof(typename Operand::Element), sum = sizeof(arithmetic<typename Operand::Storage>);
  const double width = double(round_up(s.columns, s.lanes) * p.groups);
  const Phase phase = phase_of(p);
  const int64_t pixels = p.n * phase.grid(), strips = divide_up(pixels, s.strip), panels = p.groups * s.panels;
  const Split chunks = split(strips, panels, threads, p.w_elements() > p.x_elements());
  // Groups of one register: 28 rows of few channels leave little between the loads of their pointers, and run at half
  // the rate (Zen 4, 4 to 16 channels a group, 2026-11-22).
  const double pace = p.groups > 1 && s.vectors == 1 ? 2 : 1;
  cost.flops = 2.0 * double(pixels * phase.taps() * s.depth) * width * pace * Operand::pace;
  const int64_t tasks = divide_up(chunks.strips * chunks.panels, threads);
  cost.imbalance = double(tasks * threads * divide_up(strips, chunks.strips) * divide_up(panels, chunks.panels)) /
                   double(strips * panels);
  const double filter = double(s.filter_elements(p.groups));
  const double source = double(p.pass == Pass::dgrad ? p.y_elements() : p.x_elements());
  cost.moved = sum * double(2 * s.chunks() - 1) * double(pixels) * width;
  cost.moved += 2 * element * ((p.packed ? 0 : filter) + (s.staged ? source * double(s.table_taps) : 0));
  cost.shared = element * source * double(divide_up(panels, s.group_panels) - 1);
  if (p.packed) cost.shared += element * filter * double(chunks.strips);  // each of them reads all panels
  cost.memory = operand_bytes(p, element * filter);
  return cost;
}

}  // namespace fastconv::FASTCONV_ISA::igemm
