// Attention on Hopper's tensor cores, for many queries: O = softmax(scale Q K^T + mask) V, one pass over the keys.
//
// A block takes tiles of 128 packed query rows and walks the keys in tiles of 128 (64 at head_dim 256). It has three
// warpgroups: a producer that keeps rings of K and V tiles in shared memory full, and two consumers of 64 rows each. A
// consumer computes S = Q K^T from shared memory, its softmax in registers, and O += P V with P from those registers.
// Two overlaps keep the tensor cores busy (FlashAttention-3, Shah et al. 2024): within a consumer, the product P V of
// one tile runs during the softmax of the next; between the consumers, named barriers let one issue its products while
// the other is in its softmax. O is rescaled only when a maximum has grown by more than 2^8.
//
// Grid: a persistent block a multiprocessor, or a block a tile where the lengths differ: PrefillSchedule. The producer
// finds the tiles and hands each over with its queries, so that the consumers never wait for index arithmetic. The code
// of a tile is kept short: a block that walks many short tiles feels the misses of the instruction cache.
//
// Bound by the tensor cores at head_dim 128 and above, by the exponentials at 64, by the latency of the gather where
// rows are gathered. Measured on an H200, 2026-11-23, bf16, 64 query and 4 KV heads, 8192 tokens, TFLOP/s:
//   head_dim                        64   128   192 (v 128)   256
//   causal                         423   655   707           728
//   not causal                     435   633   720           645
//   causal, pages of 64            402   616   647           640
//   causal, pages of 1: gathered   358   462   447           483
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/attention/flash_attention_prefill_consumer_sm90a.cuh"
#include "kernels/attention/flash_attention_prefill_producer_sm90a.cuh"
#include "kernels/attention/flash_attention_prefill_sm90a.h"
#include "kernels/base/launch.h"

namespace sgl_kernel::SGL_TARGET::prefill {

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ PrefillCall call, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(
      (reinterpret_cast<uintptr_t>(dynamic_shared) + kSwizzleAtomBytes - 1) / kSwizzleAtomBytes * kSwizzleAtomBytes);
  // The shuffle tells the compiler that the whole warp agrees.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q_map);
    if constexpr (!C::kGather) {
      prefetch_tensor_map(&k_map);
      prefetch_tensor_map(&v_map);
    }
    constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32;
    constexpr int kProducerArrivals = C::kGather ? kWarpgroup : 1;
    shared.q_full.init(1);
    shared.q_empty.init(kConsumers * kWarpgroup);  // every thread tells that it has read the tile
    for (int stage = 0; stage < kStages; ++stage) {
      shared.k_full[stage].init(kProducerArrivals);
      shared.v_full[stage].init(kProducerArrivals);
      shared.k_empty[stage].init(kConsumerWarps);
      shared.v_empty[stage].init(kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_back_registers_down_to<C::kProducerRegisters>();
    if constexpr (C::kGather) {
      produce_rows<C>(call, shared, &q_map);
    } else if (threadIdx.x < 32) {
      produce_boxes<C>(call, shared, &q_map, &k_map, &v_map);
    }
  } else {
    take_registers_up_to<C::kConsumerRegisters>();
    Consumer<C>(call, shared, warpgroup - 1).run();
  }
}

template <class C>
Status launch_prefill(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream) {
  constexpr bool kIsBf16 = std::is_same_v<typename C::Element, __nv_bfloat16>;
  const float softcap = params.softcap, scale = params.softmax_scale;
  const PrefillCall call = {
      .params = params,
      .schedule = schedule,
      .box_rows = params.page_table != nullptr && params.page_size < C::kTileN ? params.page_size : C::kTileN,
      .scale_log2 = kLog2E * (softcap > 0.0f ? softcap : scale),
      .softcap_scale = softcap > 0.0f ? scale / softcap : 0.0f,
  };
  CUtensorMap q_map = {}, k_map = {}, v_map = {};
  TensorMapShape q = queries_shape(params, schedule.pack);
  q.box[0] = kPanel;
  q.box[1] = schedule.pack;
  q.box[2] = kTileM / schedule.pack;
  SGL_RETURN_IF_ERROR(encode_tensor_map("fwd", &q_map, q, kIsBf16));
  if (!C::kGather) {
    TensorMapShape k = keys_shape(params), v = values_shape(params);
    k.box[0] = v.box[0] = kPanel;
    k.box[1] = v.box[1] = call.box_rows;
    SGL_RETURN_IF_ERROR(encode_tensor_map("fwd", &k_map, k, kIsBf16));
    SGL_RETURN_IF_ERROR(encode_tensor_map("fwd", &v_map, v, kIsBf16));
  }
  SGL_RETURN_IF_ERROR(allow_shared_memory("fwd", prefill_kernel<C>, kSharedBytes<C>));
  const int grid = schedule.persistent ? std::min(num_sms(), schedule.num_tiles) : schedule.num_tiles;
  const LaunchShape shape = {.grid = dim3(grid), .block = dim3(kThreads), .shared_bytes = kSharedBytes<C>};
  return launch("fwd", prefill_kernel<C>, shape, stream, call, q_map, k_map, v_map);
}

// Chooses among the instantiations of one head_dim.
template <int kHeadDim, int kHeadDimV>
Status launch_head_dim(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream) {
  if (params.dtype == DType::kF16) {
    return schedule.gather ? launch_prefill<Config<__half, kHeadDim, kHeadDimV, true>>(params, schedule, stream)
                           : launch_prefill<Config<__half, kHeadDim, kHeadDimV, false>>(params, schedule, stream);
  }
  return schedule.gather ? launch_prefill<Config<__nv_bfloat16, kHeadDim, kHeadDimV, true>>(params, schedule, stream)
                         : launch_prefill<Config<__nv_bfloat16, kHeadDim, kHeadDimV, false>>(params, schedule, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::prefill
