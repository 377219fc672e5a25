// Which kernel of gptq_gemm_tile.cuh serves gptq_gemm, and what runs around it; and gptq_shuffle, which runs once a
// checkpoint: a thread makes a unit of a column. No figure is measured yet.
#include "kernels/gemm/gptq_gemm_portable.h"
#include "kernels/gemm/gptq_gemm_tile.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

using gptq::Config;

constexpr char kName[] = "gptq_gemm";

template <int kBits>
__global__ void __launch_bounds__(mixed_mm::kSideThreads)
    gptq_shuffle_kernel(const __grid_constant__ GptqShuffleParams params) {
  constexpr int kNumbers = gptq_unit_numbers(kBits), kWords = gptq_unit_words(kBits);
  const uint32_t* const source = params.perm != nullptr ? params.workspace : params.weight;
  const int64_t num_units = params.k / kNumbers * params.n;
  const int64_t step = static_cast<int64_t>(gridDim.x) * mixed_mm::kSideThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * mixed_mm::kSideThreads + threadIdx.x; i < num_units; i += step) {
    const int64_t row = i / params.n, n = i % params.n;
    uint32_t unit[kWords] = {};
#pragma unroll
    for (int number = 0; number < kNumbers; ++number) {
      const int64_t to = row * kNumbers + number, k = params.perm != nullptr ? params.perm[to] : to;
      const uint32_t* const from = source + k / kNumbers * kWords * params.n + n;
      gptq_put_shuffled(kBits, unit, number, gptq_number(kBits, from, params.n, static_cast<int>(k % kNumbers)));
    }
#pragma unroll
    for (int word = 0; word < kWords; ++word) params.weight[(row * kWords + word) * params.n + n] = unit[word];
  }
}

template <int kBits>
Status shuffle(const GptqShuffleParams& params, Stream stream) {
  const int64_t num_units = params.k / gptq_unit_numbers(kBits) * params.n;
  return launch("gptq_shuffle", gptq_shuffle_kernel<kBits>,
                {.grid = mixed_mm::side_blocks(num_units), .block = mixed_mm::kSideThreads}, stream, params);
}

template <class C>
Status launch_tiles(const GptqGemmParams& params, Stream stream) {
  const int64_t row_blocks = (params.m + C::kRows - 1) / C::kRows;
  const int64_t blocks = row_blocks * ((params.n + kMixedTileColumns - 1) / kMixedTileColumns);
  if (blocks > INT32_MAX) return InvalidArgument("gptq_gemm: a is too large, expected less than 2^31 tiles");
  return launch(
      kName, gptq::gptq_gemm_kernel<C>,
      {.grid = dim3(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(params.num_splits)), .block = C::kThreads},
      stream, params, static_cast<unsigned>(row_blocks));
}

template <int kBits, bool kShuffled>
Status choose(const GptqGemmParams& params, Stream stream) {
  using Scaled = Config<kBits, kShuffled, true, 1>;
  const bool scaled = params.groups == nullptr && params.k / params.num_groups % Scaled::kStep == 0;
  if (!scaled) return launch_tiles<Config<kBits, kShuffled, false, 1>>(params, stream);
  if constexpr (kBits == 4 && kShuffled) {  // the case that servers have is worth a kernel for many rows
    if (params.m > kMixedFewRows) return launch_tiles<Config<kBits, kShuffled, true, 2>>(params, stream);
  }
  return launch_tiles<Scaled>(params, stream);
}

template <int kBits>
Status choose_order(const GptqGemmParams& params, Stream stream) {
  if constexpr (kBits != 8) {  // whose order is the same
    if (params.shuffled) return choose<kBits, true>(params, stream);
  }
  return choose<kBits, false>(params, stream);
}

}  // namespace

Status shuffle_gptq(const GptqShuffleParams& params, Stream stream) {
  if (params.perm != nullptr) {
    const size_t bytes = static_cast<size_t>(params.k / 32 * params.num_bits * params.n) * sizeof(uint32_t);
    SGL_RETURN_IF_ERROR(
        cuda_status("gptq_shuffle", cudaMemcpyAsync(params.workspace, params.weight, bytes, cudaMemcpyDeviceToDevice,
                                                    static_cast<cudaStream_t>(stream.handle))));
  }
  switch (params.num_bits) {
    case 2:
      return shuffle<2>(params, stream);
    case 3:
      return shuffle<3>(params, stream);
    case 4:
      return shuffle<4>(params, stream);
    default:
      return shuffle<8>(params, stream);
  }
}

Status multiply_gptq_portable(const GptqGemmParams& params, Stream stream) {
  // Without K there is nothing to walk, nor a group.
  if (params.k == 0) {
    return cuda_status(kName, cudaMemsetAsync(params.result, 0, static_cast<size_t>(params.m * params.n) * 2,
                                              static_cast<cudaStream_t>(stream.handle)));
  }
  if (params.gathered != nullptr) {
    SGL_RETURN_IF_ERROR(mixed_mm::gather_columns(kName, params.gathered, params.a, params.k, params.columns, params.m,
                                                 params.k, stream));
  }
  switch (params.num_bits) {
    case 2:
      SGL_RETURN_IF_ERROR(choose_order<2>(params, stream));
      break;
    case 3:
      SGL_RETURN_IF_ERROR(choose_order<3>(params, stream));
      break;
    case 4:
      SGL_RETURN_IF_ERROR(choose_order<4>(params, stream));
      break;
    default:
      SGL_RETURN_IF_ERROR(choose_order<8>(params, stream));
  }
  if (params.partials == nullptr) return OkStatus();
  return mixed_mm::add_splits(kName, static_cast<__half*>(params.result), params.partials, params.num_splits,
                              params.m * params.n, static_cast<const __half*>(nullptr), 1.0f, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
