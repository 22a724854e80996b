// reorder2d: NCHW to channels_last and back. For each image a matrix of channels and pixels is transposed.
//
// Algorithm: a block takes a square of 64 x 64 elements: rows come 16 bytes a load, are laid in shared memory, and
// their columns leave 16 bytes a store; lines of shared memory are one word longer than the square, so that a column
// lies in many banks. Sides that are no multiple of 16 bytes, or lie off alignment, are moved by elements. Elements are
// bits: every NaN arrives as it was. Bytes: x once, the result once. Limit on H200 (copy 4.3 TB/s):
// reorder2d_n256c64h112w112_bf16nchw moves 822 MB, 191 us; 220 us predicted with 4 blocks of 256 threads a
// multiprocessor, 50 % occupancy; not measured. It loses with few channels, whose squares are nearly empty: 3 of 64
// rows.
#include "cuda/common/launch.h"
#include "cuda/common/shared.h"

namespace fastconv::FASTCONV_GPU {

namespace {

constexpr int turn_threads = 256, side = 64;

template <class T>
struct TransposeParams {
  const T* from;
  T* to;
  int64_t image;      // elements
  int rows, columns;  // of x's matrix
  int across;         // squares of a row
  bool loads_vectors, stores_vectors;
};

template <class T>
FASTCONV_GLOBAL(turn_threads, 4)
transpose(FASTCONV_PARAMS(TransposeParams<T>) p) {
  constexpr int V = wide<T>, of_word = 4 / static_cast<int>(sizeof(T)), pitch = side + of_word;
  const Shared<T> shared = Shared<T>::at(0);
  const Grid block = this_block();
  const int first_row = static_cast<int>(block.x) / p.across * side;
  const int first_column = static_cast<int>(block.x) % p.across * side;
  const T* const from = p.from + block.y * p.image;
  T* const to = p.to + block.y * p.image;
  if (p.loads_vectors) {
    for (int i = this_thread(); i < side * side / V; i += turn_threads) {
      const int row = i / (side / V), column = i % (side / V) * V;
      if (first_row + row >= p.rows || first_column + column >= p.columns) continue;
      const Pack<T, V> pack = load<V>(from + static_cast<int64_t>(first_row + row) * p.columns + first_column + column);
      FASTCONV_UNROLL
      for (int e = 0; e < V; e += of_word) {
        Pack<T, of_word> word;
        FASTCONV_UNROLL
        for (int k = 0; k < of_word; ++k) word.v[k] = pack.v[e + k];
        shared.write(row * pitch + column + e, word);
      }
    }
  } else {
    for (int i = this_thread(); i < side * side; i += turn_threads) {
      const int row = i / side, column = i % side;
      if (first_row + row < p.rows && first_column + column < p.columns)
        shared.put(row * pitch + column,
                   fetch(from + static_cast<int64_t>(first_row + row) * p.columns + first_column + column));
    }
  }
  barrier();
  if (p.stores_vectors) {
    for (int i = this_thread(); i < side * side / V; i += turn_threads) {
      const int column = i / (side / V), row = i % (side / V) * V;
      if (first_row + row >= p.rows || first_column + column >= p.columns) continue;
      Pack<T, V> pack;
      FASTCONV_UNROLL
      for (int e = 0; e < V; ++e) pack.v[e] = shared.get((row + e) * pitch + column);
      store(to + static_cast<int64_t>(first_column + column) * p.rows + first_row + row, pack);
    }
  } else {
    for (int i = this_thread(); i < side * side; i += turn_threads) {
      const int column = i / side, row = i % side;
      if (first_row + row < p.rows && first_column + column < p.columns)
        store(to + static_cast<int64_t>(first_column + column) * p.rows + first_row + row,
              shared.template read<1>(row * pitch + column));
    }
  }
}

std::string refuses(const Problem& p) {
  if (p.epilogue.out_channels) return "It writes dense results, not a channel slice of a larger buffer.";
  if (p.n > most_blocks_yz) return "It has a block layer for each image, but there are " + std::to_string(p.n) + ".";
  if (p.c > most_blocks - side || p.in_pixels() > most_blocks - side)
    return "It numbers channels and pixels in 32 bits, but there are " + std::to_string(p.c) + " and " +
           std::to_string(p.in_pixels()) + ".";
  if (const int64_t blocks = divide_up(p.c, side) * divide_up(p.in_pixels(), side); blocks > most_blocks)
    return "It would start " + std::to_string(blocks) + " blocks an image.";
  return {};
}

template <class T>
void run_as(const Problem& p, const Args& args, Stream stream) {
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t rows = nhwc ? p.in_pixels() : p.c, columns = nhwc ? p.c : p.in_pixels();
  auto whole = [](const void* base, int64_t line) {
    return line % wide<T> == 0 && reinterpret_cast<uintptr_t>(base) % vector_bytes == 0;
  };
  const TransposeParams<T> params{
      static_cast<const T*>(args.x), static_cast<T*>(args.out), rows * columns,
      static_cast<int>(rows),        static_cast<int>(columns), static_cast<int>(divide_up(columns, side)),
      whole(args.x, columns),        whole(args.out, rows)};
  const Grid grid{static_cast<unsigned>(divide_up(rows, side) * params.across), static_cast<unsigned>(p.n)};
  constexpr int64_t shared = int64_t{side} * (side * sizeof(T) + 4);
  launch(transpose<T>, params, grid, turn_threads, shared, stream);
}

void run(const Problem& p, const Args& args, Stream stream) {
  dtype_bytes(p.dtype) == 2 ? run_as<f16>(p, args, stream) : run_as<float>(p, args, stream);
}

}  // namespace

extern const GpuKernelBody reorder2d_fprop_transpose_simt{refuses, no_gpu_workspace, run};

}  // namespace fastconv::FASTCONV_GPU
