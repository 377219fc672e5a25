// The products of few rows with keys and values that lie in shared memory as they lie in the cache, of 16 bits or fp8.
//
// fp8 is multiplied as f16, in which it is exact, and converted in registers. A tile of it is loaded as one of half as
// many 16-bit elements a row. That permutes what it holds, but alike where it matters:
//   Q and K   of 16 dimensions the fragments' depths 2t, 2t + 1 and 2t + 8, 2t + 9 hold 4t … 4t + 3
//   V         of 16 dimensions the first product has the even ones and the second the odd ones
#pragma once

#include <type_traits>

#include "kernels/attention/flash_attention_mma.cuh"
#include "kernels/device/fp8.cuh"

namespace sgl_kernel::SGL_TARGET {

// T: the dtype of q, k and v.
template <class T>
struct AttentionTypes {
  static constexpr bool kIsFp8 = std::is_same_v<T, __nv_fp8_e4m3>;
  using Source = T;
  using Element = std::conditional_t<kIsFp8, __half, T>;  // what is multiplied
  using Out = std::conditional_t<kIsFp8, __nv_bfloat16, T>;
  static constexpr int kPerChunk = 16 / sizeof(T);  // elements of a chunk
  // 16-bit elements, of which rows of tiles are made, that hold so many of T.
  static constexpr int words(int elements) { return elements * static_cast<int>(sizeof(T)) / 2; }
};

// The A fragments of 16 rows of Q.
template <class T, int kHeadDim>
__device__ __forceinline__ void load_queries(uint32_t (&queries)[kHeadDim / kMmaRows][4], uint32_t tile, int lane) {
  constexpr int kWords = AttentionTypes<T>::words(kHeadDim);
#pragma unroll
  for (int step = 0; step < kWords / kMmaRows; ++step) {
    if constexpr (AttentionTypes<T>::kIsFp8) {
      uint32_t fp8[4];  // rows g and g + 8 of the first 16 dimensions, then of the next
      load_a<kWords>(fp8, tile, 0, step, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const HalfPairs pairs = half_of_e4m3(fp8[i]);
        queries[2 * step + i / 2][i % 2] = pairs.first;
        queries[2 * step + i / 2][i % 2 + 2] = pairs.second;
      }
    } else {
      load_a<kWords>(queries[step], tile, 0, step, lane);
    }
  }
}

// S = Q K^T of 16 rows and kTiles * 8 keys. Even and odd depths are summed apart: half the chain of dependent products.
template <class T, int kHeadDim, int kTiles>
__device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][4],
                                              const uint32_t (&queries)[kHeadDim / kMmaRows][4], uint32_t key_tile,
                                              int lane) {
  using Element = typename AttentionTypes<T>::Element;
  constexpr int kWords = AttentionTypes<T>::words(kHeadDim);
#pragma unroll
  for (int keys = 0; keys < kTiles; keys += 2) {
    float sums[2][2][4] = {};  // by depth parity
#pragma unroll
    for (int step = 0; step < kWords / kMmaRows; ++step) {
      uint32_t b[4];
      load_b_of_keys<kWords>(b, key_tile, keys * kMmaColumns, step, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (AttentionTypes<T>::kIsFp8) {
          const HalfPairs even = half_of_e4m3(b[2 * i]), odd = half_of_e4m3(b[2 * i + 1]);
          mma<Element>(sums[0][i], queries[2 * step], even.first, even.second);
          mma<Element>(sums[1][i], queries[2 * step + 1], odd.first, odd.second);
        } else {
          mma<Element>(sums[step % 2][i], queries[step], b[2 * i], b[2 * i + 1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[keys + i / 4][i % 4] = sums[0][i / 4][i % 4] + sums[1][i / 4][i % 4];
  }
}

// O += P V of 16 rows and kTiles * 8 keys.
template <class T, int kHeadDimV, int kTiles>
__device__ __forceinline__ void multiply_values(float (&output)[kHeadDimV / kMmaColumns][4],
                                                const float (&probabilities)[kTiles][4], uint32_t value_tile,
                                                int lane) {
  using Element = typename AttentionTypes<T>::Element;
  constexpr int kWords = AttentionTypes<T>::words(kHeadDimV);
#pragma unroll
  for (int keys = 0; keys < kTiles; keys += 2) {
    const float (&left)[4] = probabilities[keys];
    const float (&right)[4] = probabilities[keys + 1];
    const uint32_t p[4] = {pack<Element>(left[0], left[1]), pack<Element>(left[2], left[3]),
                           pack<Element>(right[0], right[1]), pack<Element>(right[2], right[3])};
#pragma unroll
    for (int column = 0; column < kWords / kMmaRows; ++column) {
      uint32_t b[4];
      load_b_of_values<kWords>(b, value_tile, keys * kMmaColumns, column, lane);
      if constexpr (AttentionTypes<T>::kIsFp8) {
        constexpr uint32_t kEvenThenOdd = 0x3120;  // two keys' even dimension, then their odd one
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // 16 dimensions each
          const HalfPairs low = half_of_e4m3(__byte_perm(b[2 * i], 0, kEvenThenOdd));
          const HalfPairs high = half_of_e4m3(__byte_perm(b[2 * i + 1], 0, kEvenThenOdd));
          mma<Element>(output[4 * column + 2 * i], p, low.first, high.first);
          mma<Element>(output[4 * column + 2 * i + 1], p, low.second, high.second);
        }
      } else {
        mma<Element>(output[2 * column], p, b[0], b[1]);
        mma<Element>(output[2 * column + 1], p, b[2], b[3]);
      }
    }
  }
}

// Stores what this lane has of row g + 8 r of O.
template <class T, int kHeadDimV>
__device__ __forceinline__ void store_output_row(float* row, const float (&output)[kHeadDimV / kMmaColumns][4], int r,
                                                 int lane) {
#pragma unroll
  for (int i = 0; i < kHeadDimV / kMmaColumns; i += 2) {
    const float (&a)[4] = output[i];
    const float (&b)[4] = output[i + 1];
    if constexpr (AttentionTypes<T>::kIsFp8) {
      *reinterpret_cast<float4*>(row + i * kMmaColumns + lane % 4 * 4) =
          make_float4(a[2 * r], b[2 * r], a[2 * r + 1], b[2 * r + 1]);
    } else {
      *reinterpret_cast<float2*>(row + i * kMmaColumns + lane % 4 * 2) = make_float2(a[2 * r], a[2 * r + 1]);
      *reinterpret_cast<float2*>(row + (i + 1) * kMmaColumns + lane % 4 * 2) = make_float2(b[2 * r], b[2 * r + 1]);
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET
