// Scaled products of many rows, or of many batches, on Hopper: persistent blocks that walk over tiles of the outputs.
//
// left = A, right = B^T. A block has two warpgroups that multiply and a producer that runs ahead into the next tile.
// One team of both shares a tile's rows: the least traffic. Two teams take tiles in turn: one's epilogue runs while the
// other multiplies.
//
// Grid: a block a multiprocessor. A batch's tiles are taken in groups of kGroupRows rows of tiles, column by column,
// forth and back, so that what runs at a time shares its operands in the L2 cache.
//
// Bound by power and the tensor cores from some 1000 rows on, by the last wave of tiles below, by memory for few rows.
// At the limit of power, tiles of 128 x 192 take 1 to 13% less time than those of 128 x 128 where they divide N; pairs
// of blocks that share their columns by multicast take the same time as without. Measured by tools/bench on an H200,
// 2026-11-23, bf16 out, TFLOP/s, in turns with the faster of cuBLASLt's products (torch 2.11, a scale for each row and
// column, or one) and, for int8, CUTLASS as sgl-kernel 0.4.2 calls it:
//   M x N x K            e4m3   cuBLASLt      M x N x K            int8   CUTLASS
//   1024 x 9216 x 4096   1332   1209          512 x 24576 x 1536   1239   1247
//   4096 x 9216 x 4096   1455   1418          2048 x 9216 x 4096   1512   1524
//   8192 x 24576 x 1536  1305   1277          2048 x 4096 x 7168   1467   1485
//   8192 x 4096 x 8192   1216   1317          8192 x 3072 x 4096   1530   1515
//   4096 x 7168 x 16384  1216   1297
// The last two of e4m3 are promoted, which takes 2 to 4% longer than sums that lose twice and four times as much.
// Batches that share an operand: 128 of 1024 x 128 x 512 (M x N x K) take 31.7 µs with operands of their own, 19.1 with
// one A for all and 28.7 with one B.
#pragma once

#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/gemm/scaled_mm_block_scales_sm90a.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::scaled_mm_tiles {

using namespace matmul;

// What a block can have.
inline constexpr int kSharedBytes = 227 * 1024;
inline constexpr int kBarrierBytes = 256;  // room for them

// What all rows of a column are multiplied by, and what is then added.
struct ColumnConstants {
  float scale, bias;
};
// Columns whose constants lie in shared memory at a time: one for each thread of a warpgroup.
inline constexpr int kConstants = kWarpgroup;

// kBlockwise: each block of kScaleBlock of K has scales, for a row and for kScaleBlock columns.
// kPromoted: there are more than kPromotedBlocks of them, and sums are of e4m3 products without such scales.
template <class Sum_, int kTeams_, int kRows_, int kCols_, bool kBlockwise_ = false, bool kPromoted_ = false>
struct Config {
  using Sum = Sum_;
  static constexpr int kWarpgroups = 2;  // that multiply
  static constexpr int kTeams = kTeams_, kConsumers = kWarpgroups / kTeams;
  static constexpr int kRows = kRows_, kCols = kCols_, kRowBlocks = kRows / kInstructionRows / kConsumers;
  // Tiles of a group, one below the other: 132 multiprocessors work at something square, and a group's rows stay in the
  // L2 cache while its columns go by.
  static constexpr int kGroupRows = 16;
  static constexpr int kLeftRows = kRows;
  static constexpr bool kBlockwise = kBlockwise_;
  static constexpr bool kPromoted = kPromoted_;
  static constexpr int kScales = kBlockwise ? kRows + kScalesOfB : 0;
  // Of a thread; together no more than 65536.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232, kMostSums = 192;
  // Columns of a box of the output: as wide a swizzle as divides the tile.
  static constexpr int kPanel = kCols % 64 == 0 ? 64 : kCols % 32 == 0 ? 32 : 16;
  static constexpr int kOutputBytes = kInstructionRows * kPanel * 2;
  // Those of a warpgroup that have room at a time. Scaled sums need no constants, and all go at once.
  static constexpr int kPanels = kBlockwise ? kRowBlocks * kCols / kPanel : 2;
  static constexpr int kStagedBytes = kPanels * kOutputBytes;
  // As many as there is room for beside the output and the barriers.
  static constexpr int kStageBytes =
      (kInstructionRows * kRowBlocks * kConsumers + kCols) * kBlockK + kScales * sizeof(float);
  static constexpr int kOtherBytes =
      kWarpgroups * (kStagedBytes + kConstants * sizeof(ColumnConstants)) + kBarrierBytes;
  static constexpr int kStages = (kSharedBytes - kOtherBytes) / kStageBytes;
  static constexpr int kThreads = (1 + kWarpgroups) * kWarpgroup;
};

