#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_blocks.h"
#include "kernels/quantization/ggml_decode.h"
#include "kernels/quantization/ggml_dot.h"

namespace sgl_kernel::ggml {
namespace {

template <class T>
void quantize(TokenGroup* group, const void* x) {
  const T* values = static_cast<const T*>(x);
  constexpr float kLowest = 0x1p-100f;
  float amax = 0;
  bool finite = true;
  for (int j = 0; j < 32; ++j) {
    const float magnitude = std::fabs(static_cast<float>(values[j]));
    finite = finite && magnitude <= std::numeric_limits<float>::max();
    amax = std::max(amax, magnitude);
  }
  *group = {};
  if (!finite) {
    group->d = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (amax < kLowest) return;
  group->d = amax / 127;
  const float inverse = 127 / amax;
  for (int j = 0; j < 32; ++j) {
    group->q[j] = static_cast<int8_t>(std::nearbyint(static_cast<float>(values[j]) * inverse));
    group->half_sum[j / 16] += group->q[j];
  }
  group->sum = group->half_sum[0] + group->half_sum[1];
}

template <class Block>
void decode_strip(StripGroup* strip, const uint8_t* const* rows, int64_t num_blocks, int64_t) {
  for (int r = 0; r < kStripRows; ++r) {
    const Block* blocks = reinterpret_cast<const Block*>(rows[r]);
    for (int64_t b = 0; b < num_blocks; ++b) put_block(blocks[b], strip + b * (Format<Block>::kSize / 32), r);
  }
}

template <class Block>
void dot_token(float* acc, const StripGroup* strip, const TokenGroup* token, int64_t num_groups) {
  using P = Packing<Block>;
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int r = 0; r < kStripRows; ++r) {
      float y = 0;
      for (int h = 0; h < P::kHalves; ++h) {
        constexpr int kLength = 32 / P::kHalves;
        int dot = 0;
        for (int j = h * kLength; j < (h + 1) * kLength; ++j) {
          const int q = P::kMaxQ == 0 ? static_cast<int8_t>(strip[g].q[r][j]) : strip[g].q[r][j];
          dot += q * token[g].q[j];
        }
        y += strip[g].scale[h][r] * static_cast<float>(dot);
        if (P::kMaxQ != 0) y += strip[g].offset[h][r] * (P::kHalves == 1 ? token[g].sum : token[g].half_sum[h]);
      }
      acc[r] += token[g].d * y;
    }
  }
}

}  // namespace

Kernels scalar_kernels(int64_t type) {
  Kernels kernels = {};
  with_block(type, [&]<class Block>() {
    kernels.decode_strip = decode_strip<Block>;
    kernels.dot_token = dot_token<Block>;
    kernels.quantize_f16 = quantize<Half>;
    kernels.quantize_bf16 = quantize<BFloat16>;
    kernels.quantize_f32 = quantize<float>;
  });
  return kernels;
}

}  // namespace sgl_kernel::ggml

