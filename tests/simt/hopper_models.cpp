// The emulator's sm_90 against naive models of each instruction. Prints what fails; exits with the number of failures.
#include "hopper_world.h"

namespace {

// --- what must work -------------------------------------------------------------------------------------------------
// Two buffers, four rounds: a producer warp and a group that adds what it is brought.
void rounds(World world) {
  const Mbarrier full = Mbarrier::at(0), empty = Mbarrier::at(16);
  if (this_thread() == 0) {
    for (int i = 0; i < 2; ++i) (full + i).make(1), (empty + i).make(4);
    Mbarrier::fence_made();
  }
  barrier();
  constexpr int count = 5;
  if (this_thread() >= 128) {
    if (this_thread() != 128) return;
    for (int i = 0; i < count; ++i) {
      (empty + i % 2).wait(static_cast<unsigned>(i / 2 % 2 ^ 1));
      (full + i % 2).arrive_expecting(box_bytes);
      load_box(world.map, tile(i % 2 * box_bytes), full + i % 2, 0, 0);
    }
    return;
  }
  float sums[32];
  for (int i = 0; i < count; ++i) {
    (full + i % 2).wait(static_cast<unsigned>(i / 2 % 2));
    fence_products();
    const uint64_t both = operand(i % 2 * box_bytes);
    Product::multiply<Lies::along, Lies::along>(sums, both, both, i > 0);
    commit_products();
    wait_products<1>();
    if (i > 0 && this_thread() % 32 == 0) (empty + (i - 1) % 2).arrive();
  }
  wait_products<0>();
  for (int i = 0; i < 32; ++i) world.out[this_thread() * 32 + i] = sums[i];
}

int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// Whether they give what the matrix times itself gives, over its first 16 columns.
bool rounds_are_right(const World& world, uint64_t seed) {
  start(rounds, world, seed, 160);
  bool equal = true;
  for (int t = 0; t < 128; ++t)
    for (int i = 0; i < 32; ++i) {
      float sum = 0;
      for (int k = 0; k < 16; ++k)
        sum += to_float(matrix[static_cast<size_t>(row_of(t, i) * 64 + k)]) *
               to_float(matrix[static_cast<size_t>(column_of(t, i) * 64 + k)]);
      equal &= floats[static_cast<size_t>(t * 32 + i)] == 5 * sum;
    }
  return equal;
}
void check_rounds() {
  World world = plain_world();
  for (uint64_t seed = 0; seed < seeds; ++seed) expect(rounds_are_right(world, seed), "five rounds of two stages");
  world.map.swizzle = 0;
  expect(!rounds_are_right(world, 1), "a box without its swizzle was multiplied rightly");
}

void named_passes_on(World world) {
  const Shared<int> all = Shared<int>::at(0);
  if (this_thread() < 64) {
    all.put(this_thread(), this_thread());
    named_arrive(3, 128);
  } else {
    named_wait(3, 128);
    world.out[this_thread() - 64] = static_cast<float>(all.get(127 - this_thread()));
  }
}
void lanes_joined(World world) {
  const Shared<int> all = Shared<int>::at(0);
  all.put(this_thread(), this_thread());
  join_lanes();
  world.out[this_thread()] = static_cast<float>(all.get(this_thread() ^ 1));
}
void check_barriers() {
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    start(named_passes_on, plain_world(), seed);
    for (int i = 0; i < 64; ++i) expect(floats[static_cast<size_t>(i)] == static_cast<float>(63 - i), "bar.arrive");
    start(lanes_joined, plain_world(), seed);
    for (int i = 0; i < 128; ++i) expect(floats[static_cast<size_t>(i)] == static_cast<float>(i ^ 1), "syncwarp");
  }
}