template <class C>
struct SharedMemory {
  Ring<C> ring;
  // Of each warpgroup: panels of the output on their way to memory, and the constants of some columns.
  alignas(kSwizzleAtomBytes) uint8_t staged[C::kWarpgroups][C::kStagedBytes];
  ColumnConstants constants[C::kWarpgroups][kConstants];
};

struct Call {
  Epilogue epilogue;
  ScaleMatrix a_block_scales, b_block_scales;
  int k_blocks;
  int batches, row_tiles, col_tiles;
  int left_batches, right_batches;  // 1: all batches share the operand
  int box_rows;                     // of both operands together
};

struct Tile {
  int batch, row, col;  // of the tile's first element
};

template <class C>
__device__ __forceinline__ Tile find_tile(const Call& call, int index) {
  const int batch_size = call.row_tiles * call.col_tiles, group_size = C::kGroupRows * call.col_tiles;
  const int batch = index / batch_size;
  const int in_batch = index - batch * batch_size;
  const int group = in_batch / group_size;
  const int in_group = in_batch - group * group_size;
  const int rows = min(C::kGroupRows, call.row_tiles - group * C::kGroupRows);
  const int step = in_group / rows;
  const int row = group * C::kGroupRows + in_group - step * rows;
  const int col = group % 2 == 0 ? step : call.col_tiles - 1 - step;
  return {batch, row * C::kRows, col * C::kCols};
}

// What a thread keeps for the epilogue while it multiplies: it hides the latency of these loads.
template <class C>
struct TileConstants {
  static constexpr int kPieces = (C::kCols + kConstants - 1) / kConstants;
  ColumnConstants columns[kPieces];  // of columns thread, thread + kConstants, …
  float rows[C::kRowBlocks][2];

  __device__ __forceinline__ void load(const Epilogue& epilogue, const Tile& tile, int first_row) {
    const int thread = threadIdx.x % kWarpgroup;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int col = tile.col + i * kConstants + thread;
      columns[i] = {epilogue.column_scale(col), epilogue.bias_of(col)};
    }
#pragma unroll
    for (int block = 0; block < C::kRowBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        rows[block][r] =
            epilogue.row_scale(first_row + block * kInstructionRows + thread / 32 * 16 + thread % 32 / 4 + 8 * r);
      }
    }
  }
};

// Where in a panel the lane's address of store_matrices() stands, for the n-th pair of tiles of 8 columns.
template <class C>
__device__ __forceinline__ int offset_in_panel(int n) {
  constexpr int kPitch = C::kPanel * 2;                // bytes of a row of a panel
  constexpr int kRowsAPhase = kSwizzleBytes / kPitch;  // the swizzle shifts chunks once in so many rows
  constexpr int kChunks = kPitch / 16;
  const int row = threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 16, chunk = threadIdx.x % 32 / 16;
  return row * kPitch + ((2 * n + chunk) ^ (row / kRowsAPhase % kChunks)) * 16;
}

