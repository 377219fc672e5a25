// QServe's products on Hopper: few tokens times a small matrix go through few_tokens_mm_sm90a.cuh, others through
// qserve_mm_many_tokens_sm90a.cu (both say grid and bound), and those that their copies do not take through the
// portable kernel.
//
// Measured by tools/bench on an H200, 2026-11-23, in µs, in turns with the peer, sgl-kernel 0.4.2:
//   N x K                       9216 x 4096   4096 x 8192   4096 x 1536   7168 x 16384
//   by channel, 1 token         8.9           9.5           3.8           18.6
//                  peer         16.3          25.3          7.6           47.6
//               64 tokens       10.0          9.8           4.5           20.4
//                  peer         21.3          26.7          8.5           53.9
//   by group,   1 token         12.1          11.4          4.1           22.8
//                  peer         19.7          27.6          7.7           52.7
//               64 tokens       13.1          11.7          5.7           24.8
//                  peer         29.1          28.1          7.9           66.8
#include <cuda_fp16.h>

#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/qserve_mm_portable.h"
#include "kernels/gemm/qserve_mm_scale.cuh"
#include "kernels/gemm/qserve_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

// Up to so many tokens, and weights of the matrix, the kernel for few tokens was faster (H200, 2026-11-23); up to
// kMostTokens it is at least faster than the portable one.
constexpr int64_t kFewTokens = 16, kFewWeights = int64_t{1} << 24, kMostTokens = 64;

// The 16 bytes that a lane has of a tile are its operand B of four n8 tiles, so the operand A of two blocks of 16.
template <bool kGrouped>
class QserveWeight {
 public:
  using Params = QserveMmParams;
  using Sum = int;
  static constexpr int kAcross = 2, kAlong = 2;  // tiles of a step
  static constexpr int kColumnBlocks = kAcross * kQserveTile / 16, kStepK = kAlong * kQserveTile;
  static constexpr int kColumnWarps = 2, kTokenBytes = 1, kPadBytes = 16;
  static_assert(kQserveGroup % kStepK == 0);

  struct Step {
    uint4 tiles[kAcross][kAlong];
    uint32_t scales[kAcross], zeros[kAcross];  // of the columns g + 8i, a byte each
  };

  // Of the steps first_step, first_step + stride, …
  __device__ __forceinline__ QserveWeight(const Params& params, int64_t block_column, int column_warp, int first_step,
                                          int stride)
      : params_(params),
        first_column_(block_column + column_warp * 16 * kColumnBlocks),
        step_(first_step),
        stride_(stride) {}

  __device__ __forceinline__ void start() {}

  __device__ __forceinline__ bool has_columns() const { return first_column_ < params_.n; }

  static __device__ __forceinline__ void prefetch(const Params& params, int64_t first_column, int columns, int begin,
                                                  int end) {
    const int across = columns / kQserveTile;  // a row of tiles a thread
    const int64_t row = first_column / kQserveTile + threadIdx.x;
    if (static_cast<int>(threadIdx.x) >= across || row >= params.n / kQserveTile) return;
    const int64_t tiles_along = params.k / kQserveTile;
    const int64_t bytes = (min(static_cast<int64_t>(end) * kAlong, tiles_along) - begin * kAlong) * kQserveTileBytes;
    if (bytes <= 0) return;
    prefetch_bulk_to_l2(params.weights + (row * tiles_along + begin * kAlong) * kQserveTileBytes,
                        static_cast<uint32_t>(min(bytes, static_cast<int64_t>(few_tokens::kPrefetchBytes / across))));
  }

  template <class C>
  static __device__ __forceinline__ void stage_tokens(const Params& params, char* stage, int64_t first_row, int begin,
                                                      int end) {
    few_tokens::copy_tokens<C>(params, reinterpret_cast<const char*>(params.input), params.input_stride, stage,
                               first_row, begin, end);
  }

