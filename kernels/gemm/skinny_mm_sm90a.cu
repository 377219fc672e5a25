// Skinny bf16 products on Hopper. Rows that 16-byte loads do not take, and a K that is no multiple of 32, go through
// the portable kernel.
//
// Operands are swapped: 16 columns of the output (rows of B) fill the rows of the tensor core's instruction, 8 or 16
// rows of A its columns. Both operands go from memory to registers, the next tiles along K always on their way.
//
// Grid: x the splits of K, which are a cluster; y takes 16 or 32 columns, z 8 or 16 rows. The warps of a block share
// out its K in turns. Their sums meet in shared memory, and those of the splits in the cluster's, in the order of warps
// and splits, which the number of rows does not change. Bound by reading B; what is short is bound by the way from the
// predecessor's end to the first numbers, which the L2 cache has by then, and from the last ones to the result.
// Successors start once the last loads are on their way: earlier ones would take room from the kernel between.
//
// Measured on an H200, 2026-11-23, K = 7168, in µs; sgl-kernel 0.4.2's in turns with them:
//   tokens x columns   1 x 256   16 x 256   1 x 384   16 x 384   1 x 2112   8 x 2112   16 x 2112
//                      2.6       3.2        3.1       3.5        8.7        9.6        10.0
//   sgl-kernel         2.8       7.2        3.3       7.8        9.9        9.8        10.0
// Reading 2112 columns alone takes 7.6. What rows of A add is their way to each multiprocessor. It is 3% shorter if the
// copy engine brings them to a ring in shared memory, but then few columns take up to a third longer.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster_sm90.cuh"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/skinny_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileColumns = 16;
constexpr int kTileK = 32, kChunk = 8;  // along K: of an instruction pair, and a lane's of a row
constexpr int kPrefetch = 1024;  // numbers of a column that are asked for before the predecessor has ended: more are in
                                 // the way of its last loads

// Of K: the first `longer` splits have one tile more than `least`.
struct Splits {
  int count, least, longer;
};

template <int kRowTiles, int kColumnTiles>
struct Tile {
  uint4 columns[kColumnTiles][2], rows[kRowTiles];  // chunks of columns g and g + 8 of each 16; of row g of each 8
};

// A chunk of B, which one warp reads, once.
__device__ __forceinline__ uint4 load_once(const uint16_t* chunk) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(chunk));
  return words;
}

