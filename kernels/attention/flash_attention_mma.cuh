// What the portable attention kernels share: asynchronous copies into swizzled shared memory, the tensor cores of sm_80
// and their fragments, and the online softmax.
//
// A fragment of mma.m16n8k16 lies over a warp as follows, for lane = 4 * g + t:
//   accumulator [16, 8]   [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t + 1]
//   A [16, 16]            pairs from k = 2t: row g, row g + 8, then both again from k = 2t + 8
//   B [16, 8]             pairs from k = 2t, then from k = 2t + 8, of column g
// so that two neighbouring accumulators of S are, rounded, the A fragment of P.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention/flash_attention_params.h"
#include "kernels/attention/flash_attention_rows.cuh"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kWarp = 32;
inline constexpr int kMmaRows = 16;    // rows of an A fragment, and its depth
inline constexpr int kMmaColumns = 8;  // columns of a B fragment
inline constexpr int kChunk = 8;       // elements in the 16 bytes of one asynchronous copy
inline constexpr int64_t kNoRow = -1;  // the offset of a row that is filled with zeros

// 16 bytes, or 16 zeros if not `valid`; `source` is not read then, but must be an address.
__device__ __forceinline__ void copy_chunk_async(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

// How the chunks of a row of kDim 16-bit elements are permuted, by an exclusive or with swizzle_of_row(), so that one
// chunk of eight neighbouring rows is spread over all banks: in groups of eight, or, where two rows make up a multiple
// of all banks, of four. A tile of fp8 is one of half as many 16-bit elements a row.
template <int kDim>
inline constexpr int kSwizzledChunks = kDim % (8 * kChunk) == 0 ? 8 : 4;

template <int kDim>
__device__ __forceinline__ int swizzle_of_row(int row) {
  static_assert(kDim % (4 * kChunk) == 0);
  return kSwizzledChunks<kDim> == 8 ? row & 7 : row >> 1 & 3;
}

// The byte offset of a chunk of a row.
template <int kDim>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return row * (kDim * 2) + ((chunk ^ swizzle_of_row<kDim>(row)) * 16);
}

// Copies kRows rows, at the given offsets from `base`, into a tile of shared memory, by kThreads threads.
template <class T, int kThreads, int kDim, int kRows>
__device__ __forceinline__ void copy_rows(uint32_t tile, const T* base, const int64_t* offsets, int dim) {
  constexpr int kChunks = kDim / kChunk;
  static_assert(kRows * kChunks % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int row = (i * kThreads + threadIdx.x) / kChunks, chunk = (i * kThreads + threadIdx.x) % kChunks;
    const int64_t from = offsets[row];
    const bool valid = from != kNoRow && chunk * kChunk < dim;
    copy_chunk_async(tile + swizzled<kDim>(row, chunk), valid ? base + from + chunk * kChunk : base, valid);
  }
}

__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

// The address of chunk 2 * step + odd of a row. Only one exclusive or depends on the step, which is a constant where
// this is inlined; tiles begin at multiples of 128 bytes.
template <int kDim>
__device__ __forceinline__ uint32_t chunk_address(uint32_t tile, int row, int odd, int step) {
  constexpr int kChunks = kSwizzledChunks<kDim>;
  return ((tile + swizzled<kDim>(row, odd)) ^ (2 * step % kChunks * 16)) + 2 * step / kChunks * (kChunks * 16);
}

// The A fragment of rows [row, row + 16) and columns [16 step, 16 step + 16) of a tile in shared memory.
template <int kDim>
__device__ __forceinline__ void load_a(uint32_t (&fragment)[4], uint32_t tile, int row, int step, int lane) {
  load_matrices(fragment, chunk_address<kDim>(tile, row + lane % 16, lane / 16, step));
}

// Two B fragments of K^T: keys [key, key + 16) in columns, dimensions [16 step, 16 step + 16) in rows. [0] and [1] are
// the first eight keys' fragment, [2] and [3] the others'.
template <int kDim>
__device__ __forceinline__ void load_b_of_keys(uint32_t (&fragment)[4], uint32_t tile, int key, int step, int lane) {
  load_matrices(fragment, chunk_address<kDim>(tile, key + lane / 16 * 8 + lane % 8, lane / 8 % 2, step));
}

// Two B fragments of V: keys [key, key + 16) in rows, dimensions [16 step, 16 step + 16) in columns.
template <int kDim>
__device__ __forceinline__ void load_b_of_values(uint32_t (&fragment)[4], uint32_t tile, int key, int step, int lane) {
  load_matrices_transposed(fragment, chunk_address<kDim>(tile, key + lane % 16, lane / 16, step));
}

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// How raw products of q and k become exponents of 2. With a softcap the scores are capped first.
struct ScoreScale {
  float softcap;        // 0: none
  float before_cap;     // score_scale() / softcap
  float log2_per_unit;  // what a score is multiplied by under exp2: kLog2E, times score_scale() if nothing is capped
};

__device__ __forceinline__ ScoreScale score_scale_of(const AttentionParams& params, int batch, int kv_head) {
  const float scale = params.score_scale(batch, kv_head);
  if (params.softcap > 0.0f) return {params.softcap, scale / params.softcap, kLog2E};
  return {0.0f, 0.0f, scale * kLog2E};
}

// softcap * tanh(score * before_cap), by tanh(x) = 1 - 2 / (e^2x + 1).
__device__ __forceinline__ float cap(float score, const ScoreScale& scale) {
  const float power = exp2_approx(2.0f * kLog2E * scale.before_cap * score);
  return scale.softcap * (1.0f - __fdividef(2.0f, power + 1.0f));
}

// The running softmax of the two rows (g and g + 8) of which a lane holds a part.
struct RowPair {
  float max[2];  // of the scores so far, -infinity at first
  float sum[2];  // of exp(score - max), of this lane's columns only until finish()

  __device__ __forceinline__ RowPair() : max{negative_infinity(), negative_infinity()}, sum{0.0f, 0.0f} {}

  // Turns the scores of one tile into probabilities relative to the new maximum. correction[r] is what the output so
  // far must be multiplied by.
  template <int kTiles>
  __device__ __forceinline__ void update(float (&scores)[kTiles][4], float log2_per_unit, float (&correction)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile_max = max[r];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) tile_max = fmaxf(tile_max, fmaxf(scores[i][2 * r], scores[i][2 * r + 1]));
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 1));
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 2));
      // While no key is visible the maximum is -infinity, and -infinity - -infinity would be NaN.
      const float shift = tile_max == negative_infinity() ? 0.0f : tile_max * log2_per_unit;
      correction[r] = exp2_approx(max[r] * log2_per_unit - shift);
      max[r] = tile_max;
      float tile_sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        scores[i][2 * r] = exp2_approx(scores[i][2 * r] * log2_per_unit - shift);
        scores[i][2 * r + 1] = exp2_approx(scores[i][2 * r + 1] * log2_per_unit - shift);
        tile_sum += scores[i][2 * r] + scores[i][2 * r + 1];
      }
      sum[r] = sum[r] * correction[r] + tile_sum;
    }
  }

  // Adds up the four lanes' parts of the sums.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }
};

// The scores of keys that a row does not see become -infinity, whatever they were. `first_key` is the key of column 0.
template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&scores)[kTiles][4], const KeyRange (&visible)[2], int first_key,
                                            int lane) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = first_key + i * kMmaColumns + lane % 4 * 2 + e % 2;
      const KeyRange& range = visible[e / 2];
      if (key < range.begin || key >= range.end) scores[i][e] = negative_infinity();
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET
