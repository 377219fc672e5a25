// gptq_gemm on Hopper: the weights that servers have, 4-bit ones in gptq_shuffle's order, go through
// stream_mm_sm90a.cuh (which says grid and bound), the rest through the portable kernels.
//
// Measured on an H200, 2026-11-23, groups of 128, in µs; sgl-kernel 0.4.2's in the same run:
//   N x K            9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   2112 x 7168   7168 x 16384
//   1 token          9.8           9.1           5.2           3.6           5.9           19.2
//   8 tokens         10.2          9.6           5.5           4.1           6.5           20.2
//   16 tokens        11.7          12.1          6.5           4.7           8.0           25.6
//   sgl-kernel, 1    11.8          12.1          9.8           9.5           10.0          24.1
//   sgl-kernel, 16   42.5          38.2          18.2          13.1          25.7          119
#include "kernels/gemm/gptq_gemm_portable.h"
#include "kernels/gemm/gptq_gemm_stream_sm90a.cuh"
#include "kernels/gemm/mixed_mm_splits.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

using gptq_stream::Weight;

constexpr char kName[] = "gptq_gemm";
constexpr int kGroupUnit = 32;  // along K

template <class W>
Status multiply(const typename W::Params& params, const stream_mm::Plan& plan, Stream stream) {
  CUtensorMap map;
  SGL_RETURN_IF_ERROR(W::encode_map(kName, &map, params));
  return stream_mm::multiply<W>(kName, map, params, plan, stream);
}

template <class W>
Status multiply(const typename W::Params& params, Stream stream) {
  double cost;
  return multiply<W>(params, stream_mm::choose_plan<W>(params.m, params.n, params.k, &cost), stream);
}

template <bool kNarrow>
Status choose_tokens(const gptq_stream::Params& params, Stream stream) {
  if (params.m <= 8) {
    using Wide = Weight<1, 2, 2, 2, kNarrow>;
    using Slim = Weight<1, 1, 3, 2, kNarrow>;
    double wide_cost, slim_cost;
    const stream_mm::Plan wide = stream_mm::choose_plan<Wide>(params.m, params.n, params.k, &wide_cost);
    const stream_mm::Plan slim = stream_mm::choose_plan<Slim>(params.m, params.n, params.k, &slim_cost);
    return slim_cost < wide_cost ? multiply<Slim>(params, slim, stream) : multiply<Wide>(params, wide, stream);
  }
  if (params.m <= 16) return multiply<Weight<2, 1, 2, 2, kNarrow>>(params, stream);
  if (params.m <= 32) return multiply<Weight<4, 1, 3, 1, kNarrow>>(params, stream);
  return multiply<Weight<8, 1, 3, 1, kNarrow>>(params, stream);
}

// Widest: what has the most columns at least.
using Least = Weight<1, 1, 3, 2, false>;

bool stream_takes(const GptqGemmParams& params) {
  return params.num_bits == 4 && params.shuffled && params.groups == nullptr && params.k > 0 &&
         params.k / params.num_groups % kGroupUnit == 0 && params.n <= stream_mm::kMostColumns<Least> &&
         params.m <= stream_mm::kMostRows<Least>;
}

}  // namespace

Status multiply_gptq(const GptqGemmParams& params, Stream stream) {
  if (!stream_takes(params)) return multiply_gptq_portable(params, stream);
  if (params.gathered != nullptr) {
    SGL_RETURN_IF_ERROR(mixed_mm::gather_columns(kName, params.gathered, params.a, params.k, params.columns, params.m,
                                                 params.k, stream));
  }
  const gptq_stream::Params streamed = {params, static_cast<int>(params.k / params.num_groups)};
  return streamed.group_size % Least::kStepK == 0 ? choose_tokens<false>(streamed, stream)
                                                  : choose_tokens<true>(streamed, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
