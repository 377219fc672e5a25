// The kernels of gptq_marlin_gemm that Hopper alone has. They take a after its columns were gathered.
#pragma once

#include <iterator>

#include "kernels/gemm/many_tokens_tiles_sm90a.h"
#include "kernels/gemm/marlin_gemm_params.h"

namespace sgl_kernel::SGL_TARGET {

// So many tokens, and fewer, are the kernel's for few tokens; more are the one's for many.
inline constexpr int64_t kMarlinFewTokens = 32;

// The tiles of the kernel for many tokens.
inline constexpr many_tokens_mm::TokenTile kMarlinTokenTiles[] = {
    {2, 64}, {2, 128}, {2, 160}, {2, 176}, {2, 208}, {2, 256}, {3, 64}, {3, 96}, {3, 128}, {3, 160},
};
inline constexpr int kMarlinTiles = std::size(kMarlinTokenTiles);

// Whether the kernel for few tokens can take the product: in groups of 32, 64, 128 or 256, or of a multiple of 512, or
// in one, or float4_e2m1f's.
bool marlin_few_tokens_takes(const MarlinGemmParams& params);
Status multiply_marlin_few_tokens(const MarlinGemmParams& params, Stream stream);

// Its instantiations by format.
Status marlin_few_tokens_int4(const MarlinGemmParams& params, Stream stream);
Status marlin_few_tokens_int8(const MarlinGemmParams& params, Stream stream);
Status marlin_few_tokens_e4m3(const MarlinGemmParams& params, Stream stream);
Status marlin_few_tokens_e2m1(const MarlinGemmParams& params, Stream stream);

// Whether the kernel for many tokens can take the weight.
bool marlin_many_tokens_takes(const MarlinGemmParams& params);
Status multiply_marlin_many_tokens(const MarlinGemmParams& params, Stream stream);

// Its instantiations by format.
Status marlin_many_tokens_int4(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream);
Status marlin_many_tokens_int8(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream);
Status marlin_many_tokens_e4m3(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream);
Status marlin_many_tokens_e2m1(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