  __device__ __forceinline__ void load(Step& step) {
    const int index = step_;
    step_ += stride_;
    const int64_t tiles_along = params_.k / kQserveTile;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int across = 0; across < kAcross; ++across) {
      const int64_t row = first_column_ / kQserveTile + across;
      const bool there = row < params_.n / kQserveTile;
#pragma unroll
      for (int along = 0; along < kAlong; ++along) {
        const int64_t tile = static_cast<int64_t>(index) * kAlong + along;
        const uint8_t* const from = params_.weights + (row * tiles_along + tile) * kQserveTileBytes + lane * 16;
        step.tiles[across][along] =
            there && tile < tiles_along ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
      }
      if constexpr (kGrouped) {
        const int64_t at = static_cast<int64_t>(index) * kStepK / kQserveGroup * params_.n + row * kQserveTile;
        step.scales[across] =
            there ? __ldg(reinterpret_cast<const uint32_t*>(params_.group_scales + at) + lane / 4) : 0;
        step.zeros[across] = there ? __ldg(reinterpret_cast<const uint32_t*>(params_.group_zeros + at) + lane / 4) : 0;
      }
    }
  }

  template <int kTokenTiles>
  __device__ __forceinline__ void add(const Step& step, const char* tokens, int pitch,
                                      int (&sums)[kColumnBlocks][kTokenTiles][4]) const {
    const int lane = threadIdx.x % 32;
    uint32_t right[kTokenTiles][4];  // the two halves of a tile along K, then of the next
#pragma unroll
    for (int r = 0; r < kTokenTiles; ++r) {
      load_matrices(right[r], tokens + (8 * r + lane % 8) * pitch + lane / 8 * 16);
    }
#pragma unroll
    for (int along = 0; along < kAlong; ++along) {
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        const uint4& packed = step.tiles[block / 2][along];
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          left[i] = words[i] >> block % 2 * 4;
          if constexpr (kGrouped) {
            const int shift = 8 * (block % 2 * 2 + i % 2);
            left[i] = scale_qserve_weights(left[i], step.scales[block / 2] >> shift & 0xff,
                                           step.zeros[block / 2] >> shift & 0xff);
          } else {
            left[i] &= 0x0f0f0f0f;
          }
        }
#pragma unroll
        for (int r = 0; r < kTokenTiles; ++r) {
          const uint32_t pair[2] = {right[r][2 * along], right[r][2 * along + 1]};
          mma_int8(sums[block][r], left, pair);
        }
      }
    }
  }

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return 16 * (column_warp * kColumnBlocks + block) + 8 * lower + g;
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column, const int (&sum)[4]) {
    const auto number = [](const void* halves, int64_t i) {
      return __half2float(static_cast<const __half*>(halves)[i]);
    };
    const float row_scale = number(params.row_scales, row);
    float value[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      value[e] = static_cast<float>(sum[e]) * row_scale * number(params.column_scales, column + e);
      if (!kGrouped) value[e] -= number(params.row_sums, row) * number(params.column_zeros, column + e);
    }
    __half2* const to =
        reinterpret_cast<__half2*>(static_cast<__half*>(params.output) + row * params.output_stride + column);
    to[0] = __floats2half2_rn(value[0], value[1]);
    to[1] = __floats2half2_rn(value[2], value[3]);
  }

 private:
  const Params& params_;
  const int64_t first_column_;
  int step_;
  const int stride_;
};

bool few_tokens_take(const QserveMmParams& params) {
  constexpr uintptr_t kAlignment = 16, kStoreAlignment = 4;
  const uintptr_t input = reinterpret_cast<uintptr_t>(params.input) | static_cast<uintptr_t>(params.input_stride);
  const uintptr_t output =
      reinterpret_cast<uintptr_t>(params.output) | static_cast<uintptr_t>(params.output_stride) * 2;
  return params.m <= kMostTokens && params.n <= few_tokens::kMostColumns && params.k > 0 && input % kAlignment == 0 &&
         output % kStoreAlignment == 0;
}

}  // namespace

Status qserve_mm(const QserveMmParams& params, Stream stream) {
  const bool few = params.m <= kFewTokens && params.n * params.k <= kFewWeights;
  if (!few && qserve_many_tokens_takes(params)) return multiply_qserve_many_tokens(params, stream);
  if (!few_tokens_take(params)) return qserve_mm_portable(params, stream);
  const char* const name = params.operator_name;
  return params.grouped ? few_tokens::multiply_few<QserveWeight<true>>(name, params, stream)
                        : few_tokens::multiply_few<QserveWeight<false>>(name, params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
