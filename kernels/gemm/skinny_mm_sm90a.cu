// Skinny bf16 products on Hopper. Rows that 16-byte loads do not take go through the portable kernel.
//
// Operands are swapped: 16 columns of the output (rows of B) fill the rows of the tensor core's instruction, 8 or 16
// rows of A its columns. Both operands go from memory to registers, the next tiles along K always on their way.
//
// Grid: x the splits of K, which are a cluster; y takes 16 columns, z 8 or 16 rows. The warps of a block share out its
// K in turns. Their sums meet in shared memory, and those of the splits in the cluster's, in the order of warps and
// splits, which the number of rows does not change. Bound by reading B; what is short is bound by the way from the
// predecessor's end to the first numbers, and from the last ones to the result.
//
// Measured on an H200, 2026-11-23, K = 7168, in µs; sgl-kernel 0.4.2's in the same run:
//   tokens x columns   1 x 256   16 x 256   1 x 384   16 x 384   1 x 2112   8 x 2112   16 x 2112
//                      3.2       3.7        3.8       4.3        10.7       10.7       11.3
//   sgl-kernel         3.1       7.4        3.5       8.1        9.9        9.9        10.2
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster_sm90.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/skinny_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kColumns = 16, kWarps = 8;
constexpr int kTileK = 32, kChunk = 8;  // along K: of an instruction pair, and a lane's of a row

// Of K: the first `longer` splits have one tile more than `least`.
struct Splits {
  int count, least, longer;
};

template <int kRowTiles>
struct Tile {
  uint4 columns[2], rows[kRowTiles];  // chunks of columns g and g + 8; of row g of each 8
};

// kAhead: tiles of a warp on their way. kBlocks: of a multiprocessor.
template <class Output, int kRowTiles, int kAhead, int kBlocks>
__global__ void __launch_bounds__(kWarps * 32, kBlocks)
    skinny_mm_kernel(const __grid_constant__ SkinnyMmParams params, const __grid_constant__ Splits splits) {
  constexpr int kRows = 8 * kRowTiles;
  constexpr int kVector = 4, kRowVectors = kColumns / kVector, kVectors = kRows * kRowVectors;
  static_assert(kVectors <= kWarps * 32);
  __shared__ __align__(16) float partial[kWarps][kRows][kColumns + kVector];  // padded against bank conflicts
  __shared__ float4 parts[kVectors + kMostClusterBlocks];                     // [splits][share]
  __shared__ Barrier received;
  release_successors();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, rank = blockIdx.x;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * kRows;
  const int begin = rank * splits.least + min(rank, splits.longer);
  const int end = begin + splits.least + (rank < splits.longer ? 1 : 0);
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
  // Rows and columns beyond the last count for nothing: those then read again are in no sum that is stored.
  const uint16_t* column[2];
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    column[lower] = static_cast<const uint16_t*>(params.b) +
                    min(first_column + 8 * lower + g, params.n - 1) * params.b_stride + kChunk * t;
  }
  const uint16_t* row[kRowTiles];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    row[r] = static_cast<const uint16_t*>(params.a) + min(first_row + 8 * r + g, params.m - 1) * params.a_stride +
             kChunk * t;
  }
  const auto load = [&](Tile<kRowTiles>& tile, int index) {
    const int64_t k = static_cast<int64_t>(index) * kTileK;
    const bool inside = k + kChunk * t < params.k;  // K is a multiple of kChunk
    const auto chunk = [&](const uint16_t* from) {
      return inside ? __ldg(reinterpret_cast<const uint4*>(from + k)) : make_uint4(0, 0, 0, 0);
    };
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) tile.columns[lower] = chunk(column[lower]);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) tile.rows[r] = chunk(row[r]);
  };
  wait_for_predecessor();

  Tile<kRowTiles> tiles[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + warp + i * kWarps < end) load(tiles[i], begin + warp + i * kWarps);
  }
  float sums[kRowTiles][4] = {};
  for (int first = begin + warp; first < end; first += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int index = first + i * kWarps;
      if (index >= end) break;
      const uint4 &upper = tiles[i].columns[0], &lower = tiles[i].columns[1];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const uint4& right = tiles[i].rows[r];
        mma_16x8x16<__nv_bfloat16>(sums[r], {upper.x, lower.x, upper.y, lower.y}, right.x, right.y);
        mma_16x8x16<__nv_bfloat16>(sums[r], {upper.z, lower.z, upper.w, lower.w}, right.z, right.w);
      }
      if (index + kAhead * kWarps < end) load(tiles[i], index + kAhead * kWarps);
    }
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[warp][8 * r + 2 * t + e % 2][g + e / 2 * 8] = sums[r][e];
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
  if (splits.count > 1) wait_for_cluster();  // whose barriers are ready now
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
      const int owner = vector / share;
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

template <class Output, int kRowTiles, int kAhead, int kBlocks>
Status launch_kernel(const SkinnyMmParams& params, int splits, Stream stream) {
  constexpr int64_t kMostGridZ = 65535;  // CUDA's limit
  constexpr int kRows = 8 * kRowTiles;
  const int tiles = static_cast<int>((params.k + kTileK - 1) / kTileK);
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
    SGL_RETURN_IF_ERROR(launch(params.operator_name, skinny_mm_kernel<Output, kRowTiles, kAhead, kBlocks>, shape,
                               stream, part,
                               Splits{.count = splits, .least = tiles / splits, .longer = tiles % splits}));
  }
  return OkStatus();
}

template <class Output>
Status launch_output(const SkinnyMmParams& params, Stream stream) {
  const int64_t columns = (params.n + kColumns - 1) / kColumns;
  // With so few columns that one block a multiprocessor is enough, all it needs is on its way at once.
  constexpr int kMultiprocessors = 132, kAloneSplits = 6;
  const bool few = params.m <= 8;
  if (columns * kAloneSplits <= kMultiprocessors) {
    return few ? launch_kernel<Output, 1, 14, 1>(params, kAloneSplits, stream)
               : launch_kernel<Output, 2, 7, 1>(params, kAloneSplits, stream);
  }
  // As many splits as there is room for at once. By N alone, so that a row's bits do not depend on the others.
  int splits = 1;
  for (int count = 2; count <= kMostClusterBlocks; ++count) {
    if (columns <= kClustersAtOnce[count - 1]) splits = count;
  }
  return few ? launch_kernel<Output, 1, 4, 2>(params, splits, stream)
             : launch_kernel<Output, 2, 4, 2>(params, splits, stream);
}

bool takes(const SkinnyMmParams& params) {
  constexpr int kAlignment = 16;
  constexpr int64_t kMostColumns = int64_t{65535} * kColumns;  // by CUDA's limit of the grid along y
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(params.a) | reinterpret_cast<uintptr_t>(params.b);
  return params.n <= kMostColumns && params.k > 0 && params.k <= INT32_MAX && pointers % kAlignment == 0 &&
         (params.a_stride | params.b_stride | params.k) % kChunk == 0;
}

}  // namespace

Status skinny_mm(const SkinnyMmParams& params, Stream stream) {
  if (!takes(params)) return skinny_mm_portable(params, stream);
  return params.output_dtype == DType::kF32 ? launch_output<float>(params, stream)
                                            : launch_output<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
