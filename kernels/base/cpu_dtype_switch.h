// From a run-time dtype to a type, for the CPU targets: SGL_CPU_SWITCH_FLOAT(input.dtype(), T, rows<T>(…));
#pragma once

#include "kernels/base/float_types.h"
#include "kernels/base/tensor_view.h"

// The caller has checked that the dtype is one of the three.
#define SGL_CPU_SWITCH_FLOAT(dtype, Type, ...) \
  switch (dtype) {                             \
    case ::sgl_kernel::DType::kF16: {          \
      using Type = ::sgl_kernel::Half;         \
      __VA_ARGS__;                             \
    } break;                                   \
    case ::sgl_kernel::DType::kBF16: {         \
      using Type = ::sgl_kernel::BFloat16;     \
      __VA_ARGS__;                             \
    } break;                                   \
    default: {                                 \
      using Type = float;                      \
      __VA_ARGS__;                             \
    }                                          \
  }
