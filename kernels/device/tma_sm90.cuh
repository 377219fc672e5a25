// Hopper's tensor copy engine: boxes of a tensor in global memory to swizzled shared memory, one instruction a box.
//
// Host: encode_tensor_map() describes the tensor and the box; the map is passed to the kernel by value as a
// `const __grid_constant__ CUtensorMap`. Device: one thread calls load_box() and the barrier counts the bytes.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "kernels/base/status.h"
#include "kernels/device/pipeline_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kTensorMapRank = 5;
// A row of a box in shared memory: what the 128-byte swizzle permutes, and the widest box it allows.
inline constexpr int kSwizzleBytes = 128;

struct TensorMapShape {
  void* data;                            // 16-byte aligned
  uint64_t extents[kTensorMapRank];      // innermost first; elements
  uint64_t strides[kTensorMapRank - 1];  // of dimensions 1…4, in bytes: multiples of 16, below 2^40
  uint32_t box[kTensorMapRank];          // box[0] * 2 bytes is at most kSwizzleBytes; each at most 256
};

// Whether strides and address are ones the copy engine takes.
inline bool tensor_map_fits(const TensorMapShape& shape) {
  if (reinterpret_cast<uintptr_t>(shape.data) % 16 != 0) return false;
  for (uint64_t stride : shape.strides) {
    if (stride % 16 != 0 || stride >= (uint64_t{1} << 40)) return false;
  }
  for (uint64_t extent : shape.extents) {
    if (extent == 0 || extent > (uint64_t{1} << 32)) return false;
  }
  return true;
}

// Elements of 16 bits (bf16 if `is_bf16`, else f16), 128-byte swizzle, zeros for what lies outside the tensor.
inline Status encode_tensor_map(const char* operator_name, CUtensorMap* map, const TensorMapShape& shape,
                                bool is_bf16) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  // The runtime finds the driver's function, so that nothing links libcuda.
  static const Encode encode = [] {
    constexpr unsigned int kSinceDriver = 12000;
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceDriver, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  if (encode == nullptr) return Unsupported(std::string(operator_name) + ": the driver has no cuTensorMapEncodeTiled");
  const cuuint32_t element_strides[kTensorMapRank] = {1, 1, 1, 1, 1};
  const CUresult result =
      encode(map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kTensorMapRank,
             shape.data, shape.extents, shape.strides, shape.box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Internal(std::string(operator_name) + ": cuTensorMapEncodeTiled fails with " + std::to_string(result));
  }
  return OkStatus();
}

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the box at these coordinates (in elements, innermost first) to `destination`, 1024-byte aligned. Its bytes,
// those outside the tensor too, count towards what `barrier` expects.
__device__ __forceinline__ void load_box(void* destination, const CUtensorMap* map, Barrier* barrier, int c0, int c1,
                                         int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2];" ::"r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
