// Scaled products of many rows on Hopper: persistent blocks that walk over tiles of the output.
//
// left = A, right = B^T. A block has two consumer warpgroups, which share the tile's rows, and a producer that runs ahead
// into the next tile. Nothing ties the consumers together but the ring: one falls up to kStages behind the other, so
// that one's epilogue runs while the other multiplies.
//
// Grid: a block a multiprocessor, in clusters of kCluster tiles one below the other. Tiles are taken in groups of
// kGroupRows clusters of rows, column by column, so that what runs at a time shares its operands in the L2 cache.
#pragma once

#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::scaled_mm_tiles {

using namespace matmul;

// Rows of tiles of a group; 16 tiles of 128 rows by 8 of 256 columns are about what 132 multiprocessors work at.
inline constexpr int kGroupTiles = 16;

// What a block can have.
inline constexpr int kSharedBytes = 227 * 1024;

template <class Sum_, int kRowBlocks_, int kCols_, int kCluster_>
struct Config {
  using Sum = Sum_;
  static constexpr int kConsumers = 2;
  static constexpr int kRowBlocks = kRowBlocks_, kCols = kCols_, kCluster = kCluster_;
  // Columns of a box of the output: as wide a swizzle as divides the tile.
  static constexpr int kPanel = kCols % 64 == 0 ? 64 : kCols % 32 == 0 ? 32 : 16;
  static constexpr int kOutputBytes = kInstructionRows * kPanel * 2;
  // As many as there is room for beside the output and the barriers.
  static constexpr int kStageBytes = (kInstructionRows * kRowBlocks * kConsumers + kCols) * kBlockK;
  static constexpr int kStages = (kSharedBytes - kConsumers * 2 * kOutputBytes - 1024) / kStageBytes;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
};

template <class C>
struct SharedMemory {
  Ring<C> ring;
  // Panels of the output on their way to memory, two for each consumer.
  alignas(kSwizzleAtomBytes) uint8_t output[C::kConsumers][2][C::kOutputBytes];
};

struct Call {
  Epilogue epilogue;
  int k_blocks;
  int row_tiles, col_tiles;  // rows: of clusters
};

struct Tile {
  int row, col;  // of the tile's first element
};

template <class C>
__device__ __forceinline__ Tile find_tile(const Call& call, int index, uint32_t rank) {
  constexpr int kGroupRows = kGroupTiles / C::kRowBlocks / C::kCluster;
  const int group_size = kGroupRows * call.col_tiles;
  const int group = index / group_size;
  const int in_group = index - group * group_size;
  const int rows = min(kGroupRows, call.row_tiles - group * kGroupRows);
  const int col = in_group / rows;
  const int row = group * kGroupRows + in_group - col * rows;
  return {static_cast<int>(row * C::kCluster + rank) * kTileRows<C>, col * C::kCols};
}

