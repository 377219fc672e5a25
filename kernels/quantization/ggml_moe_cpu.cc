// The products of a mixture of experts: the tokens are quantized, and then each thread takes some strips of the rows of
// every expert, whose pairs it multiplies together where they stand together.
#include <algorithm>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/ggml_blocks.h"
#include "kernels/quantization/ggml_dot.h"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel::cpu {
namespace {

using namespace sgl_kernel::ggml;

constexpr int kMostTogether = 16;  // pairs that share a decoded strip

void quantize_tokens(TokenGroup* groups, const TensorView& X, const Kernels& kernels) {
  Kernels::Quantize* const quantize = kernels.quantize_of(X.dtype());
  const int64_t num_groups = X.size(1) / 32, element_bytes = size_of(X.dtype());
  parallel_for(X.size(0), /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const char* const row = static_cast<const char*>(X.data()) + token * X.stride(0) * element_bytes;
      for (int64_t g = 0; g < num_groups; ++g) quantize(groups + token * num_groups + g, row + 32 * g * element_bytes);
    }
  });
}

struct Product {
  const ExpertsCall& call;
  const Kernels& kernels;
  const TokenGroup* groups;  // [num_tokens, num_groups]
  TypeInfo info;

  // A strip of rows of an expert, or zeros if W has no such expert, for some pairs.
  void multiply(int64_t strip_index, int32_t expert, const int32_t* pairs, int count) const {
    const int64_t first_row = strip_index * kStripRows, row_bytes = call.W.size(2);
    const int num_rows = static_cast<int>(std::min<int64_t>(kStripRows, call.W.size(1) - first_row));
    alignas(32) float acc[kMostTogether][kStripRows] = {};
    if (expert >= 0 && expert < call.W.size(0)) {
      const uint8_t* const W = call.W.data<uint8_t>() + (expert * call.W.size(1) + first_row) * row_bytes;
      add(W, row_bytes, num_rows, pairs, count, acc);
    }
    for (int i = 0; i < count; ++i) {
      const int64_t at = pairs[i] * call.result.stride(0) + first_row;
      SGL_CPU_SWITCH_FLOAT(call.result.dtype(), T, {
        for (int r = 0; r < num_rows; ++r) call.result.data<T>()[at + r] = static_cast<T>(acc[i][r]);
      });
    }
  }

  void add(const uint8_t* W, int64_t row_bytes, int num_rows, const int32_t* pairs, int count,
           float (*acc)[kStripRows]) const {
    const int64_t num_groups = call.X.size(1) / 32;
    StripGroup strip[kPieceGroups];
    for (int64_t g = 0; g < num_groups; g += kPieceGroups) {
      const int64_t piece = std::min<int64_t>(kPieceGroups, num_groups - g);
      const int64_t num_blocks = 32 * piece / info.block_size, bytes = num_blocks * info.block_bytes;
      const uint8_t* rows[kStripRows];
      for (int r = 0; r < kStripRows; ++r) {
        // Rows past the last one repeat it, and are not stored.
        rows[r] = W + std::min(r, num_rows - 1) * row_bytes + 32 * g / info.block_size * info.block_bytes;
      }
      kernels.decode_strip(strip, rows, num_blocks, /*next=*/bytes);
      for (int i = 0; i < count; ++i) {
        kernels.dot_token(acc[i], strip, groups + pairs[i] / call.top_k * num_groups + g, piece);
      }
    }
  }

  // All pairs.
  void multiply(int64_t begin_strip, int64_t end_strip) const {
    const int64_t real_pairs = call.X.size(0) * call.top_k;
    const int64_t num_pairs =
        call.num_pairs == nullptr ? call.most_pairs : std::clamp<int64_t>(*call.num_pairs, 0, call.most_pairs);
    int32_t together[kMostTogether];
    int count = 0;
    for (int64_t i = 0; i < num_pairs; ++i) {
      const int32_t expert = call.experts[i / call.block];
      const int32_t pair = call.pairs == nullptr ? static_cast<int32_t>(i) : call.pairs[i];
      if (pair >= 0 && pair < real_pairs) together[count++] = pair;
      const bool last = i + 1 == num_pairs || call.experts[(i + 1) / call.block] != expert;
      if (count < kMostTogether && !last) continue;
      if (count > 0) {
        for (int64_t strip = begin_strip; strip < end_strip; ++strip) multiply(strip, expert, together, count);
      }
      count = 0;
    }
  }
};

}  // namespace

Status ggml_multiply_experts(const ExpertsCall& call, Stream) {
  const Kernels kernels = has_avx2() ? avx2_kernels(call.type) : scalar_kernels(call.type);
  TokenGroup* const groups = static_cast<TokenGroup*>(call.workspace.data());
  quantize_tokens(groups, call.X, kernels);
  const Product product = {call, kernels, groups, type_info(call.type)};
  parallel_for((call.W.size(1) + kStripRows - 1) / kStripRows, /*grain=*/1,
               [&](int64_t begin, int64_t end) { product.multiply(begin, end); });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
