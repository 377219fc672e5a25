// ggml_dequantize: a warp decodes 32 groups of 32 weights at a time, one a lane, and writes them 16 bytes a lane, in
// order. Bound by memory: 2 or 4 bytes written for each 0.2 to 1.1 read. Enough warps are resident to hide the copies,
// so that a warp handles one run of groups and ends. H200, 2026-11-23, 8192 x 8192 to bf16, read and written: Q4_0 42.9
// µs (4010 GB/s), Q4_1 43.8 (4030), Q8_0 51.1 (4020), Q4_K 42.7 (4030), Q6_K 47.3 (4000).
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/prefetch_phase.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

// Blocks so small end at different times, each at another point of its run.
template <class Format>
constexpr int kWarps = Format::kGroupsPerBlock == 1 ? 2 : 4;

template <class Format>
constexpr int kRunBytes = sizeof(typename Format::Block) * kWarpSize / Format::kGroupsPerBlock;

// Whether so little is read for what is written that reads and writes are better kept apart; else a warp asks for its
// own run.
template <class Format>
constexpr bool kByPhases = 4 * kRunBytes<Format> <= 3 * kWarpSize * kGroupSize;

// A warp's shared memory: the staged bytes, then the decoded quants of 32 groups.
template <class Format>
constexpr int kWarpBytes = staged_bytes(kRunBytes<Format>) + kWarpSize * kGroupSize;

// Each value is rounded after the product and after the sum, as numpy does.
template <class Format>
__device__ __forceinline__ float dequantized(int quant, float scale, float offset) {
  const float product = __fmul_rn(scale, static_cast<float>(quant));
  return Format::kHasOffset ? __fadd_rn(product, offset) : product;
}

// kSize elements a lane and step. `quants` holds the run's bytes in order; lane l knows scale and offset of group l.
template <class Format, int kSize, class T>
__device__ __forceinline__ void write_run(T* result, const uint8_t* quants, const WeightGroup& group, int elements) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll(kSize == 1 ? 1 : kGroupSize / kSize)
  for (int i = 0; i < kGroupSize / kSize; ++i) {
    const int first = (i * kWarpSize + lane) * kSize;
    const int owner = first / kGroupSize;
    const bool second_half = Format::kScales == 2 && first % kGroupSize >= 16;
    float scale = __shfl_sync(0xffffffff, group.scale[0], owner), offset = 0.0f;
    if constexpr (Format::kHasOffset) offset = __shfl_sync(0xffffffff, group.offset[0], owner);
    if constexpr (Format::kScales == 2) {
      const float scale1 = __shfl_sync(0xffffffff, group.scale[1], owner);
      scale = second_half ? scale1 : scale;
      if constexpr (Format::kHasOffset) {
        const float offset1 = __shfl_sync(0xffffffff, group.offset[1], owner);
        offset = second_half ? offset1 : offset;
      }
    }
    const auto bytes = Vec<int8_t, kSize>::load(reinterpret_cast<const int8_t*>(quants + first));
    Vec<T, kSize> values;
#pragma unroll
    for (int j = 0; j < kSize; ++j) values[j] = from_float<T>(dequantized<Format>(bytes[j], scale, offset));
    if (first >= elements) continue;
    if constexpr (sizeof(values) == sizeof(uint4)) {
      // An intrinsic, because nvcc takes the plain store of the first vector apart, which cost a third of the
      // bandwidth.
      uint4 words;
      memcpy(&words, &values, sizeof(words));
      __stwb(reinterpret_cast<uint4*>(result + first), words);
    } else {
      result[first] = values[0];
    }
  }
}

// In vectors of 16 bytes if the result is aligned to them, else one by one.
template <class Format, class T>
__device__ __forceinline__ void write_run(T* result, const uint8_t* quants, const WeightGroup& group, int elements,
                                          bool vectors) {
  if (vectors) {
    write_run<Format, kVecSize<T>>(result, quants, group, elements);
  } else {
    write_run<Format, 1>(result, quants, group, elements);
  }
}

