// From a run-time dtype to a type: SGL_SWITCH_FLOAT(input.dtype(), T, return run<T>(…));
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/base/tensor_view.h"

// The caller has checked that the dtype is one of the three.
#define SGL_SWITCH_FLOAT(dtype, Type, ...) \
  switch (dtype) {                         \
    case ::sgl_kernel::DType::kF16: {      \
      using Type = __half;                 \
      __VA_ARGS__;                         \
    } break;                               \
    case ::sgl_kernel::DType::kBF16: {     \
      using Type = __nv_bfloat16;          \
      __VA_ARGS__;                         \
    } break;                               \
    default: {                             \
      using Type = float;                  \
      __VA_ARGS__;                         \
    }                                      \
  }