// Rounds the tile's sums and sends them off, a panel at a time. `panels` counts those sent so far.
template <class C>
__device__ __forceinline__ void store_tile(const Call& call, SharedMemory<C>& shared, const CUtensorMap* output_map,
                                           const Tile& tile, int consumer, int& panels, Sums<C>& sums) {
  constexpr int kPitch = C::kPanel * 2;           // bytes of a row of a panel
  constexpr int kRowsAPhase = kSwizzleBytes / kPitch;  // the swizzle shifts chunks once in so many rows
  constexpr int kChunks = kPitch / 16;
  const Epilogue& epilogue = call.epilogue;
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = threadIdx.x % 32;
  const int quad = lane % 4;
  // stmatrix: the row and the chunk of 8 columns that this lane's address stands for.
  const int stored_row = warp * 16 + lane % 16, stored_chunk = lane / 16;
#pragma unroll
  for (int block = 0; block < C::kRowBlocks; ++block) {
    const int first_row = tile.row + (consumer * C::kRowBlocks + block) * kInstructionRows;
    const float row_scale[2] = {epilogue.row_scale(first_row + warp * 16 + lane / 4),
                                epilogue.row_scale(first_row + warp * 16 + lane / 4 + 8)};
#pragma unroll
    for (int panel = 0; panel < C::kCols / C::kPanel; ++panel) {
      const int first_col = tile.col + panel * C::kPanel;
      uint8_t* staged = shared.output[consumer][panels & 1];
      float scale[C::kPanel / 4], bias[C::kPanel / 4];
#pragma unroll
      for (int i = 0; i < C::kPanel / 4; ++i) {
        const int col = first_col + 8 * (i / 2) + 2 * quad + i % 2;
        scale[i] = epilogue.column_scale(col);
        bias[i] = epilogue.bias_of(col);
      }
      // The panel's last occupant must have been read.
      if (thread == 0) wait_for_store_reads<1>();
      named_barrier_sync(1 + consumer, kWarpgroup);
#pragma unroll
      for (int pair = 0; pair < C::kPanel / 16; ++pair) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // chunk i / 2, rows 8 * (i % 2)…
          const int j = 2 * pair + i / 2, r = i % 2;
          const auto* sum = &sums[block][4 * (panel * C::kPanel / 8 + j) + 2 * r];
          words[i] = epilogue.round(static_cast<float>(sum[0]) * row_scale[r] * scale[2 * j] + bias[2 * j],
                                    static_cast<float>(sum[1]) * row_scale[r] * scale[2 * j + 1] + bias[2 * j + 1]);
        }
        const int chunk = (2 * pair + stored_chunk) ^ (stored_row / kRowsAPhase % kChunks);
        store_matrices(staged + stored_row * kPitch + chunk * 16, words);
      }
      fence_shared_for_async_proxy();
      named_barrier_sync(1 + consumer, kWarpgroup);
      if (thread == 0) {
        store_matrix_box(output_map, staged, first_row, first_col);
        commit_stores();
      }
      ++panels;
    }
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    scaled_mm_tiles_kernel(const __grid_constant__ Call call, const __grid_constant__ CUtensorMap left_map,
                           const __grid_constant__ CUtensorMap right_map,
                           const __grid_constant__ CUtensorMap output_map) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  const uint32_t rank = C::kCluster == 1 ? 0 : cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&left_map);
    prefetch_tensor_map(&right_map);
    prefetch_tensor_map(&output_map);
    shared.ring.init();
    fence_barrier_init();
  }
  if constexpr (C::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  const int tiles = call.row_tiles * call.col_tiles;
  const int first = blockIdx.x / C::kCluster, step = gridDim.x / C::kCluster;
  Position<C> at;
  if (warpgroup == C::kConsumers) {
    give_back_registers_down_to<40>();
    if (threadIdx.x == C::kConsumers * kWarpgroup) {
      for (int index = first; index < tiles; index += step) {
        const Tile tile = find_tile<C>(call, index, rank);
        produce<C>(shared.ring, at, &left_map, &right_map, tile.row, tile.col, 0, call.k_blocks, rank);
      }
    }
    __syncwarp();
  } else {
    take_registers_up_to<232>();
    int panels = 0;
    for (int index = first; index < tiles; index += step) {
      Sums<C> sums;
      multiply<C>(shared.ring, at, call.k_blocks, warpgroup, sums);
      store_tile<C>(call, shared, &output_map, find_tile<C>(call, index, rank), warpgroup, panels, sums);
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
  }
  // A block stays as long as others of its cluster may arrive at its barriers.
  if constexpr (C::kCluster > 1) cluster_sync();
}

template <class C>
Status launch_tiles(const ScaledMmParams& params, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= kSharedBytes);
  const char* name = params.operator_name;
  const auto ceil_div = [](int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); };
  const Call call = {.epilogue = epilogue_of(params),
                     .k_blocks = ceil_div(params.k, kBlockK),
                     .row_tiles = ceil_div(params.m, kTileRows<C> * C::kCluster),
                     .col_tiles = ceil_div(params.n, C::kCols)};
  CUtensorMap left_map, right_map, output_map;
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &left_map,
                                        {.data = const_cast<void*>(params.a),
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = static_cast<uint64_t>(params.k),
                                         .row_bytes = static_cast<uint64_t>(params.a_stride),
                                         .box_rows = kTileRows<C>,
                                         .box_columns = kBlockK,
                                         .element_bytes = 1}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &right_map,
                                        {.data = const_cast<void*>(params.b),
                                         .rows = static_cast<uint64_t>(params.n),
                                         .columns = static_cast<uint64_t>(params.k),
                                         .row_bytes = static_cast<uint64_t>(params.b_stride),
                                         .box_rows = C::kCols / C::kCluster,
                                         .box_columns = kBlockK,
                                         .element_bytes = 1}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &output_map,
                                        {.data = params.output,
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = static_cast<uint64_t>(params.n),
                                         .row_bytes = static_cast<uint64_t>(params.output_stride) * 2,
                                         .box_rows = kInstructionRows,
                                         .box_columns = C::kPanel,
                                         .element_bytes = 2,
                                         .swizzle = C::kPanel == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                                    : C::kPanel == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                                      : CU_TENSOR_MAP_SWIZZLE_32B}));
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, scaled_mm_tiles_kernel<C>, sizeof(SharedMemory<C>)));
  const int clusters = std::min(num_sms() / C::kCluster, call.row_tiles * call.col_tiles);
  const LaunchShape shape = {.grid = dim3(clusters * C::kCluster),
                             .block = dim3(C::kThreads),
                             .shared_bytes = sizeof(SharedMemory<C>),
                             .cluster = C::kCluster};
  return launch(name, scaled_mm_tiles_kernel<C>, shape, stream, call, left_map, right_map, output_map);
}

}  // namespace sgl_kernel::SGL_TARGET::scaled_mm_tiles
