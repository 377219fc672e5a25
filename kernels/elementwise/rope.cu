// Rotary embedding: memory-bound, each head read once and written once (k twice with the fused cache write).
//
// A lane holds two vectors of a head that rotate into each other (x and y), or two that are copied: lane l < pairs /
// kVec takes pairs l * kVec to (l + 1) * kVec, the lanes behind them the part of the head beyond rotary_dim. A thread
// takes kHeads heads of one tensor and one token, far apart, so that neighbouring threads have neighbouring heads: its
// share. The shares of a token are numbered q, k, v; a block has those that come next, of whatever token. Few tokens:
// one head a thread. Many: two, which need the cosines and sines once and have four loads in flight.
//
// The position, then its row of the table, are two dependent loads: the heads are loaded before those are waited for.
//
// Measured on an H200, 2026-11-23, bf16, 64 + 4 heads of 128, in place, inputs beyond the L2 cache: one token takes
// 1.1 µs, 128 tokens 2.7, 1024 tokens 10.6, 16384 tokens 145.3 (3980 GB/s); with the cache write 1.2, 2.8, 11.6, 156.4
// (4020 GB/s).

#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/elementwise/rope_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kBlock = 128;          // threads of a block, if a head needs no more
constexpr int kManyHeads = 2;        // of a thread, at many tokens
constexpr int kManyHeadsBlocks = 8;  // on a multiprocessor then
constexpr int kMaxThreads = 512;     // what the widest head (1024) needs, an element at a time

__device__ __forceinline__ int64_t at(const Indices& indices, int64_t i) {
  return indices.is_64 ? __ldg(static_cast<const int64_t*>(indices.data) + i)
                       : __ldg(static_cast<const int32_t*>(indices.data) + i);
}

// The heads that one thread takes of a token: `first`, and those `step` apart behind it.
struct Share {
  int first;
  int step;
  int num_heads;

  __device__ __forceinline__ bool has(int i) const { return first + i * step < num_heads; }
};

// Element `offset` of each head of a share: of head i at pointer + i * step.
template <class T>
struct Column {
  T* pointer;
  int64_t step;

  __device__ __forceinline__ Column(const Heads& heads, int64_t row, const Share& share, int offset)
      : pointer(static_cast<T*>(heads.data) + row * heads.stride + share.first * heads.head_stride + offset),
        step(share.step * heads.head_stride) {}
  __device__ __forceinline__ T* at(int i) const { return pointer + i * step; }
};

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

// The number of shares of num_heads heads.
__host__ __device__ constexpr int num_shares(int num_heads, int most) { return (num_heads + most - 1) / most; }

template <bool kInterleave, class T, class CacheT, int kVec, int kHeads>
__global__ void __launch_bounds__(kHeads == 1 ? kMaxThreads : kBlock, kHeads == 1 ? 1 : kManyHeadsBlocks)
    rope_kernel(const __grid_constant__ RopeParams params) {
  const bool writes_cache = params.v.data != nullptr;
  const int q_shares = num_shares(params.num_q_heads, kHeads), k_shares = num_shares(params.num_k_heads, kHeads);
  const int token_shares = q_shares + (writes_cache ? 2 : 1) * k_shares;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t token = index / token_shares;
  if (token >= params.num_tokens) return;
  const int in_token = static_cast<int>(index - token * token_shares);
  const bool is_q = in_token < q_shares, is_v = in_token >= q_shares + k_shares;
  const Share share = is_q ? Share{in_token, q_shares, params.num_q_heads}
                           : Share{in_token - q_shares - (is_v ? k_shares : 0), k_shares, params.num_k_heads};

  // The two vectors of this lane, as offsets in a head. The second is beyond the head in the last copying lane if the
  // number of vectors is odd.
  const int lane = threadIdx.x;
  const int rotary_lanes = params.rotary_dim / 2 / kVec;
  const bool in_rotary = lane < rotary_lanes, rotates = in_rotary && !is_v;
  int offset, b_offset;
  if (!in_rotary) {
    offset = params.rotary_dim + 2 * kVec * (lane - rotary_lanes);
    b_offset = offset + kVec;
  } else if (kInterleave) {
    offset = 2 * kVec * lane;
    b_offset = offset + kVec;
  } else {
    offset = kVec * lane;
    b_offset = offset + params.rotary_dim / 2;
  }
  const bool has_b = b_offset < params.head_dim;
  const int to_b = b_offset - offset;

  wait_for_predecessor();
  release_successors();

  const int64_t position = rotates ? at(params.positions, token) : 0;
  const int64_t slot = writes_cache && !is_q ? at(params.slots, token) : 0;

  const Column<const T> in(is_q ? params.q : is_v ? params.v : params.k, token, share, offset);
  Vec<T, kVec> a[kHeads], b[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    if (!share.has(i)) continue;
    a[i] = Vec<T, kVec>::load(in.at(i));
    if (has_b) b[i] = Vec<T, kVec>::load(in.at(i) + to_b);
  }

  float cos[kVec], sin[kVec];
  if (rotates) {
    const CacheT* row = static_cast<const CacheT*>(params.cos_sin_cache) + position * params.cache_stride + lane * kVec;
    load_table(cos, row);
    load_table(sin, row + params.rotary_dim / 2);
  }

  if (rotates) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      rotate<kInterleave>(a[i], b[i], cos, sin);
      hold_packed(a[i]);
      hold_packed(b[i]);
    }
  }
  const auto store = [&](const Heads& heads, int64_t row) {
    const Column<T> out(heads, row, share, offset);
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      if (!share.has(i)) continue;
      a[i].store(out.at(i));
      if (has_b) b[i].store(out.at(i) + to_b);
    }
  };
  // What is copied in place is there already.
  if (rotates || is_v || params.q.data != params.q_rope.data || params.k.data != params.k_rope.data) {
    store(is_q ? params.q_rope : is_v ? params.v_buffer : params.k_rope, is_v ? slot : token);
  }
  if (writes_cache && !is_q && !is_v) store(params.k_buffer, slot);
}

template <bool kInterleave, class T, class CacheT, int kVec, int kHeads>
Status launch_heads(const RopeParams& params, int lanes, Stream stream) {
  const int height = std::max(1, kBlock / lanes);
  const int64_t token_shares = num_shares(params.num_q_heads, kHeads) +
                               (params.v.data != nullptr ? 2 : 1) * num_shares(params.num_k_heads, kHeads);
  const int64_t shares = params.num_tokens * token_shares;
  return launch(params.operator_name, rope_kernel<kInterleave, T, CacheT, kVec, kHeads>,
                {.grid = static_cast<unsigned>((shares + height - 1) / height),
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
    constexpr int64_t kEnough = int64_t{1} << 15;
    if (params.num_tokens * num_heads >= kEnough) {
      return launch_heads<kInterleave, T, CacheT, kVec, kManyHeads>(params, lanes, stream);
    }
  }
  return launch_heads<kInterleave, T, CacheT, kVec, 1>(params, lanes, stream);
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
