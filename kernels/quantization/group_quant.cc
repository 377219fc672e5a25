#include "kernels/quantization/group_quant.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/group_quant_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(quantize_groups);

namespace {

constexpr double kSmallestEps = 1e-30;  // fp8_max / eps is a float, and eps / fp8_max a normal one
constexpr int64_t kAlignment = 16;      // bytes that a thread moves at once
constexpr int64_t kGroupsPerWord = 4;   // of int32 scales

// The strides before the last dimension: of experts (0 if there are none), and of tokens.
int64_t expert_stride(const TensorView& tensor) { return tensor.rank() == 3 ? tensor.stride(0) : 0; }

Status check_and_run(const char* name, const TensorView& input, const TensorView& output_q, const TensorView& output_s,
                     int64_t group_size, double eps, double fp8_min, double fp8_max, bool scale_ue8m0,
                     bool fuse_silu_and_mul, const std::optional<TensorView>& masked_m, Stream stream) {
  Check check(name);
  check.rank("input", input, 2, 3)
      .rank("output_q", output_q, input.rank())
      .rank("output_s", output_s, input.rank())
      .dtype("input", input, {DType::kF16, DType::kBF16, DType::kF32})
      .dtype("output_q", output_q, {DType::kF8E4M3, DType::kI8})
      .dtype("output_s", output_s, {DType::kF32, DType::kI32})
      .same_device({{"input", input}, {"output_q", output_q}, {"output_s", output_s}})
      .that(group_size == 16 || group_size == 32 || group_size == 64 || group_size == 128, "group_size", group_size,
            "16, 32, 64 or 128")
      .that(eps >= kSmallestEps && eps <= 1e30, "eps", eps, "1e-30 to 1e30");
  SGL_RETURN_IF_ERROR(check.status());
  const bool to_int8 = output_q.dtype() == DType::kI8, packed = output_s.dtype() == DType::kI32;
  check.that(fp8_min == (to_int8 ? -128.0 : -448.0), "fp8_min", fp8_min, "the least value of output_q's dtype")
      .that(fp8_max == (to_int8 ? 127.0 : 448.0), "fp8_max", fp8_max, "the largest value of output_q's dtype")
      .that(scale_ue8m0 || !packed, "output_s", "has dtype int32 without scale_ue8m0", "float32");
  const int64_t width = input.size(-1), size = fuse_silu_and_mul ? width / 2 : width;
  check.that(width <= INT32_MAX, "input.shape[-1]", width, "less than 2^31");
  check.that(size % group_size == 0 && (!fuse_silu_and_mul || width % 2 == 0), "input.shape[-1]", width,
             fuse_silu_and_mul ? "twice a multiple of group_size" : "a multiple of group_size");
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t groups = size / group_size, tokens = input.size(-2);
  const int64_t columns = packed ? (groups + kGroupsPerWord - 1) / kGroupsPerWord : groups;
  if (input.rank() == 2) {
    check.shape("output_q", output_q, {tokens, size}, "that of input's tokens")
        .shape("output_s", output_s, {tokens, columns}, "one for each group");
  } else {
    check.shape("output_q", output_q, {input.size(0), tokens, size}, "that of input's tokens")
        .shape("output_s", output_s, {input.size(0), tokens, columns}, "one for each group");
  }
  check.dense_last_dim("input", input)
      .dense_last_dim("output_q", output_q)
      .aligned("input", input, kAlignment)
      .aligned("output_q", output_q, kAlignment)
      .no_internal_overlap("output_q", output_q)
      .no_internal_overlap("output_s", output_s)
      .no_overlap("output_q", output_q, "input", input)
      .no_overlap("output_s", output_s, "input", input)
      .no_overlap("output_s", output_s, "output_q", output_q);
  if (masked_m.has_value()) {
    check.dtype("masked_m", *masked_m, {DType::kI32})
        .that(input.rank() == 3, "masked_m", "is given for an input of two dimensions", "[experts, tokens, size]")
        .same_device({{"input", input}, {"masked_m", *masked_m}});
    SGL_RETURN_IF_ERROR(check.status());
    check.shape("masked_m", *masked_m, {input.size(0)}, "input.shape[0]")
        .contiguous("masked_m", *masked_m)
        .no_overlap("output_q", output_q, "masked_m", *masked_m)
        .no_overlap("output_s", output_s, "masked_m", *masked_m);
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (input.empty()) return OkStatus();

  GroupQuantParams params = {};
  params.operator_name = name;
  params.dtype = input.dtype();
  params.to_int8 = to_int8;
  params.fuse_silu_and_mul = fuse_silu_and_mul;
  params.scale_ue8m0 = scale_ue8m0;
  params.packed_scales = packed;
  params.input = input.data();
  params.output = output_q.data<uint8_t>();
  params.scales = output_s.data();
  params.masked_m = masked_m.has_value() ? masked_m->data<int32_t>() : nullptr;
  params.num_experts = input.rank() == 3 ? input.size(0) : 1;
  params.num_tokens = tokens;
  params.token_size = size;
  params.group_size = static_cast<int>(group_size);
  params.eps = static_cast<float>(eps);
  params.input_expert_stride = expert_stride(input);
  params.input_stride = input.stride(-2);
  params.output_expert_stride = expert_stride(output_q);
  params.output_stride = output_q.stride(-2);
  params.scale_expert_stride = expert_stride(output_s);
  params.scale_stride = output_s.stride(-2);
  params.scale_group_stride = output_s.stride(-1);
  return internal::dispatch(name, quantize_groups_targets, input.device(), params, stream);
}

}  // namespace

Status sgl_per_token_group_quant_8bit(TensorView input, TensorView output_q, TensorView output_s, int64_t group_size,
                                      double eps, double fp8_min, double fp8_max, bool scale_ue8m0, Stream stream) {
  return check_and_run("sgl_per_token_group_quant_8bit", input, output_q, output_s, group_size, eps, fp8_min, fp8_max,
                       scale_ue8m0, /*fuse_silu_and_mul=*/false, std::nullopt, stream);
}

Status sgl_per_token_group_quant_8bit_v2(TensorView input, TensorView output_q, TensorView output_s, int64_t group_size,
                                         double eps, double fp8_min, double fp8_max, bool scale_ue8m0,
                                         bool fuse_silu_and_mul, const std::optional<TensorView>& masked_m,
                                         Stream stream) {
  return check_and_run("sgl_per_token_group_quant_8bit_v2", input, output_q, output_s, group_size, eps, fp8_min,
                       fp8_max, scale_ue8m0, fuse_silu_and_mul, masked_m, stream);
}

}  // namespace sgl_kernel
