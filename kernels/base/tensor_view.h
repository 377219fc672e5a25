// A tensor that somebody else owns: pointer, dtype, device, shape, strides. Copied by value; never allocates.
//
// Example:
//   float logits[2][32000];
//   TensorView view(logits, DType::kF32, {2, 32000});   // dense, on the CPU
//   view.size(-1) == 32000; view.data<float>() == &logits[0][0];
#pragma once

#include <cstdint>
#include <initializer_list>

namespace sgl_kernel {

enum class DType : uint8_t { kBool, kU8, kI8, kI16, kI32, kI64, kU32, kU64, kF8E4M3, kF8E5M2, kF16, kBF16, kF32, kF64 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kU8:
    case DType::kI8:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return 1;
    case DType::kI16:
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI32:
    case DType::kU32:
    case DType::kF32:
      return 4;
    case DType::kI64:
    case DType::kU64:
    case DType::kF64:
      return 8;
  }
  return 0;
}

// As PyTorch spells it: "float16", "float8_e4m3fn".
const char* name_of(DType dtype);

struct Device {
  enum class Kind : uint8_t { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int index = 0;  // the CUDA ordinal; 0 for the CPU

  bool is_cpu() const { return kind == Kind::kCpu; }
  bool operator==(const Device& other) const { return kind == other.kind && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

// The queue that a CUDA kernel is launched on: a cudaStream_t, null for the default stream. The CPU ignores it.
struct Stream {
  void* handle = nullptr;
};

class TensorView {
 public:
  static constexpr int kMaxRank = 6;  // no operator takes more than 5

  TensorView() = default;

  // Dense, row-major. `shape` has at most kMaxRank extents.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = {})
      : data_(data), dtype_(dtype), device_(device), rank_(static_cast<int>(shape.size())) {
    int dim = 0;
    for (int64_t extent : shape) shape_[dim++] = extent;
    int64_t stride = 1;
    for (dim = rank_ - 1; dim >= 0; --dim) {
      strides_[dim] = stride;
      stride *= shape_[dim];
    }
  }

  // Strides are in elements. `rank` is at most kMaxRank.
  TensorView(void* data, DType dtype, int rank, const int64_t* shape, const int64_t* strides, Device device)
      : data_(data), dtype_(dtype), device_(device), rank_(rank) {
    for (int dim = 0; dim < rank; ++dim) {
      shape_[dim] = shape[dim];
      strides_[dim] = strides[dim];
    }
  }

  void* data() const { return data_; }
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }

  // `dim` counts from the end if negative, as in Python.
  int64_t size(int dim) const { return shape_[dim < 0 ? dim + rank_ : dim]; }
  int64_t stride(int dim) const { return strides_[dim < 0 ? dim + rank_ : dim]; }

  int64_t num_elements() const {
    int64_t count = 1;
    for (int dim = 0; dim < rank_; ++dim) count *= shape_[dim];
    return count;
  }
  bool empty() const { return num_elements() == 0; }
  bool is_contiguous() const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Device device_;
  int rank_ = 0;
  int64_t shape_[kMaxRank] = {};
  int64_t strides_[kMaxRank] = {};
};

}  // namespace sgl_kernel