// Rounds a warpgroup's sums and sends them off, a panel at a time. `panels` counts those sent so far.
template <class C>
__device__ __forceinline__ void store_tile(const Call& call, SharedMemory<C>& shared, const CUtensorMap* output_map,
                                           int batch, int first_row, int first_col, int warpgroup,
                                           const TileConstants<C>& tile_constants, int& panels, Sums<C>& sums) {
  static_assert(kConstants % C::kPanel == 0);
  const int thread = threadIdx.x % kWarpgroup, quad = threadIdx.x % 4;
  ColumnConstants* constants = shared.constants[warpgroup];
#pragma unroll
  for (int block = 0; block < C::kRowBlocks; ++block) {
#pragma unroll
    for (int panel = 0; panel < C::kCols / C::kPanel; ++panel) {
      uint8_t* staged = shared.staged[warpgroup] + (panels & 1) * C::kOutputBytes;
      if (panel * C::kPanel % kConstants == 0 && (block == 0 || C::kCols > kConstants)) {
        constants[thread] = tile_constants.columns[panel * C::kPanel / kConstants];
      }
      // The panel's last occupant must have been read.
      if (thread == 0) wait_for_store_reads<1>();
      named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
      for (int pair = 0; pair < C::kPanel / 16; ++pair) {
        uint32_t words[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int j = 2 * pair + half;
          // Two neighbours at a time.
          const float4 column =
              *reinterpret_cast<const float4*>(&constants[panel * C::kPanel % kConstants + 8 * j + 2 * quad]);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const auto* sum = &sums[block][4 * (panel * C::kPanel / 8 + j) + 2 * r];
            const float row = tile_constants.rows[block][r];
            words[2 * half + r] = call.epilogue.round(static_cast<float>(sum[0]) * row * column.x + column.y,
                                                      static_cast<float>(sum[1]) * row * column.z + column.w);
          }
        }
        store_matrices(staged + offset_in_panel<C>(pair), words);
      }
      fence_shared_for_async_proxy();
      named_barrier_sync(1 + warpgroup, kWarpgroup);
      if (thread == 0) {
        store_matrix_box(output_map, staged, first_row + block * kInstructionRows, first_col + panel * C::kPanel,
                         batch);
        commit_stores();
      }
      ++panels;
    }
  }
}

