// NVFP4 products of few tokens on Hopper: values and scales go from memory to shared memory by the copy engine, and
// from there to the registers where they are widened to f16 (fp4_mm_widen.cuh).
//
// Operands are swapped: 16 columns of the result, rows of b, fill the rows of the tensor core's instruction and 8
// tokens its columns. Both operands are widened the same way; a warp's tokens serve its 64 columns.
//
// Grid: a cluster a tile of 128 columns, a row of tiles of scales, by kTokens tokens; its blocks are the splits of K. A
// block has a ring of stages along K; of a stage each warp has a step: its columns by its part of K. Nothing but the
// ring's barriers holds the warps together. Their sums meet as in few_tokens_mm_sm90a.cuh.
//
// Bound by widening: a warp issues 655 instructions for 64 columns by 128 along K of 8 tokens. Measured by tools/bench
// on an H200, 2026-11-23, bf16, in µs:
//   N x K       9216 x 4096   4096 x 8192   4096 x 1536   2112 x 7168   24576 x 1536   7168 x 16384
//    1 token    11.4          10.9          4.0           7.0           10.7          22.0
//    8 tokens   11.4          11.0          4.2           7.0           10.6          21.7
//   16 tokens   12.8          12.4          4.7           7.9           12.3          26.2
//   32 tokens   16.6          16.5          6.2           10.4          16.6          35.7
#include <algorithm>

#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/fp4_mm_sm90a.h"
#include "kernels/gemm/fp4_mm_widen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int64_t kMostTokens = kScaleTileRows;  // one row of tiles of scales has all
constexpr int kScaleElement = 8;                 // bytes of the scales' maps: a box has 256 elements across at most
constexpr int kScaleRowBytes = 16;               // of a tile: four rows' of four blocks

// A step is a box wide in half: a lane has 16 bytes of each of its rows, two blocks.
constexpr int kStepK = kSwizzleBytes, kStepBlocks = kStepK / kFp4Block, kStepTiles = kStepBlocks / kScaleTileColumns;
constexpr int kBoxSteps = 2;  // of a box of values

// What Merge asks of a weight. A warp's columns are 16 rows of each quarter of a tile of scales, whose scales lie
// together; an instruction's are 8 of one quarter, then 8 of the next. Lanes whose loads are served together have rows
// four apart, which swizzled are in different banks.
template <class Output>
struct Columns {
  using Params = Fp4MmParams;
  using Sum = float;
  static constexpr int kQuarter = 32, kColumnBlocks = 4;

  static __device__ __forceinline__ int row_of(int g) { return g % 2 * 4 + g / 2; }

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return kQuarter * (block % 2 * 2 + lower) + 16 * column_warp + 8 * (block / 2) + row_of(g);
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    const float factor = kProductFactor * *params.alpha;
    Output* const to = static_cast<Output*>(params.output) + row * params.output_stride + column;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < params.n) to[e] = from_float<Output>(sum[e] * factor);
    }
  }
};

template <class Output, int kTokenTiles_, int kDepthWarps_, int kBlocks_>
struct Config {
  using Weight = Columns<Output>;
  static constexpr int kTokenTiles = kTokenTiles_, kTokens = 8 * kTokenTiles;
  static constexpr int kColumnWarps = 2, kDepthWarps = kDepthWarps_, kWarps = kColumnWarps * kDepthWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kColumns = kScaleTileRows, kSumPitch = kColumns + 4;  // other banks for other tokens
  static constexpr int kStageK = kDepthWarps * kStepK, kBoxes = kDepthWarps / kBoxSteps;
  static constexpr int kScaleTiles = kDepthWarps * kStepTiles;  // of an operand in a stage
  static constexpr int kTokenScaleBytes = kTokens * kScaleRowBytes;
  static constexpr int kReceivedBytes =
      (kTokens * kColumns + few_tokens::kMostSplits * 4) * 4;  // shares are rounded up
  // Blocks of a multiprocessor, and the stages that they find room for.
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kMostBytes = 227 * 1024 / kBlocks - 1024, kBarrierBytes = 1024;
  static constexpr int kStageBytes =
      kBoxes * (kColumns + kTokens) * kSwizzleBytes + kScaleTiles * (kScaleTileBytes + kTokenScaleBytes);
  static constexpr int kStages = std::min(8, (kMostBytes - kReceivedBytes - kBarrierBytes) / kStageBytes);
  // Stages asked for at first, and then ahead of the one that has come. Widening takes as long as the loads: it is to
  // begin early, so no more is on its way than must be.
  static constexpr int kAhead = std::min(2, kStages - 2);
  static_assert(kStages > 2);
};