// --- products: operands written element by element by the manual's tables, not by descriptors -----------------------
// Byte of element (row, k) of an operand, by "Shared Memory Matrix Layout": atoms of eight lines of a span.
template <class T>
int byte_in(bool across, int span, int rows, int row, int k) {
  const int in_chunk = 16 / static_cast<int>(sizeof(T)), byte = static_cast<int>(sizeof(T));
  auto swizzle = [&](int line, int chunk) { return span == 16 ? chunk : chunk ^ line % 8 * (span / 16) / 8; };
  const int width = span / 16;
  if (!across) {
    if (width == 1) return (k / in_chunk * rows + row) * 16 + k % in_chunk * byte;  // [chunk of depth][row]
    return row * span + swizzle(row, k / in_chunk) * 16 + k % in_chunk * byte;
  }
  const int chunk = row / in_chunk;
  if (width == 1) return ((chunk * 2 + k / 8) * 8 + k % 8) * 16 + row % in_chunk * byte;  // [rows][8 of depth][k]
  return (chunk / width * 16 + k) * span + swizzle(k, chunk % width) * 16 + row % in_chunk * byte;
}
uint64_t descriptor(bool across, int span, int rows, const char* at) {
  const uint64_t layout = span == 128 ? 1 : span == 64 ? 2 : span == 32 ? 3 : 0;
  int leading = 16, stride = 8 * span;
  if (across) leading = 16 * span, stride = 8 * span;  // from span to span of rows; from eight of depth to the next
  if (span == 16) leading = across ? 128 : rows * 16, stride = across ? 256 : 128;
  return (matrix_at(at, leading, stride) & ~(uint64_t{3} << 62)) | layout << 62;
}

struct Case {
  bool across_a, across_b, registers;
  int span;
};
Case now;

template <class T>
constexpr int depth_of = 32 / static_cast<int>(sizeof(T));
float left_at(int row, int k) { return static_cast<float>((row * 5 + k * 3) % 9 - 4); }
float right_at(int column, int k) { return static_cast<float>((column * 7 + k * 2) % 7 - 3); }

template <class T, int Columns>
void one_product(World world) {
  constexpr int b_at = 32 << 10, depth = depth_of<T>;
  auto fill = [&](int at, bool across, int rows, auto value) {
    for (int i = this_thread(); i < rows * depth; i += 128) {
      const int row = i / depth, k = i % depth;
      Shared<T>{reinterpret_cast<T*>(tile(at + byte_in<T>(across, now.span, rows, row, k)))}.put(
          0, narrow<T>(value(row, k)));
    }
  };
  fill(0, now.across_a, 64, left_at);
  fill(b_at, now.across_b, Columns, right_at);
  fence_for_copies();
  barrier();
  float sums[Columns / 2];
  for (int i = 0; i < Columns / 2; ++i) sums[i] = static_cast<float>(i);
  const uint64_t a = descriptor(now.across_a, now.span, 64, tile()),
                 b = descriptor(now.across_b, now.span, Columns, tile(b_at));
  uint32_t own[4] = {};
  const int thread = this_thread(), lane = thread % 32, each = 4 / static_cast<int>(sizeof(T));
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < each; ++e) {
      const T v =
          narrow<T>(left_at(thread / 32 * 16 + lane / 4 + i % 2 * 8, lane % 4 * each + e + depth / 2 * (i / 2)));
      std::memcpy(reinterpret_cast<char*>(own + i) + e * sizeof(T), &v, sizeof v);
    }
  fence_products();
  using P = GroupProduct<T, Columns>;
  for (int twice = 0; twice < 2; ++twice) {
    if (now.registers) {
      if (now.across_b)
        P::template multiply<Lies::across>(sums, own, b, true);
      else
        P::template multiply<Lies::along>(sums, own, b, true);
    } else if (now.across_a) {
      if (now.across_b)
        P::template multiply<Lies::across, Lies::across>(sums, a, b, true);
      else
        P::template multiply<Lies::across, Lies::along>(sums, a, b, true);
    } else {
      if (now.across_b)
        P::template multiply<Lies::along, Lies::across>(sums, a, b, true);
      else
        P::template multiply<Lies::along, Lies::along>(sums, a, b, true);
    }
    commit_products();
  }
  wait_products<1>();
  if (!__builtin_isnan(sums[0])) world.out[0] = 1;  // the second is still on its way
  wait_products<0>();
  for (int i = 0; i < Columns / 2; ++i) world.out[64 + thread * (Columns / 2) + i] = sums[i];
}

