// wgmma: products of 64 rows, a warp's share of 16 carried out when that warp waits for its group.
//
// A matrix descriptor (PTX ISA, "Matrix Descriptor Format"): start, leading and stride offsets in units of 16 bytes at
// bits 0, 16 and 32, the swizzle at bit 62 (1: 128 bytes, 2: 64, 3: 32). With chunks of 16 bytes: where the depth runs
// along the lines (K-major), line r has its two chunks of depth at r % 8 lines of a swizzle span and r / 8 strides;
// where it runs across them (MN-major), chunk c of rows at depth k lies at c % span + k % 8 lines + c / span leading +
// k / 8 strides. Chunks change places by address bits 7 to 9. Without a swizzle the leading offset goes from chunk to
// chunk of depth, and the stride from eight lines to the next; across, leading and stride change their meaning.
#include <algorithm>
#include <cstring>

#include "core/types.h"
#include "machine.h"

namespace fastconv::emulated {

namespace {

constexpr int depth_bytes = 32, rows_of_warp = 16, rows_of_group = 64;

struct Descriptor {
  int64_t start, leading, stride;
  int span;  // bytes

  explicit Descriptor(uint64_t bits) {
    constexpr uint64_t field = 0x3fff;
    constexpr int leading_at = 16, stride_at = 32, base_at = 49, swizzle_at = 62, unit = chunk_bytes;
    constexpr int spans[] = {16, 128, 64, 32};
    auto part = [&](int at) { return static_cast<int64_t>(bits >> at & field) * unit; };
    start = part(0), leading = part(leading_at), stride = part(stride_at);
    span = spans[bits >> swizzle_at];
    if (bits >> base_at & 7) throw Failure("A matrix descriptor has a base offset, which nothing here needs.");
    // Eight lines of a span must start where the pattern of the swizzle does.
    if (span > unit && start / (8 * unit) % (span / unit))
      throw Failure("A matrix descriptor starts at " + std::to_string(start) +
                    " of shared memory, inside the pattern of its swizzle.");
  }
  int64_t chunk(bool across, int line_or_chunk, int chunk_or_depth) const {
    constexpr int lines = 8, line_bits = 3;
    const int width = span / chunk_bytes;
    int64_t address = start;
    if (width == 1) {
      if (across)
        address +=
            int64_t{line_or_chunk} * stride + chunk_or_depth % lines * chunk_bytes + chunk_or_depth / lines * leading;
      else
        address += line_or_chunk % lines * chunk_bytes + line_or_chunk / lines * stride + chunk_or_depth * leading;
      return address;
    }
    if (across)
      address += line_or_chunk % width * chunk_bytes + line_or_chunk / width * leading + chunk_or_depth % lines * span +
                 chunk_or_depth / lines * stride;
    else
      address += line_or_chunk % lines * span + line_or_chunk / lines * stride + chunk_or_depth * chunk_bytes;
    return address ^ (address >> line_bits & (width - 1) * chunk_bytes);
  }
};

int bytes_of(Operand operand) { return operand == Operand::tf32 ? 4 : 2; }

float element(Operand operand, const char* at) {
  constexpr uint32_t dropped = 0x1fff;  // bits that tf32 has not
  if (operand == Operand::tf32) {
    uint32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    bits &= ~dropped;
    return __builtin_bit_cast(float, bits);
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return operand == Operand::f16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

}  // namespace

// All chunks that rows first.. of an operand have, in an order that multiply() knows: along, two a row; across, one for
// each depth of each eight rows.
std::vector<const char*> Cluster::chunks_of(const Wgmma& what, bool left, int rows, int first) {
  const Descriptor descriptor(left ? what.a : what.b);
  const bool across = left ? what.across_a : what.across_b;
  const int in_chunk = chunk_bytes / bytes_of(what.operand), depth = depth_bytes / bytes_of(what.operand);
  std::vector<const char*> chunks;
  const int outer = across ? rows / in_chunk : rows, inner = across ? depth : 2;
  for (int i = 0; i < outer; ++i)
    for (int j = 0; j < inner; ++j)
      chunks.push_back(shared() + descriptor.chunk(across, (across ? first / in_chunk : first) + i, j));
  return chunks;
}

void Cluster::fence_multiplies() { queue().fenced = true; }

void Cluster::multiply_later(Multiply m) {
  constexpr int most_columns = 256, column_step = 8;
  WarpQueue& warp = queue();
  const int group = current_ / warp_lanes / warps_of_group, own = current_ / warp_lanes % warps_of_group;
  if (m.what.columns < column_step || m.what.columns > most_columns || m.what.columns % column_step)
    throw Failure("A product has " + std::to_string(m.what.columns) + " columns.");
  if (m.what.operand == Operand::tf32 && (m.what.across_a || m.what.across_b))
    throw Failure("A product of tf32 transposes nothing.");
  const int first_lane = current_ - current_ % warp_lanes;
  // Four warps must ask for the same, one after another in their own time.
  auto& log = issued_[static_cast<size_t>(group)];
  const auto number = static_cast<size_t>(warp.issued++);
  const std::pair<uint64_t, uint64_t> asked{m.what.a_in_registers ? 0 : m.what.a, m.what.b};
  if (number == log.size())
    log.push_back(asked);
  else if (log[number] != asked)
    throw Failure(where() + " multiplies other matrices than another warp of its group.");
  bool flying = false;
  for (const Multiply& other : warp.flying) flying |= other.sums[0] == m.sums[0];
  if (!warp.fenced) throw Failure(where() + " multiplies without wgmma.fence behind what its registers were used for.");
  if (!m.what.a_in_registers) {
    for (const char* chunk : chunks_of(m.what, true, rows_of_warp, own * rows_of_warp))
      check_async_read(chunk, chunk_bytes, "multiplies");
  }
  for (const char* chunk : chunks_of(m.what, false, m.what.columns, 0))
    check_async_read(chunk, chunk_bytes, "multiplies");
  auto note = [&](bool left, int rows) {
    const auto chunks = chunks_of(m.what, left, rows, 0);
    const auto [low, high] = std::minmax_element(chunks.begin(), chunks.end());
    note_reading(first_lane, *low, *high + chunk_bytes, "a product");
  };
  if (!m.what.a_in_registers) note(true, rows_of_group);
  note(false, m.what.columns);
  if (!flying) {
    const size_t each = static_cast<size_t>(m.what.columns) / 2;
    if (m.what.adds)
      for (const float* sums : m.sums) m.before.insert(m.before.end(), sums, sums + each);
    for (float* sums : m.sums) std::memset(sums, poison, each * sizeof(float));
  }
  warp.flying.push_back(std::move(m));
  ++warp.open;
}

void Cluster::commit_multiplies() {
  queue().groups.push_back(queue().open);
  queue().open = 0;
}

void Cluster::wait_for_multiplies(int newest_left) {
  WarpQueue& warp = queue();
  while (warp.groups.size() > static_cast<size_t>(newest_left)) {
    for (size_t left = warp.groups.front(); left > 0; --left) {
      const Multiply m = std::move(warp.flying.front());
      warp.flying.pop_front();
      std::vector<float> sums;
      multiply(m, m.before, sums);
      auto finish = [&](bool is_left, int rows) {
        const auto chunks = chunks_of(m.what, is_left, rows, 0);
        const auto [low, high] = std::minmax_element(chunks.begin(), chunks.end());
        finish_reading(current_ - current_ % warp_lanes, warp_lanes, *low, *high + chunk_bytes);
      };
      if (!m.what.a_in_registers) finish(true, rows_of_group);
      finish(false, m.what.columns);
      warp.fenced = false;
      Multiply* next = nullptr;
      for (Multiply& other : warp.flying)
        if (!next && other.sums[0] == m.sums[0]) next = &other;
      if (next) {
        next->before = std::move(sums);
        continue;
      }
      const size_t each = static_cast<size_t>(m.what.columns) / 2;
      for (size_t lane = 0; lane < m.sums.size(); ++lane)
        std::memcpy(m.sums[lane], &sums[lane * each], each * sizeof(float));
    }
    warp.groups.erase(warp.groups.begin());
  }
}

// Accumulator i of a lane: row lane / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2.
void Cluster::multiply(const Multiply& m, const std::vector<float>& before, std::vector<float>& sums) {
  const Wgmma& what = m.what;
  const int bytes = bytes_of(what.operand), in_chunk = chunk_bytes / bytes, depth = depth_bytes / bytes;
  const int own = current_ / warp_lanes % warps_of_group;
  auto unpack = [&](bool left, int rows, int first, bool across) {
    std::vector<float> out(static_cast<size_t>(depth) * static_cast<size_t>(rows));  // [depth][row]
    const auto chunks = chunks_of(what, left, rows, first);
    const int inner = across ? depth : 2;
    for (int i = 0; i < static_cast<int>(chunks.size()); ++i)
      for (int e = 0; e < in_chunk; ++e) {
        const int row = across ? i / inner * in_chunk + e : i / inner,
                  k = across ? i % inner : i % inner * in_chunk + e;
        out[static_cast<size_t>(k * rows + row)] = element(what.operand, chunks[static_cast<size_t>(i)] + e * bytes);
      }
    return out;
  };
  const int columns = what.columns;
  const std::vector<float> b = unpack(false, columns, 0, what.across_b);
  std::vector<float> a;
  if (what.a_in_registers) {
    a.resize(static_cast<size_t>(depth * rows_of_warp));
    const int per_register = 4 / bytes;
    for (int lane = 0; lane < warp_lanes; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < per_register; ++e) {
          const int row = lane / 4 + 8 * (i % 2), k = lane % 4 * per_register + e + depth / 2 * (i / 2);
          const char* at = reinterpret_cast<const char*>(&m.a[static_cast<size_t>(lane * 4 + i)]) + e * bytes;
          a[static_cast<size_t>(k * rows_of_warp + row)] = element(what.operand, at);
        }
  } else {
    a = unpack(true, rows_of_warp, own * rows_of_warp, what.across_a);
  }
  std::vector<float> tile(static_cast<size_t>(rows_of_warp * columns));
  for (int k = 0; k < depth; ++k)
    for (int row = 0; row < rows_of_warp; ++row) {
      const float left = a[static_cast<size_t>(k * rows_of_warp + row)];
      const float* right = &b[static_cast<size_t>(k * columns)];
      float* to = &tile[static_cast<size_t>(row * columns)];
      for (int j = 0; j < columns; ++j) to[j] += left * right[j];
    }
  const int each = columns / 2;
  sums.resize(static_cast<size_t>(each * warp_lanes));
  for (int lane = 0; lane < warp_lanes; ++lane)
    for (int i = 0; i < each; ++i) {
      const auto at = static_cast<size_t>(lane * each + i);
      const int row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      sums[at] = (what.adds && !before.empty() ? before[at] : 0.0f) + tile[static_cast<size_t>(row * columns + column)];
    }
}

namespace {
struct Call {
  const Wgmma* what;
  float* sums;
  const uint32_t* a;
};
constexpr uint32_t everyone = 0xffffffffu;
}  // namespace

void multiply_group(const Wgmma& what, float* sums, const uint32_t* a, Site site) {
  Call call{&what, sums, a};
  auto body = [](void* const operands[warp_lanes], uint32_t) {
    Multiply m{*static_cast<const Call*>(operands[0])->what, {}, {}, {}};
    for (int lane = 0; lane < warp_lanes; ++lane) {
      const Call& own = *static_cast<const Call*>(operands[lane]);
      if (!(*own.what == m.what)) throw Failure("Lanes of a warp multiply different matrices.");
      m.sums.push_back(own.sums);
      if (m.what.a_in_registers) m.a.insert(m.a.end(), own.a, own.a + 4);
    }
    cluster().multiply_later(std::move(m));
  };
  meet(everyone, "wgmma", &call, body, site);
}
void fence_multiplies(Site site) {
  meet(everyone, "wgmma.fence", nullptr, [](void* const*, uint32_t) { cluster().fence_multiplies(); }, site);
}
void commit_multiplies(Site site) {
  meet(everyone, "wgmma.commit_group", nullptr, [](void* const*, uint32_t) { cluster().commit_multiplies(); }, site);
}
void wait_for_multiplies(int newest_left, Site site) {
  auto body = [](void* const operands[warp_lanes], uint32_t) {
    cluster().wait_for_multiplies(*static_cast<const int*>(operands[0]));
  };
  meet(everyone, "wgmma.wait_group", &newest_left, body, site);
}

}  // namespace fastconv::emulated
