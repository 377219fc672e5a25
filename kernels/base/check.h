// The checks that a host function makes of its arguments before it touches anything.
//
//   Check check("rmsnorm");
//   check.rank("input", input, 2)
//       .dtype("input", input, {DType::kF16, DType::kBF16, DType::kF32})
//       .shape("weight", weight, {input.size(1)}, "input.shape[-1]");
//   SGL_RETURN_IF_ERROR(check.status());
//
// The first failure wins and the checks after it are skipped, so that a later one may rely on an earlier one only in a
// statement of its own behind a `if (check.ok())` (arguments are evaluated either way). Nothing is formatted or
// allocated while all is well.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

struct NamedTensor {
  const char* name;
  const TensorView& tensor;
};

class Check {
 public:
  static constexpr int64_t kAny = -1;  // an extent that shape() does not look at

  explicit Check(const char* operator_name) : operator_(operator_name) {}

  bool ok() const { return status_.ok(); }
  Status status() { return std::move(status_); }

  Check& dtype(const char* name, const TensorView& tensor, std::initializer_list<DType> allowed);
  Check& same_dtype(const char* name, const TensorView& tensor, const char* reference, const TensorView& expected);
  Check& rank(const char* name, const TensorView& tensor, int expected) {
    return rank(name, tensor, expected, expected);
  }
  Check& rank(const char* name, const TensorView& tensor, int lowest, int highest);
  // `source` says where the expectation comes from: "input.shape[-1]".
  Check& shape(const char* name, const TensorView& tensor, std::initializer_list<int64_t> expected,
               const char* source = nullptr);
  Check& same_shape(const char* name, const TensorView& tensor, const char* reference, const TensorView& expected);
  // All on the device of the first.
  Check& same_device(std::initializer_list<NamedTensor> tensors);
  Check& contiguous(const char* name, const TensorView& tensor);
  // The last dimension's stride is 1 (or its extent at most 1).
  Check& dense_last_dim(const char* name, const TensorView& tensor);
  // The vectors along the last dimension lie at one distance, however many dimensions lead up to it. Sets *row_stride
  // to that distance in elements (0 if there are fewer than two of them).
  Check& uniform_rows(const char* name, const TensorView& tensor, int64_t* row_stride);
  // The pointer and every stride but the last dimension's are multiples of `bytes`.
  Check& aligned(const char* name, const TensorView& tensor, int64_t bytes);
  // No two elements of an output share an address (an expanded tensor's do).
  Check& no_internal_overlap(const char* name, const TensorView& tensor);
  // The bytes of `output`, if any, are apart from those of `input`. Slices of a common row (of a fused qkv tensor, of a
  // cache that holds keys and values in turn) are told apart; else the spans of both must not meet.
  Check& no_overlap(const char* output_name, const TensorView& output, const char* input_name, const TensorView& input);

  // Every index is at least 0 and less than `end`. Looks if checks_values(). i32 | i64, any shape; `source` as in
  // shape().
  Check& in_range(const char* name, const TensorView& indices, int64_t end, const char* source, Stream stream);

  // Anything else. `value` is formatted only on failure: that(eps >= 0, "eps", eps, "at least 0").
  Check& that(bool holds, const char* name, double value, const char* expected);
  Check& that(bool holds, const char* name, int64_t value, const char* expected);
  Check& that(bool holds, const char* name, int value, const char* expected) {
    return that(holds, name, static_cast<int64_t>(value), expected);
  }
  // For what has no single value: that(k.has_value() == v.has_value(), "k", "given without v", "both or neither").
  Check& that(bool holds, const char* name, const char* is, const char* expected);

 private:
  Check& fail(const char* name, const std::string& is, const std::string& expected);

  const char* operator_;
  Status status_;
};

// "[2, 4096]"
std::string shape_string(const TensorView& tensor);

// Whether what index tensors hold is checked: always on the CPU; on a GPU if the variable SGL_KERNEL_CHECK is 1 (it is
// read once), unless the stream is being captured: a graph's indices are those of its replays. Such a check waits for
// the stream, the one thing below python/ that does.
bool checks_values(Device device, Stream stream);

// A tensor where the host can read it: on the CPU the tensor itself, else a copy of the memory that it spans, with its
// strides, made behind what the stream does already.
class HostCopy {
 public:
  Status take(const char* operator_name, const TensorView& tensor, Stream stream);

  // Valid while this object and the tensor are.
  const TensorView& view() const { return view_; }

 private:
  std::vector<char> bytes_;
  TensorView view_;
};

}  // namespace sgl_kernel