template <class T, int Columns>
void check_product(const char* name) {
  for (bool across_a : {false, true})
    for (bool across_b : {false, true})
      for (bool registers : {false, true})
        for (int span : {16, 32, 64, 128}) {
          if ((sizeof(T) == 4 && (across_a || across_b)) || (registers && across_a)) continue;
          now = {across_a, across_b, registers, span};
          World world = plain_world();
          floats[0] = 0;
          start(one_product<T, Columns>, world, static_cast<uint64_t>(span));
          bool equal = floats[0] == 0;
          for (int t = 0; t < 128; ++t)
            for (int i = 0; i < Columns / 2; ++i) {
              float sum = static_cast<float>(i);
              for (int k = 0; k < depth_of<T>; ++k) sum += 2 * left_at(row_of(t, i), k) * right_at(column_of(t, i), k);
              equal &= floats[static_cast<size_t>(64 + t * (Columns / 2) + i)] == sum;
            }
          expect(equal, std::string("wgmma of ") + name + " n" + std::to_string(Columns) + " span " +
                            std::to_string(span) + (across_a ? " A across" : "") + (across_b ? " B across" : "") +
                            (registers ? " A in registers" : ""));
        }
}

// --- boxes -------------------------------------------------------------------------------------------------------
int swizzled_place(int byte, int span) {  // by chunks of a line: Table of swizzle modes
  if (!span) return byte;
  const int line = byte / 128, chunk = byte / 16 % 8;
  const int bits = span / 16 - 1;
  return line * 128 + (chunk ^ (line & bits)) * 16 + byte % 16;
}

void check_tiled() {
  constexpr int c = 20, w = 7, h = 5;
  source.resize(c * w * h);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(i + 1);
  for (int span : {0, 32, 64, 128})
    for (const std::vector<int>& corner : {std::vector<int>{0, 0, 0}, {4, -2, 3}, {-4, 5, -1}, {16, 6, 4}, {40, 0, 0}})
      for (int step : {1, 2}) {
        const int wide = span ? span / 4 : 12;
        World world;
        world.out = floats.data();
        world.map = tiled_map<float, 3>({source.data(), {c, w, h}, {c * 4, c * w * 4}, span}, {wide, 4, 3});
        world.map.step[1] = step, world.map.round_tf32 = false;
        from = corner;
        const Allowed allowed({{source.data(), static_cast<int64_t>(source.size() * 4), false}});
        start(keep_box, world, 2);
        bool equal = true;
        const int lines = (4 + step - 1) / step;
        for (int z = 0; z < 3; ++z)
          for (int y = 0; y < lines; ++y)
            for (int x = 0; x < wide; ++x) {
              const int cx = corner[0] + x, cy = corner[1] + y * step, cz = corner[2] + z;
              const bool in = cx >= 0 && cx < c && cy >= 0 && cy < w && cz >= 0 && cz < h;
              const float want = in ? source[static_cast<size_t>((cz * w + cy) * c + cx)] : 0;
              const int byte = ((z * lines + y) * wide + x) * 4;
              equal &= floats[static_cast<size_t>(swizzled_place(byte, span) / 4)] == want;
            }
        expect(equal, "a tiled load, swizzle " + std::to_string(span) + ", corner " + std::to_string(corner[0]));
      }
}