template <class C>
struct SharedMemory {
  union {
    struct {
      alignas(8 * kSwizzleBytes) uint8_t weights[C::kStages][C::kBoxes][C::kColumns][kSwizzleBytes];
      alignas(8 * kSwizzleBytes) uint8_t tokens[C::kStages][C::kBoxes][C::kTokens][kSwizzleBytes];
      alignas(128) uint8_t weight_scales[C::kStages][C::kScaleTiles][kScaleTileBytes];
      alignas(128) uint8_t token_scales[C::kStages][C::kScaleTiles][C::kTokenScaleBytes];
    };
    float sums[C::kDepthWarps][C::kTokens][C::kSumPitch];
  };
  alignas(16) char received[C::kReceivedBytes];
  Barrier full[C::kStages], empty[C::kStages], all_received;
  __device__ SharedMemory() {}
};

struct Maps {
  CUtensorMap weights, tokens, weight_scales, token_scales;
};

// The stages of a block: of K, the first `longer` splits have one more than `least`.
struct Call {
  int splits, least, longer;
  int stage_bytes;  // that the copy engine brings
  int blocks;       // of a row
};

// One thread: asks for stage `stage` of K in place `index` of the ring.
template <class C>
__device__ __forceinline__ void ask(const Call& call, const Maps& maps, SharedMemory<C>& shared, int first_column,
                                    int first_token, int index, int stage) {
  Barrier* const full = &shared.full[index];
  full->arrive_and_expect(call.stage_bytes);
#pragma unroll
  for (int box = 0; box < C::kBoxes; ++box) {
    const int byte = (stage * C::kBoxes + box) * kSwizzleBytes,
              tile = (stage * C::kBoxes + box) * kBoxSteps * kStepTiles;
    load_matrix_box(shared.weights[index][box], &maps.weights, full, first_column, byte);
    load_matrix_box(shared.weight_scales[index][box * kBoxSteps * kStepTiles], &maps.weight_scales, full,
                    first_column / kScaleTileRows, tile * (kScaleTileBytes / kScaleElement));
    load_matrix_box(shared.tokens[index][box], &maps.tokens, full, first_token, byte);
    load_matrix_box(shared.token_scales[index][box * kBoxSteps * kStepTiles], &maps.token_scales, full, tile,
                    first_token % 32 * (kScaleRowBytes / kScaleElement));
  }
}

__device__ __forceinline__ uint32_t load_shared_pair(uint32_t address) {
  uint32_t bytes;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(bytes) : "r"(address));
  return bytes;
}

