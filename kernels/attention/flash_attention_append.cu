// Step 1 of attention with new keys: bound by memory, a few rows of cache writes.
//
// One warp a row, over the rows of k_new, of v_new and of q (only if they are rotated) of one sequence: blockIdx.y is
// the sequence, blockIdx.x covers the tokens, blockIdx.z the heads of k_new, v_new and q in turn.
#include "kernels/attention/flash_attention_params.h"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/fp8.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;  // tokens of a block

// Copies a row of `dim` elements; the first rotary_dim of them are rotated by the angles of `position`.
//   interleaved: pairs (2 i, 2 i + 1), else (i, i + rotary_dim / 2), i < rotary_dim / 2
template <class T>
__device__ __forceinline__ void rotate_row(T* target, const T* source, int dim, int rotary_dim, int64_t position,
                                           const AttentionParams& params, int lane) {
  const int pairs = rotary_dim / 2;
  const T* cosines = static_cast<const T*>(params.rotary_cos) + position * pairs;
  const T* sines = static_cast<const T*>(params.rotary_sin) + position * pairs;
  for (int i = lane; i < pairs; i += kWarp) {
    const int first = params.rotary_interleaved ? 2 * i : i;
    const int second = params.rotary_interleaved ? 2 * i + 1 : i + pairs;
    const float x = to_float(source[first]), y = to_float(source[second]);
    const float cosine = to_float(cosines[i]), sine = to_float(sines[i]);
    target[first] = from_float<T>(x * cosine - y * sine);
    target[second] = from_float<T>(x * sine + y * cosine);
  }
  for (int i = rotary_dim + lane; i < dim; i += kWarp) target[i] = source[i];
}

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    append_new_keys_kernel(const __grid_constant__ AttentionParams params) {
  wait_for_predecessor();
  release_successors();
  const int batch = blockIdx.y, lane = threadIdx.x % kWarp;
  const int token = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const AttentionSequence sequence = sequence_of(params, batch);
  const int cached = sequence.k_len - sequence.k_new_len;
  const int64_t first_position = first_rotary_position(params, sequence, batch);
  int head = blockIdx.z;
  if (head < 2 * params.num_heads_k) {
    if (token >= sequence.k_new_len) return;
    const KeySlot slot = key_slot(params, sequence, cached + token);
    if (head < params.num_heads_k) {
      const T* source = static_cast<const T*>(params.k_new) + batch * params.k_new_batch_stride +
                        (sequence.k_new_start + token) * params.k_new_row_stride + head * params.k_new_head_stride;
      T* target = static_cast<T*>(const_cast<void*>(params.k)) +
                  slot_offset(slot, params.k_batch_stride, params.k_row_stride) + head * params.k_head_stride;
      rotate_row(target, source, params.head_dim, params.rotary_dim,
                 clamp_rotary_position(params, first_position + token), params, lane);
      return;
    }
    head -= params.num_heads_k;
    const T* source = static_cast<const T*>(params.v_new) + batch * params.v_new_batch_stride +
                      (sequence.k_new_start + token) * params.v_new_row_stride + head * params.v_new_head_stride;
    T* target = static_cast<T*>(const_cast<void*>(params.v)) +
                slot_offset(slot, params.v_batch_stride, params.v_row_stride) + head * params.v_head_stride;
    for (int i = lane; i < params.head_dim_v; i += kWarp) target[i] = source[i];
    return;
  }
  head -= 2 * params.num_heads_k;
  if (token >= sequence.q_len) return;
  const AttentionParams rotated = with_rotated_queries(params);
  const int64_t row = sequence.q_start + token;
  const T* source = static_cast<const T*>(params.q) + batch * params.q_batch_stride + row * params.q_row_stride +
                    head * params.q_head_stride;
  T* target = static_cast<T*>(params.rotated_q) + batch * rotated.q_batch_stride + row * rotated.q_row_stride +
              head * rotated.q_head_stride;
  rotate_row(target, source, params.head_dim, params.rotary_dim,
             clamp_rotary_position(params, first_position + (params.rotate_q_by_row ? token : 0)), params, lane);
}

}  // namespace

Status append_new_keys(const AttentionParams& params, Stream stream) {
  const int tokens =
      params.rotary_dim > 0 && params.seqlen_q > params.seqlen_k_new ? params.seqlen_q : params.seqlen_k_new;
  const int heads = 2 * params.num_heads_k + (params.rotary_dim > 0 ? params.num_heads : 0);
  if (tokens == 0 || params.batch == 0) return OkStatus();
  if (params.batch > kMostGridY || heads > kMostGridZ) {
    return Unsupported("fwd: k_new has " + std::to_string(params.batch) + " sequences and " + std::to_string(heads) +
                       " heads to write, expected at most 65535 of each");
  }
  const auto kernel = params.dtype == DType::kF8E4M3 ? append_new_keys_kernel<__nv_fp8_e4m3>
                      : params.dtype == DType::kF16  ? append_new_keys_kernel<__half>
                                                     : append_new_keys_kernel<__nv_bfloat16>;
  return launch(
      "fwd", kernel,
      {.grid = dim3((tokens + kWarps - 1) / kWarps, params.batch, heads), .block = kWarps * kWarp, .pdl = true}, stream,
      params);
}

}  // namespace sgl_kernel::SGL_TARGET