// kAhead: tiles of a warp on their way.
template <class Output, int kRowTiles, int kColumnTiles, int kAhead, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 2 / kColumnTiles)
    skinny_mm_kernel(const __grid_constant__ SkinnyMmParams params, const __grid_constant__ Splits splits) {
  constexpr int kRows = 8 * kRowTiles, kColumns = kTileColumns * kColumnTiles;
  constexpr int kVector = 4, kRowVectors = kColumns / kVector, kVectors = kRows * kRowVectors;
  static_assert(kVectors <= kWarps * 32);
  __shared__ __align__(16) float partial[kWarps][kRows][kColumns + kVector];  // padded against bank conflicts
  __shared__ float4 parts[kVectors + kMostClusterBlocks];                     // [splits][share]
  __shared__ Barrier received;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, rank = blockIdx.x;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * kRows;
  const int begin = rank * splits.least + min(rank, splits.longer);
  const int end = begin + splits.least + (rank < splits.longer ? 1 : 0);
  // Rows and columns beyond the last count for nothing: those then read again are in no sum that is stored.
  const auto column_at = [&](int64_t column) {
    return static_cast<const uint16_t*>(params.b) + min(column, params.n - 1) * params.b_stride +
           static_cast<int64_t>(begin) * kTileK;
  };
  const auto row_at = [&](int64_t row) {
    return static_cast<const uint16_t*>(params.a) + min(row, params.m - 1) * params.a_stride +
           static_cast<int64_t>(begin) * kTileK;
  };
  const int first = warp * kTileK + kChunk * t;
  const uint16_t* column[kColumnTiles][2];
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower)
      column[c][lower] = column_at(first_column + c * kTileColumns + 8 * lower + g) + first;
  }
  const uint16_t* row[kRowTiles];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) row[r] = row_at(first_row + 8 * r + g) + first;
  // The block's output in vectors of neighbouring columns, shared out over the splits.
  const int share = (kVectors + splits.count - 1) / splits.count;
  const int own = max(min(share, kVectors - rank * share), 0);
  if (splits.count > 1) {
    if (threadIdx.x == 0) {
      received.init(1);
      fence_barrier_init();
      received.arrive_and_expect(own * splits.count * static_cast<int>(sizeof(float4)));
    }
    __syncwarp();
    arrive_at_cluster();
  }
  if (lane == 0 && begin < end) {
    const int numbers = min((end - begin) * kTileK, kPrefetch);
    for (int c = warp; c < kColumns; c += kWarps)
      prefetch_bulk_to_l2(column_at(first_column + c), numbers * static_cast<int>(sizeof(uint16_t)));
    // And a row of A, the first blocks.
    if (warp == 0 && blockIdx.y < kRows)
      prefetch_bulk_to_l2(row_at(first_row + blockIdx.y), (end - begin) * kTileK * static_cast<int>(sizeof(uint16_t)));
  }
  // The tile whose chunks are `ahead` numbers behind those pointers.
  const auto load = [&](Tile<kRowTiles, kColumnTiles>& tile, int ahead) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) tile.columns[c][lower] = load_once(column[c][lower] + ahead);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) tile.rows[r] = __ldg(reinterpret_cast<const uint4*>(row[r] + ahead));
  };
  // Whose barriers are ready now. It empties the L1 cache, where two blocks of a multiprocessor share rows of A.
  if (splits.count > 1) wait_for_cluster();
  wait_for_predecessor();

  constexpr int kTurn = kWarps * kTileK;  // numbers from a tile of a warp to its next
  const int count = (end - begin - warp + kWarps - 1) / kWarps;
  Tile<kRowTiles, kColumnTiles> tiles[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < count) load(tiles[i], i * kTurn);
  }
  float sums[kColumnTiles][kRowTiles][4] = {};
#pragma unroll 1  // fewer registers, and less code to fetch
  for (int left = count; left > 0; left -= kAhead) {
    if (left <= kAhead) release_successors();
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) column[c][lower] += kAhead * kTurn;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) row[r] += kAhead * kTurn;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i >= left) break;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const uint4 &upper = tiles[i].columns[c][0], &lower = tiles[i].columns[c][1];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint4& right = tiles[i].rows[r];
          mma_16x8x16<__nv_bfloat16>(sums[c][r], {upper.x, lower.x, upper.y, lower.y}, right.x, right.y);
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint4& right = tiles[i].rows[r];
          mma_16x8x16<__nv_bfloat16>(sums[c][r], {upper.z, lower.z, upper.w, lower.w}, right.z, right.w);
        }
      }
      if (i + kAhead < left) load(tiles[i], i * kTurn);
    }
  }

#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        partial[warp][8 * r + 2 * t + e % 2][c * kTileColumns + g + e / 2 * 8] = sums[c][r][e];
    }
  }
  __syncthreads();
  const auto store = [&](int vector, const float4& sum) {
    const int64_t i = first_row + vector / kRowVectors, j = first_column + vector % kRowVectors * kVector;
    if (i >= params.m) return;
    Output* const to = static_cast<Output*>(params.output) + i * params.output_stride + j;
    const float values[kVector] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (j + e < params.n) to[e] = from_float<Output>(values[e]);
    }
  };
  const int vector = threadIdx.x;
  if (vector < kVectors) {
    float4 total = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* const at = &partial[w][vector / kRowVectors][vector % kRowVectors * kVector];
      add_to(total, *reinterpret_cast<const float4*>(at));
    }
    if (splits.count == 1) {
      store(vector, total);
    } else {
      int owner = 0;  // vector / share, but at once
#pragma unroll
      for (int split = 1; split < kMostClusterBlocks; ++split) owner += vector >= split * share ? 1 : 0;
      send_to_block(owner, &parts[rank * share + vector - owner * share], total, &received);
    }
  }
  if (splits.count == 1 || own == 0) return;
  received.wait(0);
  if (vector >= own) return;
  float4 total = parts[vector];
