// What the four norms come down to: one function a target.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// The rows of one tensor.
struct NormRows {
  void* data;
  int64_t stride;  // elements from one row to the next
};

struct NormParams {
  const char* operator_name;  // for messages
  NormRows output;            // the normalized rows
  NormRows input;             // with a residual, the same memory as output
  NormRows residual;          // data is null: nothing is added
  int64_t num_rows;
  int64_t row_size;  // elements
  const void* weight;
  float weight_offset;  // 1 for Gemma, else 0
  float eps;
  DType dtype;
  bool enable_pdl;
};

Status norm_rows(const NormParams& params, Stream stream);

}  // namespace sgl_kernel
