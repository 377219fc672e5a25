#include "kernels/base/check.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/base/dispatch.h"

#ifdef SGL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace sgl_kernel {
namespace {

std::string list_string(const int64_t* values, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += values[i] == Check::kAny ? "*" : std::to_string(values[i]);
  }
  return text + "]";
}

std::string strides_string(const TensorView& tensor) {
  int64_t strides[TensorView::kMaxRank];
  for (int dim = 0; dim < tensor.rank(); ++dim) strides[dim] = tensor.stride(dim);
  return list_string(strides, tensor.rank());
}

std::string device_string(Device device) { return device.is_cpu() ? "cpu" : "cuda:" + std::to_string(device.index); }

// The first byte and the byte behind the last one that a tensor's elements span.
struct Span {
  const char* begin;
  const char* end;
};

// Of the dimensions from `first_dim` on.
Span span_of(const TensorView& tensor, int first_dim = 0) {
  const char* begin = tensor.data<const char>();
  if (tensor.empty()) return {begin, begin};
  int64_t first = 0, last = 0;
  for (int dim = first_dim; dim < tensor.rank(); ++dim) {
    const int64_t reach = (tensor.size(dim) - 1) * tensor.stride(dim);
    (reach < 0 ? first : last) += reach;
  }
  const int64_t bytes = size_of(tensor.dtype());
  return {begin + first * bytes, begin + (last + 1) * bytes};
}

// Whether two tensors step through memory at the same distance and stay apart within each step.
bool interleave(const TensorView& a, const TensorView& b) {
  if (a.rank() < 2 || b.rank() < 2) return false;
  const int64_t step = a.stride(0) * size_of(a.dtype());
  if (step <= 0 || step != b.stride(0) * size_of(b.dtype())) return false;
  const Span inner_a = span_of(a, 1), inner_b = span_of(b, 1);
  int64_t offset = (inner_b.begin - inner_a.begin) % step;
  if (offset < 0) offset += step;
  return inner_a.end - inner_a.begin <= offset && offset + (inner_b.end - inner_b.begin) <= step;
}

// The indices of element `i`, in row-major order, and its value.
struct Index {
  int64_t at[TensorView::kMaxRank];
  int64_t value;
};

Index index_at(const TensorView& indices, int64_t i) {
  Index index = {};
  int64_t offset = 0;
  for (int dim = indices.rank() - 1; dim >= 0; --dim) {
    index.at[dim] = dim > 0 ? i % indices.size(dim) : i;
    if (dim > 0) i /= indices.size(dim);
    offset += index.at[dim] * indices.stride(dim);
  }
  index.value =
      indices.dtype() == DType::kI64 ? indices.data<const int64_t>()[offset] : indices.data<const int32_t>()[offset];
  return index;
}

#ifdef SGL_WITH_CUDA
bool is_captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &status) != cudaSuccess) {
    cudaGetLastError();  // the default stream beside a capture: the launch says so
    return true;
  }
  return status != cudaStreamCaptureStatusNone;
}

// Copies `count` bytes of a GPU's memory once the stream has done what it has to do.
Status copy_to_host(const char* operator_name, void* to, const void* from, size_t count, Stream stream) {
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  cudaError_t error = cudaMemcpyAsync(to, from, count, cudaMemcpyDeviceToHost, handle);
  if (error == cudaSuccess) error = cudaStreamSynchronize(handle);
  if (error == cudaSuccess) return OkStatus();
  cudaGetLastError();
  return Internal(std::string(operator_name) + ": CUDA says " + cudaGetErrorString(error) + ", while indices are read");
}
#else
bool is_captured(Stream) { return true; }  // nothing runs there: dispatch says so

Status copy_to_host(const char* operator_name, void*, const void*, size_t, Stream) {
  return Unsupported(std::string(operator_name) + ": a tensor is on a GPU, expected the CPU (all this is built for)");
}
#endif

}  // namespace

std::string shape_string(const TensorView& tensor) {
  int64_t shape[TensorView::kMaxRank];
  for (int dim = 0; dim < tensor.rank(); ++dim) shape[dim] = tensor.size(dim);
  return list_string(shape, tensor.rank());
}

