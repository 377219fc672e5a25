// What the targets of the group quantization take: checked, and reduced to pointers and sizes.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

struct GroupQuantParams {
  const char* operator_name;
  DType dtype;  // of input
  bool to_int8;
  bool fuse_silu_and_mul;
  bool scale_ue8m0;
  bool packed_scales;  // bytes of UE8M0, four to a word; else f32
  const void* input;
  uint8_t* output;
  void* scales;
  const int32_t* masked_m;  // [num_experts]; null: all tokens
  int64_t num_experts;
  int64_t num_tokens;  // of an expert
  int64_t token_size;  // of output
  int group_size;
  float eps;
  // In elements; of scales in elements of its own dtype.
  int64_t input_expert_stride, input_stride;
  int64_t output_expert_stride, output_stride;
  int64_t scale_expert_stride, scale_stride, scale_group_stride;

  constexpr int64_t num_groups() const { return token_size / group_size; }
  constexpr float largest() const { return to_int8 ? 127.0f : 448.0f; }
};

Status quantize_groups(const GroupQuantParams& params, Stream stream);

}  // namespace sgl_kernel
