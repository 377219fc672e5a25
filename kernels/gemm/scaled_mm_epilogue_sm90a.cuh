// From sums to the output: scales, bias, rounding.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/device/copy_async.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

struct Epilogue {
  ScaleVector row_scales, column_scales;
  const uint16_t* bias;
  int rows, columns;
  bool is_bf16;

  // Behind the last row or column: any scale. Blockwise products have been scaled already.
  __device__ __forceinline__ float row_scale(int row) const {
    if (row_scales.data == nullptr) return 1.0f;
    return __ldg(row_scales.data + min(row, rows - 1) * row_scales.step);
  }
  __device__ __forceinline__ float column_scale(int column) const {
    if (column_scales.data == nullptr) return 1.0f;
    return __ldg(column_scales.data + min(column, columns - 1) * column_scales.step);
  }
  __device__ __forceinline__ float bias_of(int column) const {
    if (bias == nullptr) return 0.0f;
    const uint16_t bits = __ldg(bias + min(column, columns - 1));
    return is_bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : __half2float(__ushort_as_half(bits));
  }

  // Two neighbours, the first one in the low half.
  __device__ __forceinline__ uint32_t round(float first, float second) const {
    if (is_bf16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      return reinterpret_cast<const uint32_t&>(pair);
    }
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

inline Epilogue epilogue_of(const ScaledMmParams& params) {
  return {.row_scales = params.row_scales,
          .column_scales = params.column_scales,
          .bias = static_cast<const uint16_t*>(params.bias),
          .rows = static_cast<int>(params.m),
          .columns = static_cast<int>(params.n),
          .is_bf16 = params.output_dtype == DType::kBF16};
}

// Four tiles of 8 rows of 16 bytes to shared memory: lane i points at row i % 8 of tile i / 8, and gives the pair of
// columns 2 * (i % 4) of row i / 4 of each tile.
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(tiles[0]), "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
               : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
