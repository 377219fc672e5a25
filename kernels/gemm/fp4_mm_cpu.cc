// Products of NVFP4 matrices on the CPU, in f32: a value times its scale is exact.
#include "kernels/base/float_types.h"
#include "kernels/gemm/fp4_mm_params.h"
#include "kernels/gemm/tiled_mm_cpu.h"

namespace sgl_kernel::cpu {
namespace {

constexpr float kE2m1[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};  // the other 8 are their negatives

float decode_e2m1(int code) { return code < 8 ? kE2m1[code] : -kE2m1[code - 8]; }

auto decoder(const Fp4Matrix& matrix, int64_t padded_blocks) {
  static_assert(kBlockK % kFp4Block == 0);
  // `first` and `count` are multiples of kFp4Block.
  return [=](int64_t row, int64_t first, int64_t count, float* to) {
    for (int64_t k = first; k < first + count; k += kFp4Block) {
      Float8E4M3 scale;
      scale.bits = matrix.scales[fp4_scale_at(row, k / kFp4Block, padded_blocks)];
      float table[16];
      for (int code = 0; code < 16; ++code) table[code] = decode_e2m1(code) * static_cast<float>(scale);
      const uint8_t* from = matrix.values + row * matrix.stride + k / 2;
      for (int i = 0; i < kFp4Block; i += 2, ++from) {
        *to++ = table[*from & 15];
        *to++ = table[*from >> 4];
      }
    }
  };
}

template <class Output>
void multiply(const Fp4MmParams& params) {
  const auto store = [&](int64_t i, int64_t j, float sum) {
    static_cast<Output*>(params.output)[i * params.output_stride + j] = Output(sum * *params.alpha);
  };
  tiled_mm<float>(params.m, params.n, params.k, decoder(params.a, params.padded_blocks),
                  decoder(params.b, params.padded_blocks), WholeSums(), store);
}

}  // namespace

Status fp4_mm(const Fp4MmParams& params, Stream) {
  params.output_dtype == DType::kF16 ? multiply<Half>(params) : multiply<BFloat16>(params);
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
