// Bulk tensor copies (TMA): boxes of a tensor, and im2col's columns of pixels.
//
// im2col, of a tensor (C, W, H, N): a column starts at pixel (w, h, n) and takes `pixels` of them. W runs from lower[W]
// to size[W] - 1 + upper[W] in steps of step[W], then starts anew with H one step on, and so into the next image; the
// offsets are added to where a pixel is read, not to where it is counted. What lies outside the tensor is zero. So does
// CUTLASS use it (copy_traits_sm90_im2col.hpp); that the walk starts anew at lower[W] whatever the last step left over
// is to be checked on hardware.
#include <cstring>

#include "machine.h"

namespace fastconv::emulated {

namespace {

// Chunks of 16 bytes change places by the bits of their address above a line of 128 bytes.
int64_t swizzled(int64_t address, int span) {
  constexpr int line_bits = 3;
  if (!span) return address;
  const int64_t mask = span / chunk_bytes - 1;
  return address ^ (address >> line_bits & mask * chunk_bytes);
}

float rounded_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  constexpr uint32_t dropped = 0x1fff, exponent = 0x7f800000u;
  if ((bits & exponent) != exponent) bits = (bits + (dropped + 1) / 2) & ~dropped;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Calls line(offset in shared memory, coordinates) for each run along dimension 0.
template <class Line>
void walk(const TensorMap& map, const int* at, const int* offsets, Line&& line) {
  const int64_t pitch = int64_t{map.box[0]} * map.element_bytes;
  int place[TensorMap::most_dimensions] = {};
  if (map.im2col) {
    int64_t first[TensorMap::most_dimensions];
    for (int d = 0; d < map.rank; ++d) first[d] = at[d];
    const int last = map.rank - 1;
    for (int pixel = 0; pixel < map.pixels; ++pixel) {
      for (int d = 0; d < map.rank; ++d)
        place[d] = static_cast<int>(first[d]) + (d > 0 && d < last ? offsets[d - 1] : 0);
      line(pixel * pitch, place);
      for (int d = 1;; ++d) {
        if (d == last) {
          ++first[d];
          break;
        }
        first[d] += map.step[d];
        if (first[d] <= map.size[d] - 1 + map.upper[d]) break;
        first[d] = map.lower[d];
      }
    }
    return;
  }
  int count[TensorMap::most_dimensions] = {}, index[TensorMap::most_dimensions] = {};
  for (int d = 0; d < map.rank; ++d) count[d] = d ? (map.box[d] + map.step[d] - 1) / map.step[d] : 1;
  for (int64_t run = 0;; ++run) {
    for (int d = 0; d < map.rank; ++d) place[d] = at[d] + (d ? index[d] * map.step[d] : 0);
    line(run * pitch, place);
    int d = 1;
    while (d < map.rank && ++index[d] == count[d]) index[d++] = 0;
    if (d >= map.rank) return;
  }
}

// Elements of a run that lie inside, and where the first of them is; none: 0.
struct Inside {
  int64_t skip, count;
  int64_t offset;  // bytes
};
Inside inside(const TensorMap& map, const int* place) {
  int64_t offset = 0;
  for (int d = 1; d < map.rank; ++d) {
    if (place[d] < 0 || place[d] >= map.size[d]) return {0, 0, 0};
    offset += place[d] * map.stride[d];
  }
  const int64_t skip = place[0] < 0 ? -place[0] : 0;
  const int64_t end = std::min<int64_t>(map.box[0], map.size[0] - place[0]);
  return {skip, std::max<int64_t>(0, end - skip), offset + (place[0] + skip) * map.element_bytes};
}

}  // namespace

int64_t TensorMap::bytes() const {
  int64_t elements = box[0];
  if (im2col) return elements * pixels * element_bytes;
  for (int d = 1; d < rank; ++d) elements *= (box[d] + step[d] - 1) / step[d];
  return elements * element_bytes;
}

std::string TensorMap::refused() const {
  constexpr int largest_box = 256, largest_pixels = 1024, largest_step = 8, corner = 128;
  auto say = [](const std::string& what, int64_t value) { return what + " is " + std::to_string(value) + "."; };
  if (rank < (im2col ? 3 : 1) || rank > most_dimensions) return say("The rank", rank);
  if (reinterpret_cast<uintptr_t>(base) % chunk_bytes) return "The address is no multiple of 16.";
  const int64_t inner = int64_t{box[0]} * element_bytes;
  if (inner % chunk_bytes) return say("The box's inner dimension in bytes", inner);
  if (swizzle && inner > swizzle) return say("The box's inner dimension is wider than the swizzle: it", inner);
  for (int d = 0; d < rank; ++d) {
    if (size[d] < 1 || size[d] > int64_t{1} << 32) return say("A size", size[d]);
    if (d && (stride[d] % chunk_bytes || stride[d] >= int64_t{1} << 40)) return say("A stride in bytes", stride[d]);
    if (step[d] < 1 || step[d] > largest_step) return say("An element stride", step[d]);
    if ((!im2col || d == 0) && (box[d] < 1 || box[d] > largest_box)) return say("A box's size", box[d]);
    if (!im2col || d == 0 || d == rank - 1) continue;
    for (int at : {lower[d], upper[d]})
      if (rank == 4 && (at < -corner || at >= corner)) return say("A corner", at);
    if (size[d] + upper[d] <= lower[d]) return say("The pixels' box is empty: its upper corner", upper[d]);
  }
  if (im2col && (pixels < 1 || pixels > largest_pixels)) return say("The pixels of a column", pixels);
  return {};
}

void Cluster::load_later(BulkLoad load, const void* at) {
  constexpr int alignment = 128, largest_offset = 255;
  Mbarrier& barrier = mbarrier(at);
  const TensorMap& map = *load.map;
  check_alignment(load.to, alignment, "loads a box to a place");
  if (map.im2col)
    for (int d = 1; d < map.rank - 1; ++d) {
      const int place = load.at[static_cast<size_t>(d)], offset = load.offsets[static_cast<size_t>(d - 1)];
      if (offset < 0 || offset > largest_offset)
        throw Failure(where() + " loads a column at offset " + std::to_string(offset) + ", not 0 to 255.");
      if (place < map.lower[d] || place > map.size[d] - 1 + map.upper[d] || (place - map.lower[d]) % map.step[d])
        throw Failure(where() + " loads a column from pixel " + std::to_string(place) + " of dimension " +
                      std::to_string(d) + ", which its box of pixels has not.");
    }
  check_readings(load.to, load.bytes, "loads a box over");
  Cell* cell = cells(load.to, load.bytes, "loads a box to");
  for (int64_t i = 0; i < load.bytes / cell_bytes; ++i) {
    Cell& c = cell[i];
    if (c.copier >= 0) throw Failure(where() + " loads a box over one that is on its way.");
    const bool read = c.read_epoch == epoch_at(load.to) && c.reader != current_ && !ordered(c.reader, c.read_clock);
    const bool written =
        c.write_epoch == epoch_at(load.to) && c.writer != current_ && !ordered(c.writer, c.write_clock);
    if (read || written)
      throw Failure(where() +
                    " loads a box over shared memory that other threads have touched, without a barrier "
                    "between.");
    c.copier = static_cast<int16_t>(current_);
  }
  std::memset(load.to, poison, static_cast<size_t>(load.bytes));
  load.copier = current_;
  barrier.loads.push_back(std::move(load));
  if (barrier.pending == 0) settle(barrier);
}

void Cluster::carry_out(Mbarrier& barrier, const BulkLoad& load) {
  const TensorMap& map = *load.map;
  const auto column = static_cast<int16_t>(threads_.size() + static_cast<size_t>(&barrier - mbarriers_.data()));
  Cell* cell = cells(load.to, load.bytes, "loads a box to");
  for (int64_t i = 0; i < load.bytes / cell_bytes; ++i) {
    Cell& c = cell[i];
    c.copier = -1, c.written = c.by_copy = true;
    c.writer = column, c.write_clock = barrier.phase + 1, c.write_epoch = epoch_at(load.to);
    c.reader = -1, c.read_epoch = 0;
  }
  const int64_t run = int64_t{map.box[0]} * map.element_bytes;
  const int64_t start = load.to - shared_.data();
  std::vector<char> line(static_cast<size_t>(run));
  walk(map, load.at.data(), load.offsets.data(), [&](int64_t to, const int* place) {
    std::memset(line.data(), 0, line.size());
    const Inside part = inside(map, place);
    if (part.count) {
      check_global_range(map.base + part.offset, part.count * map.element_bytes, /*write=*/false);
      std::memcpy(line.data() + part.skip * map.element_bytes, map.base + part.offset,
                  static_cast<size_t>(part.count * map.element_bytes));
    }
    if (map.round_tf32)
      for (size_t i = 0; i < line.size(); i += sizeof(float)) {
        float value;
        std::memcpy(&value, &line[i], sizeof value);
        value = rounded_tf32(value);
        std::memcpy(&line[i], &value, sizeof value);
      }
    for (int64_t i = 0; i < run; i += chunk_bytes)
      std::memcpy(shared_.data() + swizzled(start + to + i, map.swizzle), &line[static_cast<size_t>(i)], chunk_bytes);
  });
}

void Cluster::store_later(BulkStore store) {
  constexpr int alignment = 128;
  check_alignment(store.from, alignment, "stores a box from a place");
  if (store.map->round_tf32) throw Failure(where() + " stores a box through a map that rounds what it loads.");
  check_async_read(store.from, store.bytes, "stores a box of");
  note_reading(current_, store.from, store.from + store.bytes, "a bulk store");
  me().stores.push_back(std::move(store));
  ++me().open_stores;
}

void Cluster::commit_stores() {
  me().store_groups.push_back(me().open_stores);
  me().open_stores = 0;
}

void Cluster::wait_for_stores(int newest_left) {
  Thread& t = me();
  while (t.store_groups.size() > static_cast<size_t>(newest_left)) {
    for (size_t i = 0; i < t.store_groups.front(); ++i) {
      const BulkStore& store = t.stores[i];
      const TensorMap& map = *store.map;
      finish_reading(current_, 1, store.from, store.from + store.bytes);
      const int64_t start = store.from - shared_.data();
      walk(map, store.at.data(), nullptr, [&](int64_t from, const int* place) {
        const Inside part = inside(map, place);
        if (!part.count) return;
        check_global_range(map.base + part.offset, part.count * map.element_bytes, /*write=*/true);
        char* to = const_cast<char*>(map.base) + part.offset;
        for (int64_t i = 0; i < part.count * map.element_bytes; ++i) {
          const int64_t byte = start + from + part.skip * map.element_bytes + i;
          to[i] = shared_[static_cast<size_t>(swizzled(byte / chunk_bytes * chunk_bytes, map.swizzle) +
                                              byte % chunk_bytes)];
        }
      });
    }
    t.stores.erase(t.stores.begin(), t.stores.begin() + static_cast<std::ptrdiff_t>(t.store_groups.front()));
    t.store_groups.erase(t.store_groups.begin());
  }
}

void load_tensor(const TensorMap& map, void* to, const void* barrier, const int* at, const int* offsets,
                 uint32_t ranks) {
  std::vector<int> places(at, at + map.rank), beside(TensorMap::most_dimensions);
  if (map.im2col) beside.assign(offsets, offsets + map.rank - 2);
  if (!ranks) ranks = 1u << rank_in_cluster();
  for (int rank = 0; ranks >> rank; ++rank)
    if (ranks >> rank & 1)
      cluster().load_later({&map, places, beside, static_cast<char*>(shared_of(rank, to)), map.bytes(), 0},
                           shared_of(rank, barrier));
}
void store_tensor(const TensorMap& map, const void* from, const int* at) {
  cluster().store_later({&map, std::vector<int>(at, at + map.rank), static_cast<const char*>(from), map.bytes()});
}
void commit_stores() { cluster().commit_stores(); }
void wait_for_stores(int newest_left) { cluster().wait_for_stores(newest_left); }

}  // namespace fastconv::emulated
