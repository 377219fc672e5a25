// gptq_marlin_gemm of many tokens on Hopper: what the kernel takes, and in which tiles.
#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using namespace many_tokens_mm;

constexpr int kStageK = 64;

// The figures are fitted to the times on an H200 (2026-11-23) of products with uint4b8 and with uint8b128, bf16 and
// groups of 128; M from 64 to 4096, the N and K of Qwen3-VL-235B and DeepSeek-V3. What the model chooses took 0.4%
// longer than the best choice, in the mean.
constexpr TileTime kTimesOf4Bits[] = {
    {0.269f, 2.1f}, {0.341f, 1.9f}, {0.414f, 1.6f}, {0.450f, 2.0f}, {0.531f, 2.0f},
    {0.652f, 2.1f}, {0.340f, 2.4f}, {0.425f, 2.8f}, {0.489f, 3.1f}, {0.589f, 3.0f},
};
constexpr TileTime kTimesOf8Bits[] = {
    {0.293f, 2.3f}, {0.384f, 2.0f}, {0.454f, 1.5f}, {0.458f, 2.2f}, {0.544f, 2.0f},
    {0.638f, 2.9f}, {0.416f, 2.4f}, {0.464f, 2.7f}, {0.552f, 3.1f}, {0.608f, 3.4f},
};

}  // namespace

bool marlin_many_tokens_takes(const MarlinGemmParams& params) {
  constexpr uintptr_t kAlignment = 16;  // of the copy engine
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  constexpr int64_t kMostColumns = int64_t{1} << 29;  // a coordinate of 8-bit weights is twice a column's
  const bool whole_groups =
      params.group_size > 0 && (params.group_size % kStageK == 0 || kStageK % params.group_size == 0);
  const void* const a = params.gathered != nullptr ? params.gathered : params.a;
  return params.groups == nullptr && !params.zeros_are_float && params.k > 0 && params.k % kStageK == 0 &&
         whole_groups && reinterpret_cast<uintptr_t>(params.zeros) % kAlignment == 0 &&
         matrix_map_fits(a, params.m, params.k, params.a_stride * 2) &&
         matrix_map_fits(params.weight, params.k, params.n, params.n) &&
         matrix_map_fits(params.result, params.m, params.n, params.n * 2) && params.n <= kMostColumns &&
         int64_t{ceil_div(params.m, kMarlinTokenTiles[0].tokens)} * ceil_div(params.n, kWarpgroupColumns) <= kMostTiles;
}

Status multiply_marlin_many_tokens(const MarlinGemmParams& params, Stream stream) {
  const TokenTileChoice choice =
      choose_tile(params.m, params.n, static_cast<int>(params.k / kStageK), 1, kMarlinTokenTiles,
                  marlin_bits(params.type) == 4 ? kTimesOf4Bits : kTimesOf8Bits);
  switch (params.type) {
    case MarlinType::kU4:
    case MarlinType::kU4B8:
      return marlin_many_tokens_int4(params, choice, stream);
    case MarlinType::kU8:
    case MarlinType::kU8B128:
      return marlin_many_tokens_int8(params, choice, stream);
    case MarlinType::kE4M3:
      return marlin_many_tokens_e4m3(params, choice, stream);
    default:
      return marlin_many_tokens_e2m1(params, choice, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
