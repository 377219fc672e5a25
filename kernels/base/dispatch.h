// Which target serves a call: multiversioning by the device of the tensors.
//
// A concept's .cu is compiled once for each SM target, in a namespace of that name; its _cpu.cc in namespace cpu. The
// concept's .cc checks the arguments and picks one of those functions, which all have the operator's own signature:
//
//   SGL_DECLARE_TARGETS(rmsnorm);   // cpu::rmsnorm, sm_90a::rmsnorm, …: those that this library is built for
//   Status rmsnorm(TensorView output, …, Stream stream) {
//     …
//     return SGL_DISPATCH(rmsnorm, output.device(), output, …, stream);
//   }
//
// The build defines SGL_HAS_SM_90A (and so on) for the .cc of a concept that has that target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

enum class Target : uint8_t { kCpu, kSm80, kSm89, kSm90a, kSm100a, kSm120a };

template <class Function>
struct TargetEntry {
  Target target;
  Function* function;
};

// Makes a CUDA device current for its lifetime. Does nothing for the CPU, or where the device is current already.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // the ordinal to go back to; -1 if none
};

namespace internal {

// The index in `built` of the target that runs on an SM (90 for 9.0): the exact one; else machine code of the same
// major architecture and a lower minor one; else the highest PTX below it. `count` if there is none.
size_t best_target(const Target* built, size_t count, int device_sm);

// What a call gets on a GPU that no built target serves: Unsupported, with the operator, the device, its compute
// capability (90 for 9.0, 0 if unknown) and what is built.
Status unserved(const char* operator_name, const Target* built, size_t count, Device device, int device_sm);

// The index in `built` of the best target for `device`, or unserved().
Status pick_target(const char* operator_name, const Target* built, size_t count, Device device, size_t* index);

template <class Function, size_t kCount, class... Args>
Status dispatch(const char* operator_name, const TargetEntry<Function> (&entries)[kCount], Device device,
                Args&&... args) {
  Target built[kCount];
  for (size_t i = 0; i < kCount; ++i) built[i] = entries[i].target;
  size_t index = 0;
  SGL_RETURN_IF_ERROR(pick_target(operator_name, built, kCount, device, &index));
  DeviceGuard guard(device);
  return entries[index].function(std::forward<Args>(args)...);
}

}  // namespace internal
}  // namespace sgl_kernel

#ifdef SGL_HAS_SM_80
#define SGL_IF_SM_80(...) __VA_ARGS__
#else
#define SGL_IF_SM_80(...)
#endif
#ifdef SGL_HAS_SM_89
#define SGL_IF_SM_89(...) __VA_ARGS__
#else
#define SGL_IF_SM_89(...)
#endif
#ifdef SGL_HAS_SM_90A
#define SGL_IF_SM_90A(...) __VA_ARGS__
#else
#define SGL_IF_SM_90A(...)
#endif
#ifdef SGL_HAS_SM_100A
#define SGL_IF_SM_100A(...) __VA_ARGS__
#else
#define SGL_IF_SM_100A(...)
#endif
#ifdef SGL_HAS_SM_120A
#define SGL_IF_SM_120A(...) __VA_ARGS__
#else
#define SGL_IF_SM_120A(...)
#endif

// `op` is a function declared in namespace sgl_kernel.
#define SGL_DECLARE_TARGETS(op)                                                                                     \
  namespace cpu {                                                                                                   \
  decltype(::sgl_kernel::op) op;                                                                                    \
  }                                                                                                                 \
  SGL_IF_SM_80(namespace sm_80 { decltype(::sgl_kernel::op) op; })                                                  \
  SGL_IF_SM_89(namespace sm_89 { decltype(::sgl_kernel::op) op; })                                                  \
  SGL_IF_SM_90A(namespace sm_90a { decltype(::sgl_kernel::op) op; })                                                \
  SGL_IF_SM_100A(namespace sm_100a { decltype(::sgl_kernel::op) op; })                                              \
  SGL_IF_SM_120A(namespace sm_120a { decltype(::sgl_kernel::op) op; })                                              \
  constexpr ::sgl_kernel::TargetEntry<decltype(::sgl_kernel::op)> op##_targets[] = {                                \
      {::sgl_kernel::Target::kCpu, &cpu::op},                                                                       \
      SGL_IF_SM_80({::sgl_kernel::Target::kSm80, &sm_80::op}, ) SGL_IF_SM_89(                                       \
          {::sgl_kernel::Target::kSm89, &sm_89::op}, ) SGL_IF_SM_90A({::sgl_kernel::Target::kSm90a, &sm_90a::op}, ) \
          SGL_IF_SM_100A({::sgl_kernel::Target::kSm100a, &sm_100a::op}, )                                           \
              SGL_IF_SM_120A({::sgl_kernel::Target::kSm120a, &sm_120a::op}, )}

#define SGL_DISPATCH(op, device, ...) ::sgl_kernel::internal::dispatch(#op, op##_targets, device, __VA_ARGS__)
