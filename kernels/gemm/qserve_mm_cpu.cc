// QServe's products on the CPU: weights are decoded to int16, sums are int32.
#include <algorithm>
#include <cstdint>

#include "kernels/base/float_types.h"
#include "kernels/gemm/qserve_mm_params.h"
#include "kernels/gemm/tiled_mm_cpu.h"

namespace sgl_kernel::cpu {

Status qserve_mm(const QserveMmParams& params, Stream) {
  const auto decode_input = [&](int64_t row, int64_t first, int64_t count, int16_t* to) {
    const int8_t* from = params.input + row * params.input_stride + first;
    std::copy(from, from + count, to);
  };
  const auto decode_weights = [&](int64_t row, int64_t first, int64_t count, int16_t* to) {
    static_assert(kBlockK == kQserveGroup, "a block has one scale");
    int scale = 1, zero = 0;
    if (params.grouped) {
      const int64_t at = params.group_at(row, first / kQserveGroup);
      scale = params.group_scales[at];
      zero = params.group_zeros[at];
    }
    const int shift = row % kQserveTile < kQserveTile / 2 ? 0 : 4;
    for (int64_t i = 0; i < count; ++i) {
      const int weight = params.weights[params.weight_byte(row, first + i)] >> shift & 15;
      to[i] = static_cast<int8_t>(static_cast<uint8_t>(weight * scale + zero));
    }
  };
  const auto numbers = [](const void* halves) { return static_cast<const Half*>(halves); };
  const auto store = [&](int64_t i, int64_t j, int32_t sum) {
    float value = static_cast<float>(sum) * numbers(params.row_scales)[i] * numbers(params.column_scales)[j];
    if (!params.grouped) value -= numbers(params.row_sums)[i] * numbers(params.column_zeros)[j];
    static_cast<Half*>(params.output)[i * params.output_stride + j] = Half(value);
  };
  tiled_mm<int16_t>(params.m, params.n, params.k, decode_input, decode_weights, WholeSums(), store);
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
