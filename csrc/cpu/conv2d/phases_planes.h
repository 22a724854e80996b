// The two ends of a dgrad by phases where tensors are not pixels of neighbouring channels: the source laid out anew,
// and results turned into planes.
#pragma once

#include "cpu/epilogue.h"
#include "phases_shape.h"
#include "simd/transpose.h"

namespace fastconv::FASTCONV_ISA::phases {

// The source as pixels `shape.pixel` apart, in the arithmetic type.
template <class T>
void copy_source(const Problem& p, const Shape<T>& shape, const T* source, arithmetic<T>* copy,
                 const Parallel& parallel) {
  using V = Vec<arithmetic<T>>;
  const int64_t pixels = p.out_pixels();
  if (shape.planes) {
    const int64_t parts = divide_up(pixels, turned_at_once);
    parallel(p.n * parts, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / parts, first = i % parts * turned_at_once;
        for (int64_t k = 0; k < p.k; k += V::lanes)  // a register of planes at a time: few pages
          transpose(source + (n * p.k + k) * pixels + first, pixels, std::min<int64_t>(V::lanes, p.k - k),
                    std::min(turned_at_once, pixels - first), copy + (n * pixels + first) * shape.pixel + k,
                    shape.pixel);
      }
    });
    return;
  }
  parallel(p.n * pixels, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < p.k; c += V::lanes) {
        const int left = static_cast<int>(std::min<int64_t>(V::lanes, p.k - c));
        store(copy + i * shape.pixel + c, load(source + i * p.k + c, left), left);
      }
  });
}

// Neighbouring pixels of a row of planes, for up to a register of channels from `channel` on.
template <class T>
struct PlanesRow {
  using V = Vec<arithmetic<T>>;
  const Tail<T>& tail;
  bool plain = !tail.residual && tail.activation == Activation::none;

  // results[i] + offset: the channels of pixel i.
  void put(const arithmetic<T>* const* results, int64_t offset, int64_t n, int64_t channel, int channels, int64_t pixel,
           int64_t count) const {
    for (int64_t x = 0; x < count; x += V::lanes) {
      const int width = static_cast<int>(std::min<int64_t>(V::lanes, count - x));
      V block[V::lanes];
      for (int i = 0; i < V::lanes; ++i) block[i] = i < width ? load(results[x + i] + offset) : V::zero();
      transpose(block);
      for (int i = 0; i < channels; ++i) put_one(n, channel + i, pixel + x, block[i], width);
    }
  }

  // The same where all pixels of a channel have one value.
  void fill(const arithmetic<T>* values, int64_t n, int64_t channel, int channels, int64_t pixel, int64_t count) const {
    for (int i = 0; i < channels; ++i)
      for (int64_t x = 0; x < count; x += V::lanes)
        put_one(n, channel + i, pixel + x, V::broadcast(values[i]),
                static_cast<int>(std::min<int64_t>(V::lanes, count - x)));
  }

 private:
  void put_one(int64_t n, int64_t channel, int64_t pixel, V value, int count) const {
    if (plain)
      store(tail.out + tail.out_at(n, channel, pixel), value, count);
    else
      tail.put_pixels(n, channel, pixel, value, count);
  }
};

// A block's results to their planes: a register of planes at a time, so that the pages written to are few.
template <class T>
struct PlanesEnd {
  using A = arithmetic<T>;
  static constexpr int lanes = Vec<A>::lanes;

  const Problem& p;
  const Shape<T>& shape;
  const Work<T>& work;
  const Tail<T>& tail;

  // Row phase h of panels [first_panel, first_panel + panels).
  void put(const Block& block, const AxisPhase& h, const Private<T>& own, int64_t first_panel, int64_t panels) const {
    const int64_t x0 = (first_cell(p.w) + block.first) * p.w.stride - p.w.pad_lo, x = std::max<int64_t>(0, x0);
    const int64_t pixels = std::min(p.w.in, x0 + (block.last - block.first) * p.w.stride) - x;
    list_results(own.block, x - x0, pixels, own.results);
    if (shape.merged()) {
      for (int64_t c = 0; c < p.c; c += lanes)
        put_rows(block, h, own, c, c, std::min<int64_t>(lanes, p.c - c), x, pixels);
      return;
    }
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel)
      for (int64_t c = 0; c < shape.panel_columns(panel); c += lanes)
        put_rows(block, h, own, (panel - first_panel) * shape.width + c,
                 panel / shape.panels * shape.columns + panel % shape.panels * shape.width + c,
                 std::min<int64_t>(lanes, shape.panel_columns(panel) - c), x, pixels);
  }

 private:
  // Channels [channel, channel + channels), which lie at `offset` of a pixel's results; row pixels from x on.
  void put_rows(const Block& block, const AxisPhase& h, const Private<T>& own, int64_t offset, int64_t channel,
                int64_t channels, int64_t x, int64_t pixels) const {
    const PlanesRow<T> to{tail};
    const int64_t group = channel / shape.columns;
    const A* constant = work.start + group * shape.panels * shape.width + channel % shape.columns;
    for (int64_t row = block.row; row < block.end; ++row) {
      const int64_t n = row / shape.cells_h, i = row % shape.cells_h - h.cell;
      if (i < 0 || i >= h.grid) continue;
      const int64_t at = offset + (row - block.row) * (block.last - block.first) * shape.pitch;
      for (int64_t q = 0; q < shape.width_h; ++q) {
        const int64_t y = h.out_first + i * h.out_step + q, pixel = y * p.w.in + x;
        if (y < 0 || y >= h.out_size) continue;
        if (h.taps == 0)
          to.fill(constant, n, channel, static_cast<int>(channels), pixel, pixels);
        else
          to.put(own.results, at + q * shape.width_w * p.c, n, channel, static_cast<int>(channels), pixel, pixels);
      }
    }
  }

  // Where the results of a row of cells lie, pixel by pixel from `skipped` on.
  void list_results(const A* cells, int64_t skipped, int64_t pixels, const A** results) const {
    const int64_t stride = p.w.stride, next = shape.width_w > 1 ? p.c : shape.block_cells * shape.pitch;
    int64_t cell = skipped / stride, residue = skipped % stride;
    for (int64_t i = 0; i < pixels; ++i) {
      results[i] = cells + cell * shape.pitch + residue * next;
      if (++residue == stride) residue = 0, ++cell;
    }
  }
};

}  // namespace fastconv::FASTCONV_ISA::phases
