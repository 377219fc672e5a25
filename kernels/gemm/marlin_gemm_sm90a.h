// The kernels of gptq_marlin_gemm that Hopper alone has. They take a after its columns were gathered.
#pragma once

#include "kernels/gemm/marlin_gemm_params.h"

namespace sgl_kernel::SGL_TARGET {

// So many tokens, and fewer, are the kernel's for few tokens; so many, and more, the one's for many.
inline constexpr int64_t kMarlinFewTokens = 32, kMarlinManyTokens = 33;

// A tile of the kernel for many tokens (marlin_gemm_many_tokens_sm90a.cuh): so many warpgroups with 64 columns each, by
// so many tokens.
struct TokenTile {
  int warpgroups, tokens;
};

inline constexpr TokenTile kTokenTiles[] = {
    {2, 64}, {2, 128}, {2, 160}, {2, 176}, {2, 208}, {2, 256}, {3, 64}, {3, 96}, {3, 128}, {3, 160},
};
inline constexpr int kMostSplits = 8;  // of K: the blocks of a cluster
inline constexpr int kNumTokenTiles = sizeof(kTokenTiles) / sizeof(kTokenTiles[0]);

// Tokens of a box of the result: a divisor of a tile's. Two such boxes are on their way to memory at a time.
constexpr int token_panel(int tokens) {
  for (int panel : {64, 48, 32}) {
    if (tokens % panel == 0) return panel;
  }
  return 16;
}

// Whether the kernel for few tokens can take the product: in groups of 32 or one of its doubles, or in one, or
// float4_e2m1f's.
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
struct TokenTileChoice {
  int tile;    // an index of kTokenTiles
  int splits;  // of K
};
Status marlin_many_tokens_int4(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream);
Status marlin_many_tokens_int8(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream);
Status marlin_many_tokens_e4m3(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream);
Status marlin_many_tokens_e2m1(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
