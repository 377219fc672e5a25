// Rotary embedding: memory-bound, each head read once and written once (k twice with the fused cache write).
//
// A lane holds two vectors of a head that rotate into each other (x and y), or two that are copied: lane l < pairs /
// kVec takes pairs l * kVec to (l + 1) * kVec, the lanes behind them the part of the head beyond rotary_dim. A block is
// the lanes of several heads of one token, which share its row of the table; each thread takes kHeads heads, so that at
// many tokens its cosines and sines serve several and more loads are in flight. The heads of a token are numbered q, k,
// v. Few tokens: one head a thread, and a token's heads are spread over several blocks.
//
// The position, then its row of the table, are two dependent loads: the heads are loaded before those are waited for.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/elementwise/rope_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kMaxThreads = 512;  // what the widest head (1024) needs, an element at a time

__device__ __forceinline__ int64_t at(const Indices& indices, int64_t i) {
  return indices.is_64 ? __ldg(static_cast<const int64_t*>(indices.data) + i)
                       : __ldg(static_cast<const int32_t*>(indices.data) + i);
}

template <class T>
__device__ __forceinline__ T* head(const Heads& heads, int64_t token, int head) {
  return static_cast<T*>(heads.data) + token * heads.stride + head * heads.head_stride;
}

// kVec values of the table as float; 16 bytes a load.
template <class CacheT, int kVec>
__device__ __forceinline__ void load_table(float (&to)[kVec], const CacheT* from) {
  constexpr int kStep = kVec < kVecSize<CacheT> ? kVec : kVecSize<CacheT>;
#pragma unroll
  for (int i = 0; i < kVec; i += kStep) {
    const Vec<CacheT, kStep> part = Vec<CacheT, kStep>::load(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) to[i + j] = to_float(part[j]);
  }
}

// Rotates the kVec pairs in a and b: (a[i], b[i]), or, interleaved, neighbours within a, then within b.
template <bool kInterleave, class T, int kVec>
__device__ __forceinline__ void rotate(Vec<T, kVec>& a, Vec<T, kVec>& b, const float (&cos)[kVec],
                                       const float (&sin)[kVec]) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const bool in_a = 2 * i < kVec;
    T& first = !kInterleave ? a[i] : in_a ? a[2 * i] : b[2 * i - kVec];
    T& second = !kInterleave ? b[i] : 2 * i + 1 < kVec ? a[2 * i + 1] : b[2 * i + 1 - kVec];
    const float x = to_float(first), y = to_float(second);
    // Spelled out, so that every instance rounds alike.
    first = from_float<T>(fmaf(x, cos[i], -(y * sin[i])));
    second = from_float<T>(fmaf(y, cos[i], x * sin[i]));
  }
}

template <bool kInterleave, class T, class CacheT, int kVec, int kHeads>
__global__ void __launch_bounds__(kMaxThreads) rope_kernel(const __grid_constant__ RopeParams params) {
  const int num_heads = params.num_q_heads + params.num_k_heads + (params.v.data != nullptr ? params.num_k_heads : 0);
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x;
  const int first_head = (blockIdx.y * kHeads) * blockDim.y + threadIdx.y;
  const int rotary_lanes = params.rotary_dim / 2 / kVec;
  const bool rotates = lane < rotary_lanes;

  // The two vectors of this lane, as offsets in a head. The second is beyond the head in the last copying lane if the
  // number of vectors is odd.
  int a_offset, b_offset;
  if (!rotates) {
    a_offset = params.rotary_dim + 2 * kVec * (lane - rotary_lanes);
    b_offset = a_offset + kVec;
  } else if (kInterleave) {
    a_offset = 2 * kVec * lane;
    b_offset = a_offset + kVec;
  } else {
    a_offset = kVec * lane;
    b_offset = a_offset + params.rotary_dim / 2;
  }
  const bool has_b = b_offset < params.head_dim;

  wait_for_predecessor();
  release_successors();

  Vec<T, kVec> a[kHeads], b[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    int h = first_head + i * blockDim.y;
    if (h >= num_heads) continue;
    const T* from;
    if (h < params.num_q_heads) {
      from = head<const T>(params.q, token, h);
    } else if ((h -= params.num_q_heads) < params.num_k_heads) {
      from = head<const T>(params.k, token, h);
    } else {
      from = head<const T>(params.v, token, h - params.num_k_heads);
    }
    a[i] = Vec<T, kVec>::load(from + a_offset);
    if (has_b) b[i] = Vec<T, kVec>::load(from + b_offset);
  }

  float cos[kVec], sin[kVec];
  if (rotates) {
    const CacheT* row = static_cast<const CacheT*>(params.cos_sin_cache) +
                        at(params.positions, token) * params.cache_stride + lane * kVec;
    load_table(cos, row);
    load_table(sin, row + params.rotary_dim / 2);
  }
  const int64_t slot = params.v.data != nullptr ? at(params.slots, token) : 0;

#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    int h = first_head + i * blockDim.y;
    if (h >= num_heads) continue;
    const auto store = [&](T* to) {
      a[i].store(to + a_offset);
      if (has_b) b[i].store(to + b_offset);
    };
    if (h >= params.num_q_heads + params.num_k_heads) {
      store(head<T>(params.v_buffer, slot, h - params.num_q_heads - params.num_k_heads));
      continue;
    }
    if (rotates) rotate<kInterleave>(a[i], b[i], cos, sin);
    const bool is_q = h < params.num_q_heads;
    const Heads &in = is_q ? params.q : params.k, &out = is_q ? params.q_rope : params.k_rope;
    if (!is_q) h -= params.num_q_heads;
    if (rotates || in.data != out.data) store(head<T>(out, token, h));  // in place, what is copied is there already
    if (!is_q && params.v.data != nullptr) store(head<T>(params.k_buffer, slot, h));
  }
}

