// The kernels of gptq_marlin_gemm that Hopper alone has. They take a after its columns were gathered.
#pragma once

#include "kernels/gemm/marlin_gemm_params.h"

namespace sgl_kernel::SGL_TARGET {

// So many tokens, and fewer, are the kernel's for few tokens; so many, and more, the one's for many.
inline constexpr int64_t kMarlinFewTokens = 32, kMarlinManyTokens = 33;

// A tile of the kernel for many tokens (marlin_gemm_many_tokens_sm90a.cuh), and a model of its time: with t tiles on p
// multiprocessors and s stages of 64 along K, ceil(t / p) * (s * stage_us + end_us); with K split over the blocks of a
// cluster s are a block's stages, and kSplitUs + tokens * blocks * kSplitTokenUs join. The figures are fitted to the
// times of products with uint4b8, bf16 and groups of 128 on an H200 (2026-11-23; M from 64 to 8192, the N and K of
// Qwen3-VL-235B and DeepSeek-V3). Of these tiles' times, the ones that the model chooses are 0.6% above the least.
struct TokenTile {
  int tokens;
  float stage_us, end_us;
};

inline constexpr TokenTile kTokenTiles[] = {
    // Decoding takes as long as multiplying by some 100 tokens.
    {64, 0.292f, 1.4f},   {96, 0.333f, 1.62f}, {128, 0.385f, 1.55f}, {160, 0.43f, 1.8f},
    {176, 0.451f, 2.52f}, {208, 0.537f, 2.6f}, {224, 0.566f, 2.42f}, {256, 0.638f, 2.2f},
};
inline constexpr float kSplitUs = 1.2f, kSplitTokenUs = 0.006f;
inline constexpr int kNumTokenTiles = sizeof(kTokenTiles) / sizeof(kTokenTiles[0]);

// Whether the kernel for few tokens can take the product: of integers, in groups of 32 or one of its doubles, or in
// one.
bool marlin_few_tokens_takes(const MarlinGemmParams& params);
Status multiply_marlin_few_tokens(const MarlinGemmParams& params, Stream stream);

// Its instantiations by format.
Status marlin_few_tokens_int4(const MarlinGemmParams& params, Stream stream);
Status marlin_few_tokens_int8(const MarlinGemmParams& params, Stream stream);

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