// A warp's products of a stage: of its columns, over its part of K.
template <class C>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Call& call, const SharedMemory<C>& shared, int first_token, int column_warp,
                                      int depth_warp, int first_stage)
      : inside_(call.blocks - first_stage * (C::kStageK / kFp4Block) - depth_warp * kStepBlocks - t() * 2) {
    const int box = depth_warp / kBoxSteps, chunk = depth_warp % kBoxSteps * 4 + t(), row = C::Weight::row_of(g());
    const int tile = depth_warp * kStepTiles + t() / 2, in_quarter = 16 * column_warp + row;
    weights_ = shared_address(shared.weights[0][box][in_quarter] + (chunk ^ row) * 16);
    tokens_ = shared_address(shared.tokens[0][box][g()] + (chunk ^ g()) * 16);
    weight_scales_ = shared_address(shared.weight_scales[0][tile] + in_quarter * kScaleRowBytes);
    token_scales_ =
        shared_address(shared.token_scales[0][tile] + g() * kScaleRowBytes + first_token / 32 * 4 + t() % 2 * 2);
    take_ = t() % 2 == 0 ? 0x5410 : 0x7632;
    // Stops the compiler from computing them anew in each step.
    for (uint32_t* number : {&weights_, &tokens_, &weight_scales_, &token_scales_, &take_}) {
      asm volatile("" : "+r"(*number));
    }
  }

  // The stage in place `index` of the ring. Stages come in their order.
  __device__ __forceinline__ void multiply(int index, float (&sums)[4][C::kTokenTiles][4]) {
    constexpr int kQuarterBytes = C::Weight::kQuarter * kSwizzleBytes;
    const uint32_t weights = weights_ + index * static_cast<uint32_t>(sizeof(SharedMemory<C>::weights[0]));
    const uint32_t tokens = tokens_ + index * static_cast<uint32_t>(sizeof(SharedMemory<C>::tokens[0]));
    const uint32_t weight_scales =
        weight_scales_ + index * static_cast<uint32_t>(sizeof(SharedMemory<C>::weight_scales[0]));
    const uint32_t token_scales =
        token_scales_ + index * static_cast<uint32_t>(sizeof(SharedMemory<C>::token_scales[0]));
    const bool inside = inside_ > 0;  // the scales of no block may be anything
    inside_ -= C::kStageK / kFp4Block;
    uint4 left[2][4], right[C::kTokenTiles];                   // of a half's quarters; of the tokens
    uint32_t left_scales[2][4], right_scales[C::kTokenTiles];  // those of the two blocks
#pragma unroll
    for (int r = 0; r < C::kTokenTiles; ++r) {
      const uint32_t bytes = load_shared_pair(token_scales + r * (8 * kScaleRowBytes));
      right[r] = load_shared(tokens + r * (8 * kSwizzleBytes));
      right_scales[r] = half_of_e4m3(inside ? bytes : 0).first;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 four = load_shared(weight_scales + half * (8 * kScaleRowBytes));
      const uint32_t of_quarter[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t bytes = __byte_perm(of_quarter[2 * pair], of_quarter[2 * pair + 1], take_);
        const HalfPairs scales = half_of_e4m3(inside ? bytes : 0);
        left_scales[half][2 * pair] = scales.first;
        left_scales[half][2 * pair + 1] = scales.second;
      }
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        left[half][quarter] = load_shared(weights + half * (8 * kSwizzleBytes) + quarter * kQuarterBytes);
      }
    }
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t token_pairs[C::kTokenTiles][4];
#pragma unroll
      for (int r = 0; r < C::kTokenTiles; ++r)
        widen(word_of(right[r], word), of_block(right_scales[r], word), token_pairs[r]);
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        const int half = block / 2, quarter = block % 2 * 2;
        uint32_t upper[4], lower[4];
        widen(word_of(left[half][quarter], word), of_block(left_scales[half][quarter], word), upper);
        widen(word_of(left[half][quarter + 1], word), of_block(left_scales[half][quarter + 1], word), lower);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
