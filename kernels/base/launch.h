// How a CUDA kernel is started: errors become a Status, and programmatic dependent launch is one flag.
//
//   return launch("rmsnorm", rmsnorm_kernel<T>, {.grid = rows, .block = 256, .pdl = enable_pdl}, stream, args…);
//
// A kernel launched with pdl = true calls wait_for_predecessor() (device/pdl.cuh) before it touches memory that an
// earlier kernel may write, and may call release_successors() once its own successor may start.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

#define SGL_STRING_OF(text) #text
#define SGL_STRING(macro) SGL_STRING_OF(macro)

// In the target's namespace, because what it compiles to depends on the target.
namespace sgl_kernel::SGL_TARGET {

// Code for sm_80 and sm_89 has no griddepcontrol.wait, so it must never start before its predecessor is done, not even
// where its PTX runs on a newer GPU.
inline constexpr bool kTargetHasPdl =
    std::string_view(SGL_STRING(SGL_TARGET)) != "sm_80" && std::string_view(SGL_STRING(SGL_TARGET)) != "sm_89";

// Clusters came with the same generation.
inline constexpr bool kTargetHasClusters = kTargetHasPdl;

inline Status cuda_status(const char* operator_name, cudaError_t error) {
  if (error == cudaSuccess) return OkStatus();
  cudaGetLastError();  // an error of a launch is not sticky: leave nothing behind for the next caller
  const std::string text = std::string(operator_name) + ": CUDA says " + cudaGetErrorString(error);
  return error == cudaErrorMemoryAllocation ? ResourceExhausted(text) : Internal(text);
}

inline constexpr int64_t kMostGridY = 65535, kMostGridZ = 65535;  // CUDA's limits

struct LaunchShape {
  dim3 grid = 1;
  dim3 block = 1;
  size_t shared_bytes = 0;  // dynamic; more than 48 KiB needs allow_shared_memory() first
  bool pdl = false;
  int cluster = 1;  // blocks in a cluster, along x; more than 1 on sm_90 and later only
};

template <class... Params, class... Args>
Status launch(const char* operator_name, void (*kernel)(Params...), const LaunchShape& shape, Stream stream,
              Args&&... args) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  if (shape.pdl && kTargetHasPdl) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  return cuda_status(operator_name, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Raises a kernel's limit of dynamic shared memory. Cheap enough to call before each launch (the driver remembers).
template <class... Params>
Status allow_shared_memory(const char* operator_name, void (*kernel)(Params...), size_t bytes) {
  return cuda_status(operator_name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                         static_cast<int>(bytes)));
}

// An attribute of the current device, asked of CUDA once a device; `fallback` if it does not say.
template <cudaDeviceAttr kAttribute>
int device_attribute(int fallback) {
  constexpr int kCached = 64;
  static std::atomic<int> cache[kCached];
  int device = kCached, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess && device < kCached) {
    if (const int known = cache[device].load(std::memory_order_relaxed)) return known;
  }
  if (cudaDeviceGetAttribute(&value, kAttribute, device) != cudaSuccess) {
    cudaGetLastError();
    return fallback;
  }
  if (device < kCached) cache[device].store(value, std::memory_order_relaxed);
  return value;
}

// The number of multiprocessors of the current device.
inline int num_sms() { return device_attribute<cudaDevAttrMultiProcessorCount>(1); }

// The shared memory, in bytes, that a block of the current device may have after allow_shared_memory().
inline int max_shared_memory() { return device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(48 * 1024); }

}  // namespace sgl_kernel::SGL_TARGET
