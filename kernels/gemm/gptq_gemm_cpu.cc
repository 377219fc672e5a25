// GPTQ weights on the CPU.
#include <algorithm>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gptq_gemm_params.h"
#include "kernels/gemm/gptq_layout.h"
#include "kernels/gemm/mixed_mm_cpu.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int kMostUnitWords = 3;

// Writes rows first_k … of the columns first_n … of the weight.
void decode_panel(const GptqGemmParams& params, int64_t first_k, int64_t depth, int64_t first_n, float* panel) {
  const int bits = params.num_bits, words = gptq_unit_words(bits), numbers = gptq_unit_numbers(bits);
  const int64_t columns = std::min(kPanelColumns, params.n - first_n);
  const Half* const scales = static_cast<const Half*>(params.scales);
  const int64_t group_size = params.groups == nullptr ? params.k / params.num_groups : 0;
  int64_t group = -1;
  float scale[kPanelColumns] = {}, zero[kPanelColumns] = {};
  for (int64_t k = first_k; k < first_k + depth; ++k) {
    const int64_t next = params.groups == nullptr ? k / group_size : params.groups[k];
    if (next != group) {
      group = next;
      const uint32_t* const zeros = params.zeros + group * (params.n / 32 * bits);
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t n = first_n + c;
        const uint32_t stored = gptq_number(bits, zeros + n / numbers * words, 1, static_cast<int>(n % numbers));
        zero[c] = static_cast<float>(stored + 1);
        scale[c] = static_cast<float>(scales[group * params.n + n]);
      }
    }
    const uint32_t* const units = params.weight + k / numbers * words * params.n + first_n;
    const int i = static_cast<int>(k % numbers);
    float* const row = panel + (k - first_k) * kPanelColumns;
    for (int64_t c = 0; c < columns; ++c) {
      const uint32_t number = params.shuffled ? gptq_shuffled_number(bits, units + c, params.n, i)
                                              : gptq_number(bits, units + c, params.n, i);
      row[c] = (static_cast<float>(number) - zero[c]) * scale[c];
    }
    std::fill(row + columns, row + kPanelColumns, 0.0f);
  }
}

}  // namespace

Status shuffle_gptq(const GptqShuffleParams& params, Stream) {
  const int bits = params.num_bits, words = gptq_unit_words(bits), numbers = gptq_unit_numbers(bits);
  const uint32_t* source = params.weight;
  if (params.perm != nullptr) {
    std::memcpy(params.workspace, params.weight, static_cast<size_t>(params.k / 32 * bits * params.n) * 4);
    source = params.workspace;
  }
  parallel_for(params.k / numbers, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t n = 0; n < params.n; ++n) {
        uint32_t unit[kMostUnitWords] = {};
        for (int i = 0; i < numbers; ++i) {
          const int64_t k = params.perm == nullptr ? row * numbers + i : params.perm[row * numbers + i];
          const uint32_t* const from = source + k / numbers * words * params.n + n;
          gptq_put_shuffled(bits, unit, i, gptq_number(bits, from, params.n, static_cast<int>(k % numbers)));
        }
        for (int word = 0; word < words; ++word) params.weight[(row * words + word) * params.n + n] = unit[word];
      }
    }
  });
  return OkStatus();
}

Status multiply_gptq(const GptqGemmParams& params, Stream) {
  const MixedProduct<Half> product = {
      .output = static_cast<Half*>(params.result),
      .output_stride = params.n,
      .a = static_cast<const Half*>(params.a),
      .a_stride = params.k,
      .a_columns = params.columns,
      .m = params.m,
      .n = params.n,
      .k = params.k,
      .factor = 1.0f,
  };
  multiply_mixed(product, [&](int64_t first_k, int64_t depth, int64_t first_n, float* panel) {
    decode_panel(params, first_k, depth, first_n, panel);
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
