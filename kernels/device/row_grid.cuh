// The grid of a kernel that streams rows of vectors: threads side by side along a row, blocks over the rest.
//
//   const RowGrid shape = row_grid(vecs_per_row, num_rows, kRows);
//   launch(…, {.grid = shape.grid, .block = shape.block}, stream, …)
//
//   for (RowRange<kRows> rows(num_rows); rows.more(); rows.advance()) {   // in the kernel
//     const int64_t vec = row_vec();                                      // the column of vectors; check its bound
//     for (int i = 0; i < kRows; ++i) { const int64_t row = rows.at(i); if (row < num_rows) … }
//   }
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/base/launch.h"

namespace sgl_kernel::SGL_TARGET {

// Small blocks: many of them keep every multiprocessor busy at few rows, and at many they end at different times.
inline constexpr int kRowGridThreads = 128;

// Above this many vectors any GPU is full several times over, and a thread had better take several rows: more loads in
// flight, fewer blocks to start. Twice the 2048 threads of 256 multiprocessors.
inline constexpr int64_t kManyVecs = int64_t{1} << 20;

struct RowGrid {
  dim3 grid;
  dim3 block;
};

inline RowGrid row_grid(int64_t vecs_per_row, int64_t num_rows, int rows_per_thread) {
  // A power of two along a row: enough for a short row, and where that leaves no thread idle, more than a warp.
  int64_t width = 1;
  while (width < 32 && width < vecs_per_row) width *= 2;
  while (width < kRowGridThreads && width >= 32 && vecs_per_row % (2 * width) == 0) width *= 2;
  const int64_t height = kRowGridThreads / width;
  const int64_t rows_per_block = height * rows_per_thread;
  RowGrid shape;  // the kernel loops over what lies beyond kMostGridY
  shape.block = dim3(static_cast<unsigned>(width), static_cast<unsigned>(height));
  shape.grid = dim3(static_cast<unsigned>((vecs_per_row + width - 1) / width),
                    static_cast<unsigned>(std::min(kMostGridY, (num_rows + rows_per_block - 1) / rows_per_block)));
  return shape;
}

// The column of vectors of this thread.
__device__ __forceinline__ int64_t row_vec() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// The rows of this thread, kRows at a time.
template <int kRows>
class RowRange {
 public:
  __device__ __forceinline__ explicit RowRange(int64_t num_rows)
      : num_rows_(num_rows), row_(static_cast<int64_t>(blockIdx.y) * (blockDim.y * kRows) + threadIdx.y) {}
  __device__ __forceinline__ bool more() const { return row_ < num_rows_; }
  __device__ __forceinline__ void advance() { row_ += static_cast<int64_t>(gridDim.y) * (blockDim.y * kRows); }
  // Those behind the first may be num_rows or more.
  __device__ __forceinline__ int64_t at(int i) const { return row_ + i * static_cast<int>(blockDim.y); }

 private:
  int64_t num_rows_;
  int64_t row_;
};

}  // namespace sgl_kernel::SGL_TARGET
