// The result of every host function in kernels/: OK, or a code and one sentence.
//
// An OK Status is a null pointer: making, returning and testing it allocates nothing. Nothing below python/ throws.
// A message names, in this order: the operator, the argument, what it is, what was expected:
//   rmsnorm: weight has shape [4096], expected [5120] (= input.shape[-1])
#pragma once

#include <memory>
#include <string>
#include <utility>

namespace sgl_kernel {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // the caller's mistake                       ValueError in Python
  kUnsupported,        // a right call that no built target serves   NotImplementedError
  kResourceExhausted,  // no memory                                  RuntimeError
  kInternal,           // CUDA reported an error                     RuntimeError
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : error_(new Error{code, std::move(message)}) {}

  bool ok() const { return error_ == nullptr; }
  StatusCode code() const { return ok() ? StatusCode::kOk : error_->code; }
  const char* message() const { return ok() ? "" : error_->message.c_str(); }

 private:
  struct Error {
    StatusCode code;
    std::string message;
  };
  std::unique_ptr<Error> error_;
};

inline Status OkStatus() { return Status(); }
inline Status InvalidArgument(std::string message) { return Status(StatusCode::kInvalidArgument, std::move(message)); }
inline Status Unsupported(std::string message) { return Status(StatusCode::kUnsupported, std::move(message)); }
inline Status ResourceExhausted(std::string message) {
  return Status(StatusCode::kResourceExhausted, std::move(message));
}
inline Status Internal(std::string message) { return Status(StatusCode::kInternal, std::move(message)); }

}  // namespace sgl_kernel

// Returns from the enclosing function if `expression` is not OK.
#define SGL_RETURN_IF_ERROR(expression)                                             \
  do {                                                                              \
    if (::sgl_kernel::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)
