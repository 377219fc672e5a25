#include "kernels/base/dispatch.h"

#include <string>

#ifdef SGL_WITH_CUDA
#include <cuda_runtime_api.h>

#include <atomic>
#endif

namespace sgl_kernel {
namespace {

struct TargetTraits {
  const char* name;
  int sm;        // compute capability times 10; 0 for the CPU
  bool has_ptx;  // the portable targets carry PTX, the architecture-specific ones ("a") cannot
};

TargetTraits traits_of(Target target) {
  switch (target) {
    case Target::kCpu:
      return {"cpu", 0, false};
    case Target::kSm80:
      return {"sm_80", 80, true};
    case Target::kSm89:
      return {"sm_89", 89, true};
    case Target::kSm90a:
      return {"sm_90a", 90, false};
    case Target::kSm100a:
      return {"sm_100a", 100, false};
    case Target::kSm120a:
      return {"sm_120a", 120, false};
  }
  return {"?", 0, false};
}

// How well machine code or PTX of `target` serves a device: higher is better, 0 is not at all.
int fitness(Target target, int device_sm) {
  const TargetTraits traits = traits_of(target);
  if (traits.sm == 0 || traits.sm > device_sm) return 0;
  if (traits.sm == device_sm) return 3000;
  if (!traits.has_ptx) return 0;  // "a" code runs on its own SM alone
  const bool same_major = traits.sm / 10 == device_sm / 10;
  return (same_major ? 2000 : 1000) + traits.sm;
}

#ifdef SGL_WITH_CUDA
// The SM of a device as 90 for 9.0; 0 if CUDA cannot say. Asked of CUDA once a device.
int device_sm(int ordinal) {
  constexpr int kCached = 64;
  static std::atomic<int> cache[kCached];
  if (ordinal >= 0 && ordinal < kCached) {
    if (const int sm = cache[ordinal].load(std::memory_order_relaxed)) return sm;
  }
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess) {
    cudaGetLastError();  // clears it: the caller gets a Status instead
    return 0;
  }
  const int sm = major * 10 + minor;
  if (ordinal >= 0 && ordinal < kCached) cache[ordinal].store(sm, std::memory_order_relaxed);
  return sm;
}
#else
int device_sm(int) { return 0; }
#endif

}  // namespace

#ifdef SGL_WITH_CUDA
DeviceGuard::DeviceGuard(Device device) {
  if (device.is_cpu()) return;
  int current = 0;
  if (cudaGetDevice(&current) == cudaSuccess && current != device.index && cudaSetDevice(device.index) == cudaSuccess) {
    previous_ = current;
  }
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}
#else
DeviceGuard::DeviceGuard(Device) {}
DeviceGuard::~DeviceGuard() = default;
#endif

namespace internal {

size_t best_target(const Target* built, size_t count, int device_sm) {
  size_t index = count;
  int best = 0;
  for (size_t i = 0; i < count; ++i) {
    const int fit = fitness(built[i], device_sm);
    if (fit > best) {
      best = fit;
      index = i;
    }
  }
  return index;
}

Status unserved(const char* operator_name, const Target* built, size_t count, Device device, int device_sm) {
  std::string text = std::string(operator_name) + ": device cuda:" + std::to_string(device.index);
  if (device_sm > 0) {
    text += " has compute capability " + std::to_string(device_sm / 10) + "." + std::to_string(device_sm % 10);
  } else {
    text += " is not known to the CUDA runtime of this build";
  }
  text += ", expected one that a built target serves (built:";
  for (size_t i = 0; i < count; ++i) text += (i == 0 ? " " : ", ") + std::string(traits_of(built[i]).name);
  return Unsupported(text + ")");
}

Status pick_target(const char* operator_name, const Target* built, size_t count, Device device, size_t* index) {
  if (device.is_cpu()) {
    *index = 0;  // every concept has the CPU target, and lists it first
    return OkStatus();
  }
  const int sm = device_sm(device.index);
  *index = best_target(built, count, sm);
  return *index < count ? OkStatus() : unserved(operator_name, built, count, device, sm);
}

}  // namespace internal
}  // namespace sgl_kernel