namespace sgl_kernel::cpu {
namespace {

using namespace sgl_kernel::ggml;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many items of this many products each are worth a thread of their own: some 3 µs of work. (An element that is
// quantized or decoded takes the time of about 8 products.)
int64_t grain_of(int64_t products) { return divide_up(1 << 16, std::max<int64_t>(products, 1)); }

#if defined(__x86_64__)
SGL_AVX2 void round_eights(Half* out, const float* values, int count) {
  for (int i = 0; i + 8 <= count; i += 8) store8(out + i, load8(values + i));
}
#endif

template <class T>
void round(T* out, const float* values, int count) {
  int i = 0;
#if defined(__x86_64__)
  // The compiler makes vectors of the other types' conversions by itself.
  if constexpr (std::is_same_v<T, Half>) {
    if (has_avx2()) {
      round_eights(out, values, count);
      i = count / 8 * 8;
    }
  }
#endif
  for (; i < count; ++i) out[i] = static_cast<T>(values[i]);
}

// The quantized tokens: `num_tiles` tiles, then those that are left, singly. The same memory for both.
struct Tokens {
  Tokens(void* workspace, int64_t num_tokens, int64_t num_groups, bool use_tiles)
      : num_groups(num_groups), num_tokens(num_tokens), groups(static_cast<TokenGroup*>(workspace)) {
    if (!use_tiles) return;
    // Up to 6 tokens cost less singly than a tile with empty lanes.
    const int64_t rest = num_tokens % kTileTokens;
    num_tiles = num_tokens / kTileTokens + (rest > 6 ? 1 : 0);
  }

  int64_t first_single() const { return std::min(num_tiles * kTileTokens, num_tokens); }
  // Either kind of a token is num_groups groups behind the one before.
  TokenGroup* single(int64_t token) const { return groups + token * num_groups; }
  TileGroup* tile(int64_t index) const { return reinterpret_cast<TileGroup*>(single(index * kTileTokens)); }

  int64_t num_groups;
  int64_t num_tokens;
  int64_t num_tiles = 0;
  TokenGroup* groups;
};

void put_in_tile(TileGroup* tile, const TokenGroup& group, int lane) {
  for (int quad = 0; quad < 8; ++quad) std::memcpy(tile->q[quad][lane], group.q + 4 * quad, 4);
  tile->d[lane] = group.d;
  tile->sum[lane] = group.sum;
  for (int h = 0; h < 2; ++h) tile->half_sum[h][lane] = group.half_sum[h];
}

void quantize_tokens(const Tokens& tokens, const TensorView& X, const Kernels& kernels) {
  Kernels::Quantize* const quantize = kernels.quantize_of(X.dtype());
  const int64_t group_bytes = 32 * size_of(X.dtype()), row_bytes = X.stride(0) * size_of(X.dtype());
  const int64_t num_lanes = tokens.num_tiles * kTileTokens, first_single = tokens.first_single();
  const int64_t lanes_and_singles = num_lanes + tokens.num_tokens - first_single;
  parallel_for(lanes_and_singles, grain_of(8 * 32 * tokens.num_groups), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i < num_lanes ? i : i - num_lanes + first_single;
      const char* row = static_cast<const char*>(X.data()) + token * row_bytes;
      for (int64_t g = 0; g < tokens.num_groups; ++g) {
        if (i >= num_lanes) {
          quantize(tokens.single(token) + g, row + g * group_bytes);
          continue;
        }
        TokenGroup group = {};  // stays zero in the empty lanes of the last tile
        if (token < tokens.num_tokens) quantize(&group, row + g * group_bytes);
        put_in_tile(tokens.tile(i / kTileTokens) + g, group, i % kTileTokens);
      }
    }
  });
}

template <class T>
void store(const TensorView& result, int64_t token, int64_t first_row, int num_rows, const float* acc, int step) {
  float values[kStripRows];
  for (int r = 0; r < kStripRows; ++r) values[r] = acc[r * step];
  round(result.data<T>() + token * result.stride(0) + first_row, values, num_rows);
}

// Strips of W times all tokens, a block of tokens at a time.
struct StripProduct {
  const Kernels& kernels;
  const Tokens& tokens;
  const TensorView& result;
  const TensorView& W;
  TypeInfo info;

  // Tiles or singles [begin, end) of the tokens; `end - begin` is at most kBlock.
  static constexpr int kBlock = 8;

