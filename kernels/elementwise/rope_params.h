// What the targets of the rotary embeddings take: checked, and reduced to tokens by heads.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// [tokens or slots, num_heads, head_dim]; null if there is none. Strides are in elements.
struct Heads {
  void* data = nullptr;
  int64_t stride = 0;       // between tokens or slots
  int64_t head_stride = 0;  // between heads
};

// i32 or i64, one a token.
struct Indices {
  const void* data = nullptr;
  bool is_64 = false;
};

struct RopeParams {
  const char* operator_name;
  DType dtype;
  int64_t num_tokens;
  int num_q_heads;
  int num_k_heads;
  int head_dim;
  int rotary_dim;
  bool interleave;
  bool enable_pdl;

  Heads q, q_rope;
  Heads k, k_rope;
  Heads v, k_buffer, v_buffer;  // null unless k and v are written to a cache
  Indices slots;                // "

  Indices positions;
  const void* cos_sin_cache;
  DType cache_dtype;
  int64_t cache_stride;
};

Status rope(const RopeParams& params, Stream stream);

}  // namespace sgl_kernel