// Windows of 3 x 2 with strides, dilation and padding, listed pixel by pixel.
void check_im2col() {
  constexpr int c = 8, w = 9, h = 6, n = 3;
  source.resize(c * w * h * n);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(i + 1);
  for (int stride : {1, 2, 3})
    for (int pad : {0, 1, 2}) {
      const int taps_x = 3, taps_y = 2, dilation = 2;
      const int outs_x = (w + 2 * pad - dilation * (taps_x - 1) - 1) / stride + 1,
                outs_y = (h + 2 * pad - dilation * (taps_y - 1) - 1) / stride + 1;
      World world;
      world.out = floats.data();
      const std::array<int, 2> upper{pad - dilation * (taps_x - 1), pad - dilation * (taps_y - 1)};
      world.map = im2col_map<float>({source.data(), {c, w, h, n}, {c * 4, w * c * 4, h * w * c * 4}, 32},
                                    {{-pad, -pad}, upper, {stride, stride}, 8, 50});
      world.map.round_tf32 = false;
      const Allowed allowed({{source.data(), static_cast<int64_t>(source.size() * 4), false}});
      for (int first : {0, 1, outs_x, outs_x * outs_y + 1})
        for (int t = 0; t < taps_x * taps_y; ++t) {
          const int s = t % taps_x, r = t / taps_x;
          auto place = [&](int pixel) {
            return std::array<int, 3>{pixel % outs_x * stride - pad, pixel / outs_x % outs_y * stride - pad,
                                      pixel / outs_x / outs_y};
          };
          const auto at = place(first);
          from = {0, at[0], at[1], at[2]}, tap = {s * dilation, r * dilation};
          start(keep_box, world, 3);
          bool equal = true;
          for (int i = 0; i < 50; ++i)
            for (int channel = 0; channel < c; ++channel) {
              const auto [x, y, z] = place(first + i);
              const int xx = x + s * dilation, yy = y + r * dilation;
              const bool in = xx >= 0 && xx < w && yy >= 0 && yy < h && z < n;
              const float want = in ? source[static_cast<size_t>(((z * h + yy) * w + xx) * c + channel)] : 0;
              equal &= floats[static_cast<size_t>(swizzled_place((i * c + channel) * 4, 32) / 4)] == want;
            }
          expect(equal, "an im2col load, stride " + std::to_string(stride) + ", padding " + std::to_string(pad));
        }
    }
  tap = {0, 0};
}

// Floats 0, 1, ... in shared memory, clipped at the tensor's edges on the way out.
void store_numbers(World world) {
  const Shared<float> own = Shared<float>::at(tile_at);
  for (int i = this_thread(); i < 8 * 32; i += 128)
    own.put(swizzled_place(i * 4, world.map.swizzle) / 4, static_cast<float>(i));
  fence_for_copies();
  barrier();
  if (this_thread() == 0) {
    store_box(world.map, tile(), world.from, 3);
    commit_boxes();
    wait_boxes<0>();
    own.put(0, -1);
  }
}
void check_store() {
  for (int span : {0, 128})
    for (int first : {0, 16, -4}) {
      constexpr int c = 40, rows = 7;
      std::vector<float> to(c * rows, -7);
      World world;
      world.map = tiled_map<float, 2>({to.data(), {c, rows}, {c * 4}, span}, {32, 8}, Moves::out);
      world.from = first;
      const Allowed allowed({{to.data(), static_cast<int64_t>(to.size() * 4), true}});
      start(store_numbers, world, 1);
      bool equal = true;
      for (int y = 0; y < rows; ++y)
        for (int x = 0; x < c; ++x) {
          const bool in = y >= 3 && x >= first && x < first + 32;
          equal &= to[static_cast<size_t>(y * c + x)] == (in ? static_cast<float>((y - 3) * 32 + x - first) : -7);
        }
      expect(equal, "a bulk store, swizzle " + std::to_string(span) + ", from " + std::to_string(first));
    }
}

}  // namespace

int main() {
  check_barriers();
  check_rounds();
  check_product<f16, 64>("f16");
  check_product<bf16, 32>("bf16");
  check_product<bf16, 128>("bf16");
  check_product<bf16, 256>("bf16");
  check_product<float, 64>("tf32");
  check_product<float, 128>("tf32");
  check_product<float, 256>("tf32");
  check_tiled();
  check_im2col();
  check_store();
  if (!failures) std::printf("ok\n");
  return failures;
}
