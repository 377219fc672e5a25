// gptq_marlin_gemm of few tokens on Hopper: the weight goes from memory to shared memory by the copy engine, as fast as
// memory gives it, and from there to the registers where it is decoded.
//
// Operands are swapped: 16 columns of the weight fill the rows of the tensor core's instruction and 8 tokens its
// columns, so that one token wastes no more than it must. The operand B that Marlin's tiles hold for two n8 tiles of an
// instruction is the operand A of 16 columns, as it is.
//
// Grid: a cluster a tile of kColumns columns by all tokens; its blocks are the splits of K. A block has a ring of
// stages along K; of a stage each warp has the step of its columns and of its part of K, and nothing but the ring's
// barriers holds the warps together. Their sums meet as in few_tokens_mm_sm90a.cuh.
//
// Bound by memory where the weight is large and the tokens are few, by decoding and multiplying where they are more,
// and by start and end, 3 µs, where the weight is small. By tools/bench on an H200, 2026-11-23, groups of 128, in µs:
//   N x K                  9216 x 4096   4096 x 8192   4096 x 1536   2112 x 7168   24576 x 1536   7168 x 16384
//   uint4b8     1 token    8.3           6.7           3.3           5.3           7.0           17.1
//              16 tokens   9.5           8.2           3.7           6.0           7.9           19.9
//              32 tokens   11.6          9.9           4.9           7.4           11.6          27.1
//   uint8b128   1 token    12.2          10.5          4.0           6.8           11.5          31.1
//              16 tokens   13.0          11.9          4.4           7.3           12.1          32.1
//              32 tokens   15.0          12.8          5.4           8.4           15.6          34.7
// A kernel that only reads uint4b8's bytes takes 5.1, 4.9, 1.8, 2.9, 5.1 and 13.4. Without waiting for memory a step of
// 4 bits takes a scheduler 307 cycles (one token; 404 for 16) for 221 instructions (254), as if each mma.sync took six.
#pragma once

#include <algorithm>
#include <climits>
#include <type_traits>

#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_few_tokens_stage_sm90a.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin_few_tokens {

// A warp's sums.
template <class C>
using Sums = float[C::Weight::kColumnBlocks][C::kTokenTiles][4];

// One thread: asks for all stages [begin, begin + count), the first ones before the predecessor has ended, too: in the
// L2 cache, which is no read.
template <class C>
__device__ __forceinline__ void produce(const Call& call, const Maps& maps, SharedMemory<C>& shared, int first_column,
                                        int begin, int count) {
  // In a short kernel memory is idle most of the time, so the successor may start, and ask for all, as soon as this
  // kernel may read. In a longer one it may when the memory will soon be idle; stages that come twice cost more than
  // they gain in a long one.
  constexpr int kShort = 5, kLong = 16, kSome = 2;  // stages
  const int prefetched = count <= kShort ? count : count <= kLong ? kSome : 0;
  const int releasing = count <= kShort ? 0 : count * 3 / 4;
  for (int i = 0; i < prefetched; ++i) {
    for_each_box<C>(call, maps, shared, first_column, 0, begin + i,
                    [](void*, const CUtensorMap* map, int row, int column) { prefetch_matrix_box(map, row, column); });
  }
  wait_for_predecessor();
  RingPosition<C::kStages> at;
  for (int i = 0; i < count; ++i) {
    // No block of the predecessor is left and none of this kernel has ended: each multiprocessor gets one.
    if (i == releasing) release_successors();
    shared.empty[at.index].wait(at.parity ^ 1);
    ask<C>(call, maps, shared, first_column, at.index, begin + i);
    at.advance();
  }
}