#pragma unroll
          for (int r = 0; r < C::kTokenTiles; ++r) {
            mma_16x8x16<__half>(sums[block][r], {upper[i], lower[i], upper[i + 1], lower[i + 1]}, token_pairs[r][i],
                                token_pairs[r][i + 1]);
          }
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ int g() { return threadIdx.x % 32 / 4; }
  static __device__ __forceinline__ int t() { return threadIdx.x % 4; }

  // The scale of a word's block, of two, as a pair.
  static __device__ __forceinline__ uint32_t of_block(uint32_t scales, int word) {
    return __byte_perm(scales, 0, word < 2 ? 0x1010 : 0x3232);
  }

  int inside_;  // blocks of K from this lane's next step on
  // This lane's in the ring's first place.
  uint32_t weights_, tokens_, weight_scales_, token_scales_;
  uint32_t take_;  // the scales of this lane's two blocks of a tile's four, of two rows
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    fp4_few_tokens_kernel(const __grid_constant__ Fp4MmParams params, const __grid_constant__ Call call,
                          const __grid_constant__ Maps maps) {
  extern __shared__ __align__(8 * kSwizzleBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int rank = blockIdx.x, first_column = blockIdx.y * C::kColumns, first_token = blockIdx.z * C::kTokens;
  const int begin = rank * call.least + min(rank, call.longer);
  const int count = call.least + (rank < call.longer ? 1 : 0);
  const int rows = static_cast<int>(min(int64_t{C::kTokens}, params.m - first_token));
  const few_tokens::Merge<C> merge(call.splits, rank, rows);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.tokens);
    prefetch_tensor_map(&maps.weight_scales);
    prefetch_tensor_map(&maps.token_scales);
    for (int stage = 0; stage < C::kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(C::kWarps);
    }
    fence_barrier_init();
  }
  merge.start(shared.all_received);
  __syncthreads();
  merge.arrive();
  Consumer<C> consumer(call, shared, first_token, column_warp, depth_warp, begin);
  wait_for_predecessor();
  if (warp == 0 && elect_one()) {
    for (int i = 0; i < min(C::kAhead, count); ++i) {
      ask<C>(call, maps, shared, first_column, first_token, i, begin + i);
    }
  }
  __syncwarp();
  float sums[C::Weight::kColumnBlocks][C::kTokenTiles][4] = {};
  RingPosition<C::kStages> at;
  int turn = warp;  // of the warps to ask for a stage, in a place where hardly a warp still is
  for (int i = 0; i < count; ++i) {
    shared.full[at.index].wait(at.parity);
    if (i == turn) {
      const int next = i + C::kAhead, place = next % C::kStages;
      if (next < count && elect_one()) {
        if (next >= C::kStages) shared.empty[place].wait((next / C::kStages - 1) & 1);
        ask<C>(call, maps, shared, first_column, first_token, place, begin + next);
      }
      __syncwarp();
      turn += C::kWarps;
    }
    // Not before the last stage was asked for: their blocks would crowd some multiprocessors.
    if (i == count - 1 - C::kAhead) release_successors();
    consumer.multiply(at.index, sums);
    __syncwarp();
    if (elect_one()) shared.empty[at.index].arrive();
    at.advance();
  }
  release_successors();
  __syncthreads();  // no stage is in use
  char* const left = reinterpret_cast<char*>(&shared.sums);
  merge.leave(left, sums, column_warp, depth_warp);
  __syncthreads();
  merge.finish(params, left, shared.received, shared.all_received, first_column, first_token);
}

