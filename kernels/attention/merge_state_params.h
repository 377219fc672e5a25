// What the targets of merge_state take: checked, and reduced to heads of tokens.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// [tokens, heads] of vectors (v) or numbers (s). Strides are in elements.
struct PerHead {
  void* data;
  int64_t stride;       // between tokens
  int64_t head_stride;  // between heads
};

struct MergeStateParams {
  const char* operator_name;
  float log2_base;  // log2(B)
  DType dtype;
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  PerHead v_a, v_b, v_merged;
  PerHead s_a, s_b, s_merged;
};

Status merge_states(const MergeStateParams& params, Stream stream);

}  // namespace sgl_kernel