// The same for sums that have been scaled. There is room for the whole tile: its way to memory is not waited for.
template <class C>
__device__ __forceinline__ void store_scaled_tile(const Call& call, SharedMemory<C>& shared,
                                                  const CUtensorMap* output_map, int batch, int first_row,
                                                  int first_col, int warpgroup, const Sums<C>& sums) {
  constexpr int kPairs = C::kPanel / 16;
  static_assert(C::kRowBlocks == 1);
  uint8_t* staged = shared.staged[warpgroup];
  const bool sends = threadIdx.x % kWarpgroup == 0;
  // The last tile must have been read.
  if (sends) wait_for_store_reads<0>();
  named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
  for (int pair = 0; pair < C::kCols / 16; ++pair) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = call.epilogue.round(sums[0][8 * pair + 2 * i], sums[0][8 * pair + 2 * i + 1]);
    }
    store_matrices(staged + pair / kPairs * C::kOutputBytes + offset_in_panel<C>(pair % kPairs), words);
  }
  fence_shared_for_async_proxy();
  named_barrier_sync(1 + warpgroup, kWarpgroup);
  if (sends) {
#pragma unroll
    for (int panel = 0; panel < C::kPanels; ++panel) {
      store_matrix_box(output_map, staged + panel * C::kOutputBytes, first_row, first_col + panel * C::kPanel, batch);
    }
    commit_stores();
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
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&left_map);
    prefetch_tensor_map(&right_map);
    prefetch_tensor_map(&output_map);
    shared.ring.init();
    fence_barrier_init();
  }
  __syncthreads();
  const int tiles = call.batches * call.row_tiles * call.col_tiles;
  const int first = blockIdx.x, step = gridDim.x;
  Position<C> at;
  if (warpgroup == C::kWarpgroups) {
    give_back_registers_down_to<C::kProducerRegisters>();
    if (threadIdx.x == C::kWarpgroups * kWarpgroup) {
      wait_for_predecessor();
      for (int index = first; index < tiles; index += step) {
        const Tile tile = find_tile<C>(call, index);
        produce<C>(shared.ring, at, &left_map, &right_map, tile.row, tile.col, 0, call.k_blocks, call.box_rows,
                   min(tile.batch, call.left_batches - 1), min(tile.batch, call.right_batches - 1));
      }
    }
    if constexpr (C::kBlockwise) {
      if (threadIdx.x / 32 == C::kWarpgroups * kWarpgroup / 32 + 1) {
        wait_for_predecessor();
        for (int index = first; index < tiles; index += step) {
          const Tile tile = find_tile<C>(call, index);
          produce_scales<C>(shared.ring, at, call.a_block_scales, tile.row, call.epilogue.rows - 1, call.b_block_scales,
                            tile.col, call.epilogue.columns - 1, 0, call.k_blocks);
        }
      }
    }
  } else {
    take_registers_up_to<C::kConsumerRegisters>();
    wait_for_predecessor();
    const int team = warpgroup / C::kConsumers, consumer = warpgroup % C::kConsumers;
    const auto turn = [](int team) { return 1 + C::kWarpgroups + team; };  // a named barrier
    int panels = 0;
    at.skip(team * call.k_blocks);
    for (int index = first + team * step; index < tiles; index += C::kTeams * step) {
      const Tile tile = find_tile<C>(call, index);
      const int first_row = tile.row + consumer * C::kRowBlocks * kInstructionRows;
      Sums<C> sums;
      if constexpr (C::kBlockwise) {
        const auto issued = [&] {
          if (index + step >= tiles) release_successors();
        };
        multiply_blocks<C>(shared.ring, at, call.k_blocks, consumer, tile.col, sums, issued);
        store_scaled_tile<C>(call, shared, &output_map, tile.batch, first_row, tile.col, warpgroup, sums);
      } else {
        TileConstants<C> constants;
        constants.load(call.epilogue, tile, first_row);
        // A team's turn to multiply comes when the other one has taken all stages of its tile: a wait tells only the
        // last phase of a barrier from the one before, and so must not be for a later one.
        if (C::kTeams > 1 && index != first) named_barrier_sync(turn(team), 2 * kWarpgroup);
        const auto issued = [&] {
          if (C::kTeams > 1 && index + step < tiles) named_barrier_arrive(turn(1 - team), 2 * kWarpgroup);
        };
        if constexpr (C::kPromoted) {
          multiply_promoted<C>(shared.ring, at, call.k_blocks, consumer, sums, issued);
        } else {
          multiply<C>(shared.ring, at, call.k_blocks, consumer, sums, issued);
        }
        if (index + C::kTeams * step >= tiles) release_successors();
        store_tile<C>(call, shared, &output_map, tile.batch, first_row, tile.col, warpgroup, constants, panels, sums);
        at.skip((C::kTeams - 1) * call.k_blocks);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
  }
}

template <class C>
Status launch_tiles(const ScaledMmParams& params, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= kSharedBytes);
  const char* name = params.operator_name;
  const Call call = {.epilogue = epilogue_of(params),
                     .a_block_scales = params.a_block_scales,
                     .b_block_scales = params.b_block_scales,
                     .k_blocks = ceil_div(params.k, kBlockK),
                     .batches = static_cast<int>(params.batches),
                     .row_tiles = ceil_div(params.m, C::kRows),
                     .col_tiles = ceil_div(params.n, C::kCols),
                     .left_batches = params.a_batch_stride == 0 ? 1 : static_cast<int>(params.batches),
                     .right_batches = params.b_batch_stride == 0 ? 1 : static_cast<int>(params.batches),
                     .box_rows = box_rows_of(params.m, C::kRows) + box_rows_of(params.n, C::kCols)};
  CUtensorMap left_map, right_map, output_map;
  SGL_RETURN_IF_ERROR(encode_operand(name, &left_map, params.a, params.m, params.k, params.a_stride, C::kRows,
                                     call.left_batches, params.a_batch_stride));
  SGL_RETURN_IF_ERROR(encode_operand(name, &right_map, params.b, params.n, params.k, params.b_stride, C::kCols,
                                     call.right_batches, params.b_batch_stride));
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
                                                                      : CU_TENSOR_MAP_SWIZZLE_32B,
                                         .batches = static_cast<uint64_t>(params.batches),
                                         .batch_bytes = static_cast<uint64_t>(params.output_batch_stride) * 2}));
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, scaled_mm_tiles_kernel<C>, sizeof(SharedMemory<C>)));
  const LaunchShape shape = {.grid = dim3(std::min(num_sms(), call.batches * call.row_tiles * call.col_tiles)),
                             .block = dim3(C::kThreads),
                             .shared_bytes = sizeof(SharedMemory<C>),
                             .pdl = true};
  return launch(name, scaled_mm_tiles_kernel<C>, shape, stream, call, left_map, right_map, output_map);
}

}  // namespace sgl_kernel::SGL_TARGET::scaled_mm_tiles
