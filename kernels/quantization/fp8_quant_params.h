// What the targets of the FP8 quantization take: checked, and reduced to pointers and sizes.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// The most partial maxima of a tensor that a target may leave in the workspace, each 4 bytes.
inline constexpr int64_t kMaxPartialAmaxes = 4096;

// The smallest normal float, 2^-126: its reciprocal is finite.
inline constexpr float kSmallestScale = 1.1754943508222875e-38f;

struct TensorQuantParams {
  DType dtype;  // of input
  const void* input;
  uint8_t* output;
  float* scale;
  uint32_t* partial_amaxes;  // [kMaxPartialAmaxes], bits of floats; null if the scale is given
  int64_t num_elements;
};

struct TokenQuantParams {
  DType dtype;  // of input
  const void* input;
  uint8_t* output;
  float* scales;  // [num_tokens]
  int64_t num_tokens;
  int64_t token_size;
  int64_t input_stride;   // between tokens, in elements
  int64_t output_stride;  // "
};

Status quantize_tensor_fp8(const TensorQuantParams& params, Stream stream);
Status quantize_tokens_fp8(const TokenQuantParams& params, Stream stream);

}  // namespace sgl_kernel
