// torch.ops.sgl_kernel.* without a Python frame.
//
// torch 2.10 and later export C functions (its torch/csrc/stable/c/shim.h) that register a kernel with the dispatcher
// and that describe a tensor; what they mean to a caller that names torch 2.10 stays so in later releases. They are
// looked up in the libtorch that the process has loaded: no header of it is compiled, nothing is linked. In a process
// whose torch lacks them, torch.ops runs the Python functions that sgl_kernel/_ops.py registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel::bind {

// An argument on the dispatcher's stack: the bits of a number; a handle of a tensor, which the callee owns; of an
// optional argument a null, or a pointer to such a value, which the callee owns too.
using StackValue = uint64_t;

using StackFunction = void (*)(StackValue* stack, uint64_t num_arguments, uint64_t num_results);

// Makes `function` what torch.ops.sgl_kernel.<name> runs on CPU and CUDA tensors; does nothing where torch cannot.
void register_with_torch(const char* name, StackFunction function);

// The current stream of torch; null for the CPU. Unlike current_stream(), it needs no interpreter.
Stream torch_stream(Device device);

// As exceptions that torch turns into Python's: ValueError for InvalidArgument, RuntimeError for all others.
void throw_through_torch(const Status& status);

// A tensor that was handed over on the stack.
class StackTensor {
 public:
  explicit StackTensor(StackValue value) : handle_(reinterpret_cast<void*>(value)) {}
  ~StackTensor();
  StackTensor(const StackTensor&) = delete;
  StackTensor& operator=(const StackTensor&) = delete;

  // Throws std::invalid_argument if it is none, or has a dtype, device or rank that no operator takes: "has …", "is on
  // …".
  TensorView view() const;

 private:
  void* handle_;
};

// A parameter of type T, read from the stack. Making one takes over what it owns, and cannot fail.
template <class T>
class StackArgument {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(StackValue));

 public:
  explicit StackArgument(StackValue value) { std::memcpy(&value_, &value, sizeof(T)); }  // the low bytes
  T get() const { return value_; }

 private:
  T value_;
};

template <>
class StackArgument<TensorView> {
 public:
  explicit StackArgument(StackValue value) : tensor_(value) {}
  TensorView get() const { return tensor_.view(); }

 private:
  StackTensor tensor_;
};

template <class T>
class StackArgument<std::optional<T>> {
 public:
  explicit StackArgument(StackValue value) {
    auto* inner = reinterpret_cast<StackValue*>(value);
    if (inner == nullptr) return;
    argument_.emplace(*inner);
    delete inner;  // torch made it with new, and says that the callee deletes it
  }
  std::optional<T> get() const { return argument_ ? std::optional<T>(argument_->get()) : std::nullopt; }

 private:
  std::optional<StackArgument<T>> argument_;
};

}  // namespace sgl_kernel::bind