// A warp's products of all stages [begin, begin + count). Unless a warp of its own does, one asks for them.
template <class C>
__device__ __forceinline__ void consume(const Call& call, const Maps& maps, SharedMemory<C>& shared, int first_column,
                                        int begin, int count, int warp, Sums<C>& sums) {
  const Consumer<C> consumer(call, shared, warp % C::kColumnWarps, warp / C::kColumnWarps);
  wait_for_predecessor();
  if (!C::kEarly && warp == 0 && elect_one()) {
    for (int i = 0; i < min(C::kFirst, count); ++i) ask<C>(call, maps, shared, first_column, i, begin + i);
  }
  __syncwarp();
  Step<C> step;
  RingPosition<C::kStages> at;
  int turn = warp;  // of the warps to ask for a stage, in a place where hardly a warp still is
  for (int i = 0; i < count; ++i) {
    shared.full[at.index].wait(at.parity);
    if (!C::kEarly && i == turn) {
      const int next = i + C::kAhead, place = next % C::kStages;
      if (next >= C::kFirst && next < count && elect_one()) {
        if (next >= C::kStages) shared.empty[place].wait((next / C::kStages - 1) & 1);
        ask<C>(call, maps, shared, first_column, place, begin + next);
      }
      __syncwarp();
      turn += C::kWarps;
    }
    // Not before the last stage was asked for: their blocks would crowd some multiprocessors.
    if (!C::kEarly && i == count - 1 - C::kAhead) release_successors();
    consumer.multiply(at.index, step, sums);
    __syncwarp();
    if (elect_one()) shared.empty[at.index].arrive();
    at.advance();
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    few_tokens_kernel(const __grid_constant__ MarlinGemmParams params, const __grid_constant__ Call call,
                      const __grid_constant__ Maps maps) {
  extern __shared__ __align__(8 * kSwizzleBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int rank = blockIdx.x, first_column = blockIdx.y * C::kColumns;
  const int begin = rank * call.least + min(rank, call.longer);
  const int count = call.least + (rank < call.longer ? 1 : 0);
  const few_tokens::Merge<C> merge(call.splits, rank, static_cast<int>(params.m));
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.tokens);
    if (call.has_scales) prefetch_tensor_map(&maps.scales);
    for (int stage = 0; stage < C::kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(C::kWarps);
    }
    fence_barrier_init();
  }
  merge.start(shared.all_received);
  __syncthreads();
  merge.arrive();
  Sums<C> sums = {};
  if (C::kEarly && warp == C::kWarps) {
    if (elect_one()) produce<C>(call, maps, shared, first_column, begin, count);
    __syncwarp();
  } else {
    consume<C>(call, maps, shared, first_column, begin, count, warp, sums);
  }
  release_successors();
  __syncthreads();  // no stage is in use
  char* const left = reinterpret_cast<char*>(&shared.sums);
  if (warp < C::kWarps) merge.leave(left, sums, column_warp, depth_warp);
  __syncthreads();
  merge.finish(params, left, shared.received, shared.all_received, first_column, 0);
}

// How long the product takes with `splits` of K, in units of about 1000 of K by 64 columns of a block of eight warps.
// The constants are fitted, of 4 and of 8 bits by themselves, to the times of products with all types but
// float4_e2m1f, bf16, 8 to 32 tokens on an H200 (2026-11-23; the N and K of Qwen3-VL-235B and DeepSeek-V3): of these
// the model's choice is 0.1% above the best.
template <class C>
double cost(const MarlinGemmParams& params, int splits) {
  constexpr bool k4 = C::kBits == 4;
  constexpr double kMerge = k4 ? 0.14 : 0.04, kMergeSplit = k4 ? 0.126 : 0.078, kColumn = k4 ? 0.172 : 0.135;
  constexpr double kFurtherWave = k4 ? 0.938 : 2.06, kFourWarps = k4 ? 0.181 : -0.069;
  // By the blocks of a multiprocessor.
  static constexpr double kOfFourWarps[] = {0.0, k4 ? 0.833 : 0.874, k4 ? 2.023 : 1.828, k4 ? 2.538 : 2.806};
  static constexpr double kOfEightWarps[] = {0.0, C::kEarly ? 0.77 : k4 ? 0.81 : 0.798, k4 ? 1.62 : 1.545};
  constexpr double kWide = !k4 ? 2.561 : C::kTokenTiles == 1 ? 2.93 : 3.152;
  const double* const of_blocks = C::kWarps == 4 ? kOfFourWarps : kOfEightWarps;
  // Not all multiprocessors belong to a cluster of more than two.
  const int64_t room = splits <= 2 ? 132 : 112;
  const int64_t blocks = ((params.n + C::kColumns - 1) / C::kColumns * splits + room - 1) / room;  // of the fullest
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK, longest = (stages + splits - 1) / splits;
  const int64_t most = C::kEarly ? 1 : C::kBlocks, waves = (blocks + most - 1) / most;
  const double many = static_cast<double>(blocks) / static_cast<double>(most) * of_blocks[most];
  const double step = C::kColumnWarps > 1 ? kWide * static_cast<double>(blocks)
                      : blocks < most     ? of_blocks[blocks]
                                          : many;
  return step * static_cast<double>(longest * C::kStageK) / 1000.0 + kColumn * C::kColumnWarps +
         (splits > 1 ? kMerge + kMergeSplit * splits : 0.0) + kFurtherWave * static_cast<double>(waves - 1) +
         (C::kWarps == 4 ? kFourWarps : 0.0);
}

struct Plan {
  int splits;
  double cost;
};

template <class C>
Plan plan(const MarlinGemmParams& params) {
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK;
  Plan best = {1, cost<C>(params, 1)};
  for (int splits = 2; splits <= std::min<int64_t>(few_tokens::kMostSplits, stages); ++splits) {
    const double its = cost<C>(params, splits);
    if (its < best.cost) best = {splits, its};
  }
  return best;
}

template <class C>
Status multiply(const MarlinGemmParams& params, int splits, Stream stream) {
  constexpr char kName[] = "gptq_marlin_gemm";
  static_assert(sizeof(SharedMemory<C>) <= C::kMostBytes);
  const bool gathered = params.gathered != nullptr, several = params.num_groups > 1;
  const int64_t column_tiles = (params.n + C::kColumns - 1) / C::kColumns;
  const int stages = static_cast<int>((params.k + C::kStageK - 1) / C::kStageK);
  constexpr int kRowGroups = C::kFormat == Format::kE2M1 ? 2 : 1;  // of a row of scales
  const int64_t row_size = params.group_size * kRowGroups;
  const int group_rows = several ? static_cast<int>(std::max<int64_t>(1, C::kStageK / row_size)) : 1;
  const int row_bytes = (several ? C::kScaleBytes : 0) + C::kZeroBytes;
  const Call call = {
      .splits = splits,
      .least = stages / splits,
      .longer = stages % splits,
      .stage_bytes =
          C::kWeightBytes + C::kTokenBoxes * static_cast<int>(params.m) * kSwizzleBytes + group_rows * row_bytes,
      .group_rows = group_rows,
      .stages_per_row = several ? static_cast<int>(std::max<int64_t>(1, row_size / C::kStageK)) : INT_MAX,
      .has_scales = several};
  const uint64_t n = static_cast<uint64_t>(params.n), num_groups = static_cast<uint64_t>(params.num_groups);
  const uint64_t weight_row = n / kMarlinTileN * C::kTileBytes, zero_row = n * C::kBits / 8;
  Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.tokens,
                                        {.data = const_cast<void*>(gathered ? params.gathered : params.a),
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = static_cast<uint64_t>(params.k),
                                         .row_bytes = static_cast<uint64_t>(gathered ? params.k : params.a_stride) * 2,
                                         .box_rows = static_cast<uint32_t>(params.m),
                                         .box_columns = kBoxK,
                                         .element_bytes = 2}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.weights,
                                        {.data = const_cast<uint32_t*>(params.weight),
                                         .rows = static_cast<uint64_t>(params.k / kMarlinTileK),
                                         .columns = weight_row / kElementBytes,
                                         .row_bytes = weight_row,
                                         .box_rows = C::kStageTiles,
                                         .box_columns = C::kBoxColumns * C::kTileBytes / kElementBytes,
                                         .element_bytes = kElementBytes,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (several) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.scales,
                                          {.data = const_cast<void*>(params.scales),
                                           .rows = num_groups / kRowGroups,
                                           .columns = n,
                                           .row_bytes = n * 2,
                                           .box_rows = static_cast<uint32_t>(group_rows),
                                           .box_columns = C::kColumns,
                                           .element_bytes = 2,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  if constexpr (C::kZeros) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.zeros,
                                          {.data = const_cast<void*>(params.zeros),
                                           .rows = num_groups,
                                           .columns = zero_row,
                                           .row_bytes = zero_row,
                                           .box_rows = static_cast<uint32_t>(group_rows),
                                           .box_columns = C::kZeroBytes,
                                           .element_bytes = 1,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  const auto kernel = few_tokens_kernel<C>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, kernel, sizeof(SharedMemory<C>)));
  return launch(kName, kernel,
                {.grid = dim3(splits, static_cast<unsigned>(column_tiles)),
                 .block = C::kThreads,
                 .shared_bytes = sizeof(SharedMemory<C>),
                 .pdl = true,
                 .cluster = splits},
                stream, params, call, maps);
}

template <class First, class... Others>
Status choose_blocks(const MarlinGemmParams& params, Stream stream) {
  Plan best = plan<First>(params);
  auto multiply_best = multiply<First>;
  const auto consider = [&]<class C>(std::type_identity<C>) {
    const Plan its = plan<C>(params);
    if (its.cost < best.cost) {
      best = its;
      multiply_best = multiply<C>;
    }
  };
  (consider(std::type_identity<Others>()), ...);
  return multiply_best(params, best.splits, stream);
}

template <class T, Format kFormat, bool kZeros, int kTiles>
Status choose_tokens(const MarlinGemmParams& params, Stream stream) {
  if (params.m <= 8) {
    return choose_blocks<Config<T, kFormat, kZeros, kTiles, 1, 1, 8>, Config<T, kFormat, kZeros, kTiles, 1, 1, 4>,
                         Config<T, kFormat, kZeros, kTiles, 1, 4, 8>>(params, stream);
  }
  if (params.m <= 16) {
    return choose_blocks<Config<T, kFormat, kZeros, kTiles, 2, 1, 8>, Config<T, kFormat, kZeros, kTiles, 2, 1, 4>,
                         Config<T, kFormat, kZeros, kTiles, 2, 4, 8>>(params, stream);
  }
  return choose_blocks<Config<T, kFormat, kZeros, kTiles, 4, 1, 8>, Config<T, kFormat, kZeros, kTiles, 4, 4, 8>>(
      params, stream);
}

template <class T, Format kFormat, int kTiles>
Status choose_zeros(const MarlinGemmParams& params, Stream stream) {
  return params.zeros != nullptr ? choose_tokens<T, kFormat, true, kTiles>(params, stream)
                                 : choose_tokens<T, kFormat, false, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::marlin_few_tokens