template <class C>
Status multiply(const Fp4MmParams& params, int splits, Stream stream) {
  const char* const name = params.operator_name;
  static_assert(sizeof(SharedMemory<C>) <= C::kMostBytes);
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK;
  const unsigned box_tokens = static_cast<unsigned>(std::min<int64_t>(params.m, C::kTokens));
  const Call call = {
      .splits = splits,
      .least = static_cast<int>(stages / splits),
      .longer = static_cast<int>(stages % splits),
      .stage_bytes = C::kStageBytes - C::kBoxes * static_cast<int>(C::kTokens - box_tokens) * kSwizzleBytes,
      .blocks = static_cast<int>(params.k / kFp4Block)};
  const auto encode_values = [&](CUtensorMap* map, const Fp4Matrix& matrix, int64_t rows, unsigned box_rows) {
    return encode_matrix_map(name, map,
                             {.data = const_cast<uint8_t*>(matrix.values),
                              .rows = static_cast<uint64_t>(rows),
                              .columns = static_cast<uint64_t>(params.k / 2),
                              .row_bytes = static_cast<uint64_t>(matrix.stride),
                              .box_rows = box_rows,
                              .box_columns = kSwizzleBytes,
                              .element_bytes = 1});
  };
  const uint64_t tiles =
      static_cast<uint64_t>(params.padded_blocks / kScaleTileColumns);  // of scales, of a row of them
  Maps maps;
  SGL_RETURN_IF_ERROR(encode_values(&maps.weights, params.b, params.n, C::kColumns));
  SGL_RETURN_IF_ERROR(encode_values(&maps.tokens, params.a, params.m, box_tokens));
  SGL_RETURN_IF_ERROR(
      encode_matrix_map(name, &maps.weight_scales,
                        {.data = const_cast<uint8_t*>(params.b.scales),
                         .rows = static_cast<uint64_t>((params.n + kScaleTileRows - 1) / kScaleTileRows),
                         .columns = tiles * (kScaleTileBytes / kScaleElement),
                         .row_bytes = tiles * kScaleTileBytes,
                         .box_rows = 1,
                         .box_columns = kBoxSteps * kStepTiles * kScaleTileBytes / kScaleElement,
                         .element_bytes = kScaleElement,
                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &maps.token_scales,
                                        {.data = const_cast<uint8_t*>(params.a.scales),
                                         .rows = tiles,
                                         .columns = kScaleTileBytes / kScaleElement,
                                         .row_bytes = kScaleTileBytes,
                                         .box_rows = kBoxSteps * kStepTiles,
                                         .box_columns = C::kTokenScaleBytes / kScaleElement,
                                         .element_bytes = kScaleElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  const auto kernel = fp4_few_tokens_kernel<C>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, kernel, sizeof(SharedMemory<C>)));
  return launch(name, kernel,
                {.grid = dim3(splits, static_cast<unsigned>((params.n + C::kColumns - 1) / C::kColumns),
                              static_cast<unsigned>((params.m + C::kTokens - 1) / C::kTokens)),
                 .block = C::kThreads,
                 .shared_bytes = sizeof(SharedMemory<C>),
                 .pdl = true,
                 .cluster = splits},
                stream, params, call, maps);
}

// A model of a product's time in µs, of one token; more tokens take longer with all splits alike. Fitted to the
// products of 1 to 32 tokens on an H200 (2026-11-23; the N and K of Qwen3-VL-235B and DeepSeek-V3): of these the
// model's choice is 1.2% above the best.
template <class C>
double cost(const Fp4MmParams& params, int splits) {
  // For kStepK along K: one block of a multiprocessor, and two, side by side or one after the other.
  constexpr double kOneBlock = C::kDepthWarps == 2 ? 0.45 : 0.26, kTwoBlocks = C::kBlocks == 2 ? 0.49 : 0.59;
  constexpr double kMerge = 1.1, kMergeSplit = 0.1, kFurtherWaves = 2.3;
  // Not all multiprocessors belong to a cluster of more than two.
  const int64_t room = splits <= 2 ? 132 : 108;
  const int64_t tiles = (params.n + C::kColumns - 1) / C::kColumns * ((params.m + C::kTokens - 1) / C::kTokens);
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK, longest = (stages + splits - 1) / splits;
  const int64_t blocks = (tiles * splits + room - 1) / room;  // of the multiprocessor that has most
  const double step = blocks == 1 ? kOneBlock : kTwoBlocks * static_cast<double>(blocks) / 2.0;
  return step * static_cast<double>(longest * C::kDepthWarps) + (splits > 1 ? kMerge + kMergeSplit * splits : 0.0) +
         (blocks > C::kBlocks ? kFurtherWaves : 0.0);
}

struct Plan {
  int splits;
  double cost;
};

template <class C>
Plan plan(const Fp4MmParams& params) {
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK;
  Plan best = {1, cost<C>(params, 1)};
  for (int splits = 2; splits <= std::min<int64_t>(few_tokens::kMostSplits, stages); ++splits) {
    const double its = cost<C>(params, splits);
    if (its < best.cost) best = {splits, its};
  }
  return best;
}

template <class Output, int kTokenTiles>
Status choose_blocks(const Fp4MmParams& params, Stream stream) {
  using Short = Config<Output, kTokenTiles, 2, 2>;
  using Long = Config<Output, kTokenTiles, 4, 1>;
  const Plan of_short = plan<Short>(params), of_long = plan<Long>(params);
  return of_short.cost <= of_long.cost ? multiply<Short>(params, of_short.splits, stream)
                                       : multiply<Long>(params, of_long.splits, stream);
}

template <class Output>
Status choose_tokens(const Fp4MmParams& params, Stream stream) {
  if (params.m <= 8) return choose_blocks<Output, 1>(params, stream);
  if (params.m <= 16) return choose_blocks<Output, 2>(params, stream);
  return choose_blocks<Output, 4>(params, stream);
}

}  // namespace

bool fp4_few_tokens_takes(const Fp4MmParams& params) {
  return params.m <= kMostTokens && params.n <= few_tokens::kMostColumns && params.k > 0 &&
         matrix_map_fits(params.a.values, params.m, params.k, params.a.stride) &&
         matrix_map_fits(params.b.values, params.n, params.k, params.b.stride);
}

Status multiply_fp4_few_tokens(const Fp4MmParams& params, Stream stream) {
  return params.output_dtype == DType::kF16 ? choose_tokens<__half>(params, stream)
                                            : choose_tokens<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