template <bool kInterleave, class T, class CacheT, int kVec, int kHeads>
Status launch_heads(const RopeParams& params, int lanes, int num_heads, int block_threads, Stream stream) {
  // As many heads a block as block_threads allows, but no more than it takes to share the heads out evenly.
  const int most = std::max(1, block_threads / lanes);
  const int blocks_per_token = (num_heads + most * kHeads - 1) / (most * kHeads);
  const int height = (num_heads + blocks_per_token * kHeads - 1) / (blocks_per_token * kHeads);
  return launch(params.operator_name, rope_kernel<kInterleave, T, CacheT, kVec, kHeads>,
                {.grid = dim3(static_cast<unsigned>(params.num_tokens), blocks_per_token),
                 .block = dim3(lanes, height),
                 .pdl = params.enable_pdl},
                stream, params);
}

template <bool kInterleave, class T, class CacheT, int kVec>
Status launch_vectors(const RopeParams& params, Stream stream) {
  const bool copies = params.q.data != params.q_rope.data || params.k.data != params.k_rope.data || params.v.data;
  const int rest = copies ? params.head_dim - params.rotary_dim : 0;  // in place, it stays where it is
  const int lanes = params.rotary_dim / 2 / kVec + (rest / kVec + 1) / 2;
  if (lanes == 0) return OkStatus();
  const int num_heads = params.num_q_heads + params.num_k_heads + (params.v.data != nullptr ? params.num_k_heads : 0);
  if constexpr (kVec > 1) {
    // Above this many heads every multiprocessor has enough of them.
    constexpr int64_t kManyHeads = int64_t{1} << 15;
    if (params.num_tokens * num_heads >= kManyHeads) {
      return launch_heads<kInterleave, T, CacheT, kVec, 2>(params, lanes, num_heads, /*block_threads=*/256, stream);
    }
  }
  return launch_heads<kInterleave, T, CacheT, kVec, 1>(params, lanes, num_heads, /*block_threads=*/128, stream);
}

bool aligned(const Heads& heads, int64_t elements, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(heads.data) % (elements * element_bytes) == 0 && heads.stride % elements == 0 &&
         heads.head_stride % elements == 0;
}

template <class T, class CacheT>
Status run(const RopeParams& params, Stream stream) {
  constexpr int kVec = kVecSize<T>;
  bool wide = params.rotary_dim / 2 % kVec == 0 && params.head_dim % kVec == 0 &&
              reinterpret_cast<uintptr_t>(params.cos_sin_cache) % 16 == 0 &&
              params.cache_stride % kVecSize<CacheT> == 0;
  for (const Heads* heads :
       {&params.q, &params.q_rope, &params.k, &params.k_rope, &params.v, &params.k_buffer, &params.v_buffer}) {
    wide = wide && (heads->data == nullptr || aligned(*heads, kVec, sizeof(T)));
  }
  if (params.interleave) {
    return wide ? launch_vectors<true, T, CacheT, kVec>(params, stream)
                : launch_vectors<true, T, CacheT, 1>(params, stream);
  }
  return wide ? launch_vectors<false, T, CacheT, kVec>(params, stream)
              : launch_vectors<false, T, CacheT, 1>(params, stream);
}

}  // namespace

Status rope(const RopeParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, {
    if (params.cache_dtype == DType::kF32) return run<T, float>(params, stream);
    return run<T, T>(params, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
