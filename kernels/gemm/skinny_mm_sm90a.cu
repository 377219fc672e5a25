// Skinny bf16 products on Hopper: few columns go through few_tokens_mm_sm90a.cuh (which says grid and bound), many and
// rows that its copies do not take through the portable kernel, which was faster with 2112 columns.
//
// Measured on an H200, 2026-11-23, K = 7168, in µs; torch.mm and the best peer's (sgl-kernel 0.4.2) in the same day's:
//   tokens x columns      1 x 256   1 x 384   16 x 256   16 x 384
//                         3.5       4.4       4.8        6.5
//   torch.mm              7.3       7.6       7.6        7.9
//   peer                  3.1       3.7       7.7        8.1
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/skinny_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileK = 32;  // of which a lane has the run of eight numbers from 8t on, of the columns g and g + 8

template <class Output>
class Bf16Weight {
 public:
  using Params = SkinnyMmParams;
  using Sum = float;
  static constexpr int kTiles = 2, kColumnBlocks = 1, kStepK = kTiles * kTileK;
  static constexpr int kColumnWarps = 1, kTokenBytes = 2, kPadBytes = 64;
  static constexpr bool kSameBits = true;

  struct Step {
    uint4 runs[kTiles][2];
  };

  // Of the steps first_step, first_step + stride, …
  __device__ __forceinline__ Bf16Weight(const Params& params, int64_t block_column, int column_warp, int first_step,
                                        int stride)
      : params_(params),
        first_column_(block_column + column_warp * 16 * kColumnBlocks),
        step_(first_step),
        stride_(stride) {}

  __device__ __forceinline__ void start() {}

  __device__ __forceinline__ bool has_columns() const { return first_column_ < params_.n; }

  static __device__ __forceinline__ void prefetch(const Params& params, int64_t first_column, int columns, int begin,
                                                  int end) {
    const int64_t row = first_column + threadIdx.x;
    if (static_cast<int>(threadIdx.x) >= columns || row >= params.n) return;
    const int64_t k = static_cast<int64_t>(begin) * kStepK;
    const int64_t bytes = (min(static_cast<int64_t>(end) * kStepK, params.k) - k) * 2;
    if (bytes <= 0) return;
    few_tokens::prefetch_bulk_to_l2(
        static_cast<const uint16_t*>(params.b) + row * params.b_stride + k,
        static_cast<uint32_t>(min(bytes, static_cast<int64_t>(few_tokens::kPrefetchBytes / columns))));
  }

  template <class C>
  static __device__ __forceinline__ void stage_tokens(const Params& params, char* stage, int64_t first_row, int begin,
                                                      int end) {
    few_tokens::copy_tokens<C>(params, static_cast<const char*>(params.a), params.a_stride * kTokenBytes, stage,
                               first_row, begin, end);
  }

  __device__ __forceinline__ void load(Step& step) {
    const int index = step_;
    step_ += stride_;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t row = first_column_ + 8 * lower + g;
      const uint16_t* const from = static_cast<const uint16_t*>(params_.b) + row * params_.b_stride;
#pragma unroll
      for (int u = 0; u < kTiles; ++u) {
        const int64_t k = static_cast<int64_t>(index) * kStepK + u * kTileK + 8 * t;
        step.runs[u][lower] =
            row < params_.n && k < params_.k ? __ldg(reinterpret_cast<const uint4*>(from + k)) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  template <int kTokenTiles>
  __device__ __forceinline__ void add(const Step& step, const char* tokens, int pitch,
                                      float (&sums)[kColumnBlocks][kTokenTiles][4]) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      const uint4 &upper = step.runs[u][0], &lower = step.runs[u][1];
#pragma unroll
      for (int r = 0; r < kTokenTiles; ++r) {
        const uint4 right =
            *reinterpret_cast<const uint4*>(tokens + (8 * r + g) * pitch + u * (kTileK * kTokenBytes) + t * 16);
        mma_16x8x16<__nv_bfloat16>(sums[0][r], {upper.x, lower.x, upper.y, lower.y}, right.x, right.y);
        mma_16x8x16<__nv_bfloat16>(sums[0][r], {upper.z, lower.z, upper.w, lower.w}, right.z, right.w);
      }
    }
  }

  static __device__ __forceinline__ int column_of(int, int, int lower, int g) { return 8 * lower + g; }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    Output* const to = static_cast<Output*>(params.output) + row * params.output_stride + column;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < params.n) to[e] = from_float<Output>(sum[e]);
    }
  }

 private:
  const Params& params_;
  const int64_t first_column_;
  int step_;
  const int stride_;
};

template <class Output>
Status choose_tokens(const SkinnyMmParams& params, Stream stream) {
  using Few = few_tokens::Config<Bf16Weight<Output>, 1>;
  using Many = few_tokens::Config<Bf16Weight<Output>, 2>;
  if (params.m <= Few::kTokens) return few_tokens::multiply<Few>(params.operator_name, params, stream);
  constexpr int64_t kMostRows = few_tokens::kMostTiles * Many::kTokens;
  for (int64_t row = 0; row < params.m; row += kMostRows) {
    SkinnyMmParams part = params;
    part.m = std::min(kMostRows, params.m - row);
    part.a = static_cast<const uint16_t*>(params.a) + row * params.a_stride;
    part.output = static_cast<Output*>(params.output) + row * params.output_stride;
    SGL_RETURN_IF_ERROR(few_tokens::multiply<Many>(params.operator_name, part, stream));
  }
  return OkStatus();
}

bool few_tokens_take(const SkinnyMmParams& params) {
  constexpr int kAlignment = 16, kNumbers = kAlignment / 2;
  constexpr int64_t kFewColumns = 1024;
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(params.a) | reinterpret_cast<uintptr_t>(params.b);
  return params.n <= kFewColumns && params.k > 0 && pointers % kAlignment == 0 &&
         (params.a_stride | params.b_stride | params.k) % kNumbers == 0;
}

}  // namespace

Status skinny_mm(const SkinnyMmParams& params, Stream stream) {
  if (!few_tokens_take(params)) return skinny_mm_portable(params, stream);
  return params.output_dtype == DType::kF32 ? choose_tokens<float>(params, stream)
                                            : choose_tokens<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