bool checks_values(Device device, Stream stream) {
  if (device.is_cpu()) return true;
  static const bool enabled = [] {
    const char* value = std::getenv("SGL_KERNEL_CHECK");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  if (!enabled) return false;
  DeviceGuard guard(device);
  return !is_captured(stream);
}

Status HostCopy::take(const char* operator_name, const TensorView& tensor, Stream stream) {
  view_ = tensor;
  if (tensor.device().is_cpu() || tensor.empty()) return OkStatus();
  const Span span = span_of(tensor);
  bytes_.resize(static_cast<size_t>(span.end - span.begin));
  int64_t shape[TensorView::kMaxRank], strides[TensorView::kMaxRank];
  for (int dim = 0; dim < tensor.rank(); ++dim) {
    shape[dim] = tensor.size(dim);
    strides[dim] = tensor.stride(dim);
  }
  char* const data = bytes_.data() + (tensor.data<const char>() - span.begin);
  view_ = TensorView(data, tensor.dtype(), tensor.rank(), shape, strides, Device());
  DeviceGuard guard(tensor.device());
  return copy_to_host(operator_name, bytes_.data(), span.begin, bytes_.size(), stream);
}

Check& Check::fail(const char* name, const std::string& is, const std::string& expected) {
  status_ = InvalidArgument(std::string(operator_) + ": " + name + " " + is + ", expected " + expected);
  return *this;
}

Check& Check::dtype(const char* name, const TensorView& tensor, std::initializer_list<DType> allowed) {
  if (!ok()) return *this;
  for (DType dtype : allowed) {
    if (tensor.dtype() == dtype) return *this;
  }
  std::string expected;
  for (DType dtype : allowed) expected += (expected.empty() ? "" : " or ") + std::string(name_of(dtype));
  return fail(name, std::string("has dtype ") + name_of(tensor.dtype()), expected);
}

Check& Check::same_dtype(const char* name, const TensorView& tensor, const char* reference,
                         const TensorView& expected) {
  if (!ok() || tensor.dtype() == expected.dtype()) return *this;
  return fail(name, std::string("has dtype ") + name_of(tensor.dtype()),
              std::string(name_of(expected.dtype())) + " (= " + reference + ".dtype)");
}

Check& Check::rank(const char* name, const TensorView& tensor, int lowest, int highest) {
  if (!ok() || (tensor.rank() >= lowest && tensor.rank() <= highest)) return *this;
  const std::string expected =
      lowest == highest ? std::to_string(lowest) : std::to_string(lowest) + " to " + std::to_string(highest);
  return fail(name, "has " + std::to_string(tensor.rank()) + " dimensions", expected);
}

Check& Check::shape(const char* name, const TensorView& tensor, std::initializer_list<int64_t> expected,
                    const char* source) {
  if (!ok()) return *this;
  bool equal = tensor.rank() == static_cast<int>(expected.size());
  int dim = 0;
  for (int64_t extent : expected) {
    if (!equal) break;
    equal = extent == kAny || extent == tensor.size(dim);
    ++dim;
  }
  if (equal) return *this;
  std::string text = list_string(expected.begin(), static_cast<int>(expected.size()));
  if (source != nullptr) text += std::string(" (= ") + source + ")";
  return fail(name, "has shape " + shape_string(tensor), text);
}

Check& Check::same_shape(const char* name, const TensorView& tensor, const char* reference,
                         const TensorView& expected) {
  if (!ok()) return *this;
  bool equal = tensor.rank() == expected.rank();
  for (int dim = 0; equal && dim < tensor.rank(); ++dim) equal = tensor.size(dim) == expected.size(dim);
  if (equal) return *this;
  return fail(name, "has shape " + shape_string(tensor),
              shape_string(expected) + " (= " + std::string(reference) + ".shape)");
}

Check& Check::same_device(std::initializer_list<NamedTensor> tensors) {
  if (!ok()) return *this;
  const NamedTensor& first = *tensors.begin();
  for (const NamedTensor& named : tensors) {
    if (named.tensor.device() == first.tensor.device()) continue;
    return fail(named.name, "is on " + device_string(named.tensor.device()),
                device_string(first.tensor.device()) + " (= " + first.name + ".device)");
  }
  return *this;
}

Check& Check::contiguous(const char* name, const TensorView& tensor) {
  if (!ok() || tensor.is_contiguous()) return *this;
  return fail(name, "has shape " + shape_string(tensor) + " and strides " + strides_string(tensor), "contiguous");
}

Check& Check::dense_last_dim(const char* name, const TensorView& tensor) {
  if (!ok() || tensor.rank() == 0 || tensor.size(-1) <= 1 || tensor.stride(-1) == 1) return *this;
  return fail(name, "has strides " + strides_string(tensor), "a last stride of 1");
}

Check& Check::uniform_rows(const char* name, const TensorView& tensor, int64_t* row_stride) {
  *row_stride = 0;
  if (!ok() || tensor.empty()) return *this;
  bool found = false;    // the innermost dimension that has more than one row
  int64_t expected = 0;  // the stride of the next dimension out of it
  for (int dim = tensor.rank() - 2; dim >= 0; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (!found) {
      *row_stride = tensor.stride(dim);
      found = true;
    } else if (tensor.stride(dim) != expected) {
      return fail(name, "has shape " + shape_string(tensor) + " and strides " + strides_string(tensor),
                  "leading dimensions that one stride describes");
    }
    expected = tensor.stride(dim) * tensor.size(dim);
  }
  return *this;
}

Check& Check::aligned(const char* name, const TensorView& tensor, int64_t bytes) {
  if (!ok() || tensor.empty()) return *this;
  if (reinterpret_cast<uintptr_t>(tensor.data()) % bytes != 0) {
    return fail(name, "starts at an address that is not", "a multiple of " + std::to_string(bytes) + " bytes");
  }
  for (int dim = 0; dim + 1 < tensor.rank(); ++dim) {
    if (tensor.size(dim) > 1 && tensor.stride(dim) * size_of(tensor.dtype()) % bytes != 0) {
      return fail(name, "has strides " + strides_string(tensor), "multiples of " + std::to_string(bytes) + " bytes");
    }
  }
  return *this;
}

Check& Check::no_internal_overlap(const char* name, const TensorView& tensor) {
  if (!ok() || tensor.empty()) return *this;
  for (int dim = 0; dim < tensor.rank(); ++dim) {
    if (tensor.size(dim) > 1 && tensor.stride(dim) == 0) {
      return fail(name, "has strides " + strides_string(tensor), "no stride of 0 (it is written)");
    }
  }
  return *this;
}

Check& Check::no_overlap(const char* output_name, const TensorView& output, const char* input_name,
                         const TensorView& input) {
  if (!ok()) return *this;
  const Span a = span_of(output), b = span_of(input);
  if (a.begin >= b.end || b.begin >= a.end || a.begin == a.end || b.begin == b.end) return *this;
  if (interleave(output, input)) return *this;
  return fail(output_name, std::string("overlaps ") + input_name + " in memory", "memory of its own");
}

Check& Check::in_range(const char* name, const TensorView& indices, int64_t end, const char* source, Stream stream) {
  if (!ok() || indices.empty() || !checks_values(indices.device(), stream)) return *this;
  HostCopy copy;
  status_ = copy.take(operator_, indices, stream);
  if (!ok()) return *this;
  const int64_t count = indices.num_elements();
  for (int64_t i = 0; i < count; ++i) {
    const Index index = index_at(copy.view(), i);
    if (index.value >= 0 && index.value < end) continue;
    return fail((name + list_string(index.at, indices.rank())).c_str(), "is " + std::to_string(index.value),
                "at least 0 and less than " + std::to_string(end) + " (= " + source + ")");
  }
  return *this;
}

Check& Check::that(bool holds, const char* name, double value, const char* expected) {
  if (holds || !ok()) return *this;
  char text[32];  // std::to_string() would call 1e-12 "0.000000"
  std::snprintf(text, sizeof(text), "is %g", value);
  return fail(name, text, expected);
}

Check& Check::that(bool holds, const char* name, int64_t value, const char* expected) {
  return holds || !ok() ? *this : fail(name, "is " + std::to_string(value), expected);
}

Check& Check::that(bool holds, const char* name, const char* is, const char* expected) {
  return holds || !ok() ? *this : fail(name, is, expected);
}

}  // namespace sgl_kernel
