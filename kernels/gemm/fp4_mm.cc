#include "kernels/gemm/fp4_mm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/fp4_mm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(fp4_mm);

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// As the copies to shared memory want it; tiles of scales are multiples of it.
bool is_aligned(const TensorView& tensor) {
  constexpr uintptr_t kAlignment = 16;
  return reinterpret_cast<uintptr_t>(tensor.data()) % kAlignment == 0;
}

}  // namespace

int64_t cutlass_scaled_fp4_mm_workspace_size(int64_t m, int64_t k, Device::Kind device) {
  return device == Device::Kind::kCpu || m <= kFp4FewTokens ? 0 : m * fp4_wide_columns(k) * size_of(DType::kF16);
}

Status cutlass_scaled_fp4_mm(TensorView workspace, TensorView out, TensorView a, TensorView b, TensorView block_scale_a,
                             TensorView block_scale_b, TensorView alpha, Stream stream) {
  constexpr char kName[] = "cutlass_scaled_fp4_mm";
  Check check(kName);
  check.dtype("a", a, {DType::kU8})
      .rank("a", a, 2)
      .dense_last_dim("a", a)
      .dtype("b", b, {DType::kU8})
      .rank("b", b, 2)
      .dense_last_dim("b", b);
  if (!check.ok()) return check.status();
  const int64_t m = a.size(0), n = b.size(0), k = 2 * a.size(1);
  const int64_t padded_blocks = round_up(k / kFp4Block, kScaleTileColumns);
  SGL_RETURN_IF_ERROR(check.that(k % kFp4Block == 0, "a.shape[1]", a.size(1), "a multiple of 8 (blocks of 16 values)")
                          .shape("b", b, {n, a.size(1)}, "N, a.shape[1]")
                          .dtype("out", out, {DType::kF16, DType::kBF16})
                          .shape("out", out, {m, n}, "a.shape[0], b.shape[0]")
                          .dense_last_dim("out", out)
                          .no_internal_overlap("out", out)
                          .dtype("block_scale_a", block_scale_a, {DType::kF8E4M3})
                          .shape("block_scale_a", block_scale_a, {round_up(m, kScaleTileRows), padded_blocks},
                                 "a.shape[0] up to a multiple of 128, a.shape[1] / 8 up to one of 4")
                          .contiguous("block_scale_a", block_scale_a)
                          .that(is_aligned(block_scale_a), "block_scale_a", "misaligned", "a multiple of 16 bytes")
                          .dtype("block_scale_b", block_scale_b, {DType::kF8E4M3})
                          .shape("block_scale_b", block_scale_b, {round_up(n, kScaleTileRows), padded_blocks},
                                 "b.shape[0] up to a multiple of 128, b.shape[1] / 8 up to one of 4")
                          .contiguous("block_scale_b", block_scale_b)
                          .that(is_aligned(block_scale_b), "block_scale_b", "misaligned", "a multiple of 16 bytes")
                          .dtype("alpha", alpha, {DType::kF32})
                          .that(alpha.num_elements() == 1, "alpha.numel()", alpha.num_elements(), "1")
                          .same_device({{"a", a},
                                        {"b", b},
                                        {"out", out},
                                        {"block_scale_a", block_scale_a},
                                        {"block_scale_b", block_scale_b},
                                        {"alpha", alpha},
                                        {"workspace", workspace}})
                          .no_overlap("out", out, "a", a)
                          .no_overlap("out", out, "b", b)
                          .no_overlap("out", out, "block_scale_a", block_scale_a)
                          .no_overlap("out", out, "block_scale_b", block_scale_b)
                          .no_overlap("out", out, "alpha", alpha)
                          .that(workspace.num_elements() * size_of(workspace.dtype()) >=
                                    cutlass_scaled_fp4_mm_workspace_size(m, k, a.device().kind),
                                "workspace", workspace.num_elements(), "cutlass_scaled_fp4_mm_workspace_size() bytes")
                          .contiguous("workspace", workspace)
                          .that(is_aligned(workspace), "workspace", "misaligned", "a multiple of 16 bytes")
                          .no_overlap("out", out, "workspace", workspace)
                          .status());
  if (m == 0 || n == 0) return OkStatus();
  const Fp4MmParams params = {
      .operator_name = kName,
      .m = m,
      .n = n,
      .k = k,
      .padded_blocks = padded_blocks,
      .a = {.values = a.data<uint8_t>(), .stride = a.stride(0), .scales = block_scale_a.data<uint8_t>()},
      .b = {.values = b.data<uint8_t>(), .stride = b.stride(0), .scales = block_scale_b.data<uint8_t>()},
      .workspace = workspace.data(),
      .output = out.data(),
      .output_stride = out.stride(0),
      .output_dtype = out.dtype(),
      .alpha = alpha.data<float>()};
  return SGL_DISPATCH(fp4_mm, out.device(), params, stream);
}

}  // namespace sgl_kernel
