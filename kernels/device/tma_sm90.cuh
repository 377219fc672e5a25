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

using EncodeTensorMap = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                     const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                     CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, found by the runtime, so that nothing links libcuda; null where there is none.
inline EncodeTensorMap find_encode_tensor_map() {
  static const EncodeTensorMap encode = [] {
    constexpr unsigned int kSinceDriver = 12000;
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceDriver, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(function)
                                                                        : nullptr;
  }();
  return encode;
}

inline Status encode_status(const char* operator_name, CUresult result) {
  if (result == CUDA_SUCCESS) return OkStatus();
  return Internal(std::string(operator_name) + ": cuTensorMapEncodeTiled fails with " + std::to_string(result));
}

// Elements of 16 bits (bf16 if `is_bf16`, else f16), 128-byte swizzle, zeros for what lies outside the tensor.
inline Status encode_tensor_map(const char* operator_name, CUtensorMap* map, const TensorMapShape& shape,
                                bool is_bf16) {
  const EncodeTensorMap encode = find_encode_tensor_map();
  if (encode == nullptr) return Unsupported(std::string(operator_name) + ": the driver has no cuTensorMapEncodeTiled");
  const cuuint32_t element_strides[kTensorMapRank] = {1, 1, 1, 1, 1};
  return encode_status(
      operator_name,
      encode(map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kTensorMapRank,
             shape.data, shape.extents, shape.strides, shape.box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

// A matrix with dense rows, or a batch of them.
struct MatrixMapShape {
  void* data;              // 16-byte aligned
  uint64_t rows, columns;  // at least 1
  uint64_t row_bytes;      // from row to row: a multiple of 16, below 2^40
  uint32_t box_rows, box_columns;
  int element_bytes;                                        // 1, 2 or 8
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;  // of rows of box_columns elements
  // From matrix to matrix, as row_bytes; 0 batches are one matrix, whose boxes have no coordinate of a batch.
  uint64_t batches = 0, batch_bytes = 0;
};

inline bool matrix_map_fits(const void* data, int64_t rows, int64_t columns, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes > 0 && row_bytes % 16 == 0 &&
         row_bytes < (int64_t{1} << 40) && rows <= INT32_MAX && columns <= INT32_MAX;
}

// Zeros are read outside the matrix, and nothing is written there.
inline Status encode_matrix_map(const char* operator_name, CUtensorMap* map, const MatrixMapShape& shape) {
  const EncodeTensorMap encode = find_encode_tensor_map();
  if (encode == nullptr) return Unsupported(std::string(operator_name) + ": the driver has no cuTensorMapEncodeTiled");
  const cuuint64_t extents[] = {shape.columns, shape.rows, shape.batches};
  // The driver looks at a distance that nobody goes, too.
  const cuuint64_t strides[] = {shape.row_bytes, shape.batches > 1 ? shape.batch_bytes : shape.row_bytes};
  const cuuint32_t box[] = {shape.box_columns, shape.box_rows, 1}, element_strides[] = {1, 1, 1};
  return encode_status(operator_name, encode(map,
                                             shape.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                             : shape.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                                        : CU_TENSOR_MAP_DATA_TYPE_UINT64,
                                             shape.batches == 0 ? 2 : 3, shape.data, extents, strides, box,
                                             element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle,
                                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
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

// The same for a matrix: the box at (row, column).
__device__ __forceinline__ void load_matrix_box(void* destination, const CUtensorMap* map, Barrier* barrier, int row,
                                                int column) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same of a matrix of a batch.
__device__ __forceinline__ void load_matrix_box(void* destination, const CUtensorMap* map, Barrier* barrier, int row,
                                                int column, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(batch)
      : "memory");
}

// The first of these two for a matrix that nobody reads again soon: it is the first to leave the L2 cache.
__device__ __forceinline__ void load_matrix_box_once(void* destination, const CUtensorMap* map, Barrier* barrier,
                                                     int row, int column) {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "l"(policy)
      : "memory");
}

// Brings a box to the L2 cache. It is no read: allowed before wait_for_predecessor(), whoever writes the tensor.
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4) {
  asm volatile("cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %5}];" ::"l"(map), "r"(c0),
               "r"(c1), "r"(c2), "r"(c3), "r"(c4)
               : "memory");
}

// The same for a matrix: the box at (row, column).
__device__ __forceinline__ void prefetch_matrix_box(const CUtensorMap* map, int row, int column) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
               : "memory");
}

// Copies a box from shared memory to (row, column). The thread then closes a group of such copies with commit_stores();
// the writers of `source` have called fence_shared_for_async_proxy() before the barrier that this thread waited for.
__device__ __forceinline__ void store_matrix_box(const CUtensorMap* map, const void* source, int row, int column) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(column), "r"(row)
               : "memory");
}

// The same of a matrix of a batch.
__device__ __forceinline__ void store_matrix_box(const CUtensorMap* map, const void* source, int row, int column,
                                                 int batch) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(column), "r"(row), "r"(batch)
               : "memory");
}

__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's newest groups still read shared memory.
template <int kPending>
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
