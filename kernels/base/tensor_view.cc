#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return "bool";
    case DType::kU8:
      return "uint8";
    case DType::kI8:
      return "int8";
    case DType::kI16:
      return "int16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kU32:
      return "uint32";
    case DType::kU64:
      return "uint64";
    case DType::kF8E4M3:
      return "float8_e4m3fn";
    case DType::kF8E5M2:
      return "float8_e5m2";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF32:
      return "float32";
    case DType::kF64:
      return "float64";
  }
  return "?";
}

bool TensorView::is_contiguous() const {
  int64_t expected = 1;
  for (int dim = rank_ - 1; dim >= 0; --dim) {
    if (shape_[dim] != 1 && strides_[dim] != expected) return empty();
    expected *= shape_[dim];
  }
  return true;
}

}  // namespace sgl_kernel