#pragma unroll
  for (int split = 1; split < kMostClusterBlocks; ++split) {
    if (split < splits.count) add_to(total, parts[split * share + vector]);
  }
  store(rank * share + vector, total);
}

template <class Output, int kRowTiles, int kColumnTiles, int kAhead, int kWarps>
Status launch_kernel(const SkinnyMmParams& params, int splits, Stream stream) {
  constexpr int kRows = 8 * kRowTiles, kColumns = kTileColumns * kColumnTiles;
  const int tiles = static_cast<int>(params.k / kTileK);
  for (int64_t row = 0; row < params.m; row += kMostGridZ * kRows) {
    SkinnyMmParams part = params;
    part.m = std::min(kMostGridZ * kRows, params.m - row);
    part.a = static_cast<const uint16_t*>(params.a) + row * params.a_stride;
    part.output = static_cast<Output*>(params.output) + row * params.output_stride;
    const LaunchShape shape = {.grid = dim3(splits, static_cast<unsigned>((params.n + kColumns - 1) / kColumns),
                                            static_cast<unsigned>((part.m + kRows - 1) / kRows)),
                               .block = kWarps * 32,
                               .pdl = true,
                               .cluster = splits};
    SGL_RETURN_IF_ERROR(launch(params.operator_name, skinny_mm_kernel<Output, kRowTiles, kColumnTiles, kAhead, kWarps>,
                               shape, stream, part,
                               Splits{.count = splits, .least = tiles / splits, .longer = tiles % splits}));
  }
  return OkStatus();
}

// Splits and warps follow from N alone, so that a row's bits do not depend on the others.
template <class Output>
Status launch_output(const SkinnyMmParams& params, Stream stream) {
  constexpr int kBlockColumns = 32;
  const int64_t columns = (params.n + kBlockColumns - 1) / kBlockColumns;
  const bool few = params.m <= 8;
  // As many as leave each multiprocessor one block: that of the next kernel then finds room beside it. Clusters of five
  // to seven fill the chip's groups of multiprocessors badly.
  int splits = 1;
  for (int count : {2, 3, 4, 8}) {
    if (columns <= kSpreadClustersAtOnce[count - 1]) splits = count;
  }
  if (splits > 1) {
    return few ? launch_kernel<Output, 1, 2, 3, 10>(params, splits, stream)
               : launch_kernel<Output, 2, 2, 2, 10>(params, splits, stream);
  }
  return few ? launch_kernel<Output, 1, 1, 3, 16>(params, splits, stream)
             : launch_kernel<Output, 2, 2, 2, 16>(params, splits, stream);
}

bool takes(const SkinnyMmParams& params) {
  constexpr int kAlignment = 16;
  constexpr int64_t kMostColumns = kMostGridY * kTileColumns;
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(params.a) | reinterpret_cast<uintptr_t>(params.b);
  return params.n <= kMostColumns && params.k > 0 && params.k <= INT32_MAX / 4 && params.k % kTileK == 0 &&
         pointers % kAlignment == 0 && (params.a_stride | params.b_stride) % kChunk == 0;
}

}  // namespace

Status skinny_mm(const SkinnyMmParams& params, Stream stream) {
  if (!takes(params)) return skinny_mm_portable(params, stream);
  return params.output_dtype == DType::kF32 ? launch_output<float>(params, stream)
                                            : launch_output<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
