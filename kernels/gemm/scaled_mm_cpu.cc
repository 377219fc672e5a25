// Scaled products of 8-bit matrices on CPUs without AMX: e4m3 and e5m2 are decoded to f32, int8 to int16. Bound by
// decoding up to four rows (scaled_mm_few_rows_cpu.h), by multiply-adds beyond.
#include <cstdint>
#include <type_traits>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"
#include "kernels/gemm/scaled_mm_amx_cpu.h"
#include "kernels/gemm/scaled_mm_few_rows_cpu.h"
#include "kernels/gemm/scaled_mm_params.h"
#include "kernels/gemm/tiled_mm_cpu.h"

namespace sgl_kernel::cpu {
namespace {

static_assert(kBlockK == kScaleBlock, "a block has one scale");

void plain_decode(const Float8E4M3* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}
void plain_decode(const int8_t* from, int64_t count, int16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

#ifdef SGL_AVX2

SGL_AVX2 void avx2_decode(const Float8E4M3* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store8(to + i, load8(from + i));
  plain_decode(from + i, count - i, to + i);
}

SGL_AVX2 void avx2_decode(const int8_t* from, int64_t count, int16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_cvtepi8_epi16(bytes));
  }
  plain_decode(from + i, count - i, to + i);
}

template <class Encoded, class Decoded>
void decode(const Encoded* from, int64_t count, Decoded* to) {
  has_avx2() ? avx2_decode(from, count, to) : plain_decode(from, count, to);
}

#else

template <class Encoded, class Decoded>
void decode(const Encoded* from, int64_t count, Decoded* to) {
  plain_decode(from, count, to);
}

#endif

// An e5m2 number is the upper half of an f16 number.
void decode_e5m2(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    Half value;
    value.bits = static_cast<uint16_t>(from[i] << 8);
    to[i] = static_cast<float>(value);
  }
}

// What is stored for what is multiplied.
template <class Decoded>
using Encoded = std::conditional_t<std::is_same_v<Decoded, float>, Float8E4M3, int8_t>;

// A function that decodes `count` elements of a row.
template <class Decoded>
auto decoder(DType dtype, const uint8_t* matrix, int64_t stride) {
  return [=](int64_t row, int64_t first, int64_t count, Decoded* to) {
    const uint8_t* from = matrix + row * stride + first;
    if constexpr (std::is_same_v<Decoded, float>) {
      if (dtype == DType::kF8E5M2) return decode_e5m2(from, count, to);
    }
    decode(reinterpret_cast<const Encoded<Decoded>*>(from), count, to);
  };
}

// The product that batch number `batch` is.
template <class Decoded, class Output>
void multiply(const ScaledMmParams& params, int64_t batch) {
  const uint8_t* const stored_a = static_cast<const uint8_t*>(params.a) + batch * params.a_batch_stride;
  const uint8_t* const stored_b = static_cast<const uint8_t*>(params.b) + batch * params.b_batch_stride;
  const auto a = decoder<Decoded>(params.a_dtype, stored_a, params.a_stride);
  const auto b = decoder<Decoded>(params.b_dtype, stored_b, params.b_stride);
  // One scale after the other: the product of two that are tiny would be 0.
  const auto scale_block = [&](int64_t i, int64_t j, int64_t l, auto sum) {
    if constexpr (std::is_same_v<Decoded, float>) {
      if (params.blockwise) {
        sum = sum * params.a_block_scales.at(i, l / kScaleBlock) *
              params.b_block_scales.at(l / kScaleBlock, j / kScaleBlock);
      }
    }
    return sum;
  };
  Output* const output = static_cast<Output*>(params.output) + batch * params.output_batch_stride;
  const auto store = [&](int64_t i, int64_t j, auto sum) {
    float value = static_cast<float>(sum);
    if (!params.blockwise) value = value * params.row_scales.at(i) * params.column_scales.at(j);
    if (params.bias != nullptr) value += static_cast<float>(static_cast<const Output*>(params.bias)[j]);
    output[i * params.output_stride + j] = Output(value);
  };
#ifdef SGL_AVX2
  if (params.m <= kFewRows && params.b_dtype != DType::kF8E5M2 && has_avx2()) {
    const auto of_b = reinterpret_cast<const Encoded<Decoded>*>(stored_b);
    few_rows_mm<Decoded>(params.m, params.n, params.k, a, of_b, params.b_stride, scale_block, store);
    return;
  }
#endif
  tiled_mm<Decoded>(params.m, params.n, params.k, a, b, scale_block, store);
}

template <class Decoded>
void multiply_batches(const ScaledMmParams& params) {
  for (int64_t batch = 0; batch < params.batches; ++batch) {
    params.output_dtype == DType::kF16 ? multiply<Decoded, Half>(params, batch)
                                       : multiply<Decoded, BFloat16>(params, batch);
  }
}

}  // namespace

Status scaled_mm(const ScaledMmParams& params, Stream) {
  if (has_amx()) {
    amx_scaled_mm(params);
    return OkStatus();
  }
  params.a_dtype == DType::kI8 ? multiply_batches<int16_t>(params) : multiply_batches<float>(params);
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