  void multiply(int64_t strip_index, bool tiles, int64_t begin, int64_t end) const {
    const int64_t first_row = strip_index * kStripRows, row_bytes = W.size(1);
    const int num_rows = static_cast<int>(std::min<int64_t>(kStripRows, W.size(0) - first_row));
    const int acc_size = tiles ? kStripRows * kTileTokens : kStripRows;
    alignas(32) float acc[kBlock * kStripRows * kTileTokens];
    std::fill_n(acc, (end - begin) * acc_size, 0.0f);
    StripGroup strip[kPieceGroups];
    const bool directly = kernels.dot_rows != nullptr && !tiles && end - begin == 1;
    const int64_t piece = directly ? tokens.num_groups : kPieceGroups;
    for (int64_t g = 0; g < tokens.num_groups; g += piece) {
      const int64_t num_groups = std::min(piece, tokens.num_groups - g);
      const int64_t offset = 32 * g / info.block_size * info.block_bytes;
      const int64_t num_blocks = 32 * num_groups / info.block_size;
      const uint8_t* rows[kStripRows];
      for (int r = 0; r < kStripRows; ++r) {
        // Rows past the last one repeat it, and are not stored.
        rows[r] = W.data<uint8_t>() + (first_row + std::min(r, num_rows - 1)) * row_bytes + offset;
      }
      // What is read next: the next piece of these rows, or the first one of the next strip.
      const bool last_piece = g + num_groups == tokens.num_groups;
      const int64_t next = last_piece ? kStripRows * row_bytes - offset : num_blocks * info.block_bytes;
      if (directly) {
        kernels.dot_rows(acc, rows, tokens.single(begin), num_blocks, next);
        continue;
      }
      kernels.decode_strip(strip, rows, num_blocks, next);
      for (int64_t i = begin; i < end; ++i) {
        float* sums = acc + (i - begin) * acc_size;
        if (tiles) {
          kernels.dot_tile(sums, strip, tokens.tile(i) + g, num_groups);
        } else {
          kernels.dot_token(sums, strip, tokens.single(i) + g, num_groups);
        }
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const float* sums = acc + (i - begin) * acc_size;
      const int64_t first_token = tiles ? i * kTileTokens : i;
      const int64_t end_token = tiles ? std::min(first_token + kTileTokens, tokens.num_tokens) : i + 1;
      for (int64_t token = first_token; token < end_token; ++token) {
        SGL_CPU_SWITCH_FLOAT(
            result.dtype(), T,
            store<T>(result, token, first_row, num_rows, sums + (token - first_token), tiles ? kTileTokens : 1));
      }
    }
  }

  void multiply(int64_t begin_strip, int64_t end_strip) const {
    for (bool tiles : {true, false}) {
      const int64_t first = tiles ? 0 : tokens.first_single(), last = tiles ? tokens.num_tiles : tokens.num_tokens;
      for (int64_t begin = first; begin < last; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, last);
        for (int64_t strip = begin_strip; strip < end_strip; ++strip) multiply(strip, tiles, begin, end);
      }
    }
  }
};

template <class T, class Block>
void dequantize_blocks(T* out, const Block* blocks, int64_t num_blocks) {
  constexpr int kSize = Format<Block>::kSize;
  int8_t q[kSize];
  float scale[kSize / 16], offset[kSize / 16], values[kSize];
  for (int64_t b = 0; b < num_blocks; ++b) {
    decode(blocks[b], q, scale, offset);
    for (int i = 0; i < kSize; ++i) {
      values[i] = scale[i / 16] * static_cast<float>(q[i]);
      if (Format<Block>::kHasOffset) values[i] += offset[i / 16];
    }
    round(out + b * kSize, values, kSize);
  }
}

}  // namespace

Status ggml_dequantize(TensorView result, TensorView W, int64_t type, int64_t m, int64_t n, Stream) {
  const TypeInfo info = type_info(type);
  parallel_for(m * n / info.block_size, grain_of(8 * info.block_size), [&](int64_t begin, int64_t end) {
    with_block(type, [&]<class Block>() {
      const Block* blocks = reinterpret_cast<const Block*>(W.data());
      SGL_CPU_SWITCH_FLOAT(result.dtype(), T,
                           dequantize_blocks(result.data<T>() + begin * info.block_size, blocks + begin, end - begin));
    });
  });
  return OkStatus();
}

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream) {
  const Kernels kernels = has_avx2() ? avx2_kernels(type) : scalar_kernels(type);
  const int64_t num_tokens = X.size(0), k = X.size(1);
  const Tokens tokens(workspace.data(), num_tokens, k / 32, kernels.dot_tile != nullptr);
  quantize_tokens(tokens, X, kernels);
  const StripProduct product = {kernels, tokens, result, W, type_info(type)};
  parallel_for(divide_up(row, kStripRows), grain_of(kStripRows * k * num_tokens),
               [&](int64_t begin, int64_t end) { product.multiply(begin, end); });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