template <class Format>
__global__ void __launch_bounds__(kWarps<Format>* kWarpSize)
    ggml_dequantize_kernel(void* result, DType dtype, const uint8_t* W, int64_t num_groups, bool vectors) {
  extern __shared__ uint4 shared[];
  using Block = typename Format::Block;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t first_group = (int64_t{blockIdx.x} * kWarps<Format> + warp) * kWarpSize;
  release_successors();
  if (first_group >= num_groups) return;

  const int groups = static_cast<int>(min(int64_t{kWarpSize}, num_groups - first_group));
  uint8_t* staged = reinterpret_cast<uint8_t*>(shared) + warp * kWarpBytes<Format>;
  uint8_t* quants = staged + staged_bytes(kRunBytes<Format>);
  const uint8_t* run = W + first_group / Format::kGroupsPerBlock * sizeof(Block);
  const int bytes = groups / Format::kGroupsPerBlock * static_cast<int>(sizeof(Block));
  // A hint and no read: W may be written by the predecessor.
  if constexpr (kByPhases<Format>) {
    constexpr int kPhaseBlocks = 1024;
    prefetch_phase<kPhaseBlocks>(W, num_groups / Format::kGroupsPerBlock * sizeof(Block),
                                 kWarps<Format> * kRunBytes<Format>);
  } else {
    constexpr int kCacheLine = 128;
    if (lane * kCacheLine < bytes) prefetch_to_l2(run + lane * kCacheLine);
  }
  wait_for_predecessor();
  if (first_group > 0 && first_group + kWarpSize < num_groups) {
    stage_run(staged, run, bytes);
  } else {
    stage_run_at_edge(staged, run, bytes, W, W + num_groups / Format::kGroupsPerBlock * sizeof(Block));
  }
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();

  WeightGroup group = {};
  if (lane < groups) {
    const Block* blocks = reinterpret_cast<const Block*>(staged + staged_offset(run));
    Format::decode(blocks[lane / Format::kGroupsPerBlock], lane % Format::kGroupsPerBlock, group);
  }
  uint4* own = reinterpret_cast<uint4*>(quants + lane * kGroupSize);
  own[0] = make_uint4(group.quants[0], group.quants[1], group.quants[2], group.quants[3]);
  own[1] = make_uint4(group.quants[4], group.quants[5], group.quants[6], group.quants[7]);
  __syncwarp();

  const int64_t start = first_group * kGroupSize;
  const int elements = groups * kGroupSize;
  if (dtype == DType::kF16) {
    write_run<Format>(static_cast<__half*>(result) + start, quants, group, elements, vectors);
  } else if (dtype == DType::kBF16) {
    write_run<Format>(static_cast<__nv_bfloat16*>(result) + start, quants, group, elements, vectors);
  } else {
    write_run<Format>(static_cast<float*>(result) + start, quants, group, elements, vectors);
  }
}

template <class Format>
Status dequantize(TensorView result, TensorView W, Stream stream) {
  const int64_t num_groups = result.num_elements() / kGroupSize;
  const bool vectors = reinterpret_cast<uintptr_t>(result.data()) % 16 == 0;
  constexpr int64_t kBlockGroups = kWarps<Format> * kWarpSize;
  return launch("ggml_dequantize", ggml_dequantize_kernel<Format>,
                {.grid = static_cast<unsigned>((num_groups + kBlockGroups - 1) / kBlockGroups),
                 .block = kWarps<Format> * kWarpSize,
                 .shared_bytes = kWarps<Format> * kWarpBytes<Format>,
                 .pdl = true},
                stream, result.data(), result.dtype(), W.data<const uint8_t>(), num_groups, vectors);
}

}  // namespace

Status ggml_dequantize(TensorView result, TensorView W, int64_t type, int64_t, int64_t, Stream stream) {
  SGL_SWITCH_GGML_TYPE(type, F, return dequantize<F>(result, W, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
