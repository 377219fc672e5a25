// Reductions over a warp and over a block. The order of the operations is fixed by the sizes: the same bits every run.
#pragma once

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kWarpSize = 32;

struct Sum {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
  static constexpr float kIdentity = 0.0f;
};

struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  static constexpr float kIdentity = -3.402823466e38f;  // the lowest finite float: fmaxf() drops NaN
};

// Over groups of kWidth neighbouring lanes (a power of 2 up to 32); every lane gets the result.
template <class Op, int kWidth = kWarpSize>
__device__ __forceinline__ float warp_reduce(float value) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    value = Op()(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// Over the block (whole warps, at most 32 of them); every thread gets the result. `scratch` holds 32 floats of shared
// memory; a second use of it needs a __syncthreads() in between.
template <class Op>
__device__ __forceinline__ float block_reduce(float value, float* scratch) {
  value = warp_reduce<Op>(value);
  const int num_warps = blockDim.x / kWarpSize;
  if (num_warps == 1) return value;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp_reduce<Op>(lane < num_warps ? scratch[lane] : Op::kIdentity);
}

}  // namespace sgl_kernel::SGL_TARGET
