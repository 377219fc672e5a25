// How the CPU target multiplies: eight rows of W (a strip) are decoded a piece at a time into bytes that stay in the
// first-level cache, and dotted with every token there. The decoding alone knows the formats.
//
// For a row r, a token t and a group of 32 elements with its one or two scales (halves h of 16), every kernel computes
//   y    = scale[0] * dot[0] (+ offset[0] * sum[0]) (+ scale[1] * dot[1]) (+ offset[1] * sum[1])
//   acc += d * y
// with dot[h] = sum_j q_W[j] * q_X[j] and sum[h] = sum_j q_X[j] exact in int32, and f32 operations in that order, fused
// where the machine has them. So a result does not depend on which kernel computed it.
#pragma once

#include <cstdint>

#include "kernels/base/tensor_view.h"
#include "kernels/quantization/ggml_decode.h"

namespace sgl_kernel::ggml {

inline constexpr int kStripRows = 8;
inline constexpr int kTileTokens = 16;
inline constexpr int kPieceGroups = 32;  // 1024 elements of a strip: 12 KiB, which leaves room for the tokens

// 32 elements of each of 8 rows. Formats whose q fits in 7 bits without its sign are stored biased: q - kBias is what
// ggml_decode.h says, and offset makes up for it. A format with one scale for the 32 leaves half 1 unset, and one
// without bias and offset leaves the offsets unset.
struct StripGroup {
  alignas(32) uint8_t q[kStripRows][32];
  float scale[2][kStripRows];
  float offset[2][kStripRows];
};

// 32 quantized elements of a token.
struct TokenGroup {
  int8_t q[32];
  float d;
  float sum;  // of q
  float half_sum[2];
};

// The same of 16 tokens: quads of neighbouring elements, interleaved. A lane of a vector is a token.
struct TileGroup {
  alignas(32) int8_t q[8][kTileTokens][4];
  float d[kTileTokens];
  float sum[kTileTokens];
  float half_sum[2][kTileTokens];
};
static_assert(sizeof(TokenGroup) == 48 && sizeof(TileGroup) == kTileTokens * sizeof(TokenGroup));

// What the kernels need to know of a format:
//   kHalves   1 or 2 scales for 32 elements
//   kBias     added to q, so that it is from 0 to kMaxQ
//   kMaxQ     0: q is a signed byte, has no bias, and its format no offset
template <class Block>
struct Packing {
  static constexpr int kHalves = 1, kBias = 0, kMaxQ = 0;
};

template <int kHalves_, int kBias_, int kMaxQ_>
struct PackingOf {
  static constexpr int kHalves = kHalves_, kBias = kBias_, kMaxQ = kMaxQ_;
};
template <>
struct Packing<BlockQ4_0> : PackingOf<1, 8, 15> {};
template <>
struct Packing<BlockQ4_1> : PackingOf<1, 0, 15> {};
template <>
struct Packing<BlockQ4_K> : PackingOf<1, 0, 15> {};
template <>
struct Packing<BlockQ5_0> : PackingOf<1, 16, 31> {};
template <>
struct Packing<BlockQ5_1> : PackingOf<1, 0, 31> {};
template <>
struct Packing<BlockQ5_K> : PackingOf<1, 0, 31> {};
template <>
struct Packing<BlockQ2_K> : PackingOf<2, 0, 63> {};
template <>
struct Packing<BlockQ3_K> : PackingOf<2, 4, 63> {};
template <>
struct Packing<BlockQ6_K> : PackingOf<2, 32, 63> {};
template <>
struct Packing<BlockIQ2_XS> : PackingOf<2, 0, 0> {};
template <>
struct Packing<BlockIQ2_S> : PackingOf<2, 0, 0> {};
template <>
struct Packing<BlockIQ1_M> : PackingOf<2, 0, 0> {};

// Row r of the strip's groups [0, Format<Block>::kSize / 32) from a block.
template <class Block>
void put_block(const Block& block, StripGroup* strip, int r) {
  using P = Packing<Block>;
  constexpr int kSize = Format<Block>::kSize;
  int8_t q[kSize];
  float scale[kSize / 16], offset[kSize / 16] = {};
  decode(block, q, scale, offset);
  for (int g = 0; g < kSize / 32; ++g) {
    for (int j = 0; j < 32; ++j) strip[g].q[r][j] = static_cast<uint8_t>(q[32 * g + j] + P::kBias);
    for (int h = 0; h < P::kHalves; ++h) {
      strip[g].scale[h][r] = scale[2 * g + h];
      if (P::kMaxQ != 0) strip[g].offset[h][r] = offset[2 * g + h] - P::kBias * scale[2 * g + h];
    }
  }
}

// The functions for one format on one machine.
struct Kernels {
  // Decodes `num_blocks` blocks of each of 8 rows, which start at rows[r], and prefetches those `next` bytes behind.
  void (*decode_strip)(StripGroup* strip, const uint8_t* const* rows, int64_t num_blocks, int64_t next);
  // acc[r] += row r of the strip times the token.
  void (*dot_token)(float* acc, const StripGroup* strip, const TokenGroup* token, int64_t num_groups);
  // acc[r * kTileTokens + t] += row r of the strip times token t of the tile. Null: tokens are taken singly.
  void (*dot_tile)(float* acc, const StripGroup* strip, const TileGroup* tile, int64_t num_groups);
  // acc[r] += row r times the token, over the blocks that decode_strip() would decode. Null: through a strip.
  void (*dot_rows)(float* acc, const uint8_t* const* rows, const TokenGroup* token, int64_t num_blocks, int64_t next);
  // Quantizes 32 elements.
  using Quantize = void(TokenGroup* group, const void* x);
  Quantize *quantize_f16, *quantize_bf16, *quantize_f32;
  Quantize* quantize_of(DType dtype) const {
    return dtype == DType::kF16 ? quantize_f16 : dtype == DType::kBF16 ? quantize_bf16 : quantize_f32;
  }
};

Kernels scalar_kernels(int64_t type);

// Only where has_avx2().
Kernels avx2_kernels(int64_t type);

}  // namespace sgl_kernel::ggml
