// Skinny bf16 products on the CPU, in f32.
#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"
#include "kernels/gemm/skinny_mm_params.h"
#include "kernels/gemm/tiled_mm_cpu.h"

namespace sgl_kernel::cpu {
namespace {

void plain_decode(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

#ifdef SGL_AVX2

SGL_AVX2 void avx2_decode(const BFloat16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store8(to + i, load8(from + i));
  plain_decode(from + i, count - i, to + i);
}

void decode(const BFloat16* from, int64_t count, float* to) {
  has_avx2() ? avx2_decode(from, count, to) : plain_decode(from, count, to);
}

#else

void decode(const BFloat16* from, int64_t count, float* to) { plain_decode(from, count, to); }

#endif

template <class Output>
void multiply(const SkinnyMmParams& params) {
  const auto decoder = [](const void* matrix, int64_t stride) {
    return [=](int64_t row, int64_t first, int64_t count, float* to) {
      decode(static_cast<const BFloat16*>(matrix) + row * stride + first, count, to);
    };
  };
  const auto store = [&](int64_t i, int64_t j, float sum) {
    static_cast<Output*>(params.output)[i * params.output_stride + j] = Output(sum);
  };
  tiled_mm<float>(params.m, params.n, params.k, decoder(params.a, params.a_stride), decoder(params.b, params.b_stride),
                  WholeSums(), store);
}

}  // namespace

Status skinny_mm(const SkinnyMmParams& params, Stream) {
  params.output_dtype == DType::kF32 ? multiply<float>(params) : multiply<BFloat16>(params);
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
