// NVFP4 products of many tokens on Hopper: many_tokens_mm_sm90a.cuh (which says the grid) with f16 operands, which hold
// a value times its scale exactly (fp4_mm_widen.cuh). The values of b are the weights; those of a are widened before,
// in the workspace.
//
// Along K, the instruction's order of numbers is one where a lane's weights in a stage are a block of 16, with one
// scale: see fp4_widen_kernel().
//
// Bound by power and the tensor cores from some 1000 tokens on, by the last wave of tiles below, and by the decoding
// for few; the widening, bound by memory, comes on top. Measured by tools/bench on an H200, 2026-11-23, TFLOP/s, with
// the widening; in turns with it torch 2.11's product of bf16 operands:
//   M x N x K                    torch.mm
//   1024 x 4096 x 8192    782    804
//   1024 x 2112 x 7168    583    742
//   8192 x 9216 x 4096    788    783
//   8192 x 7168 x 16384   800    718
#include <iterator>

#include "kernels/device/vec.cuh"
#include "kernels/gemm/fp4_mm_sm90a.h"
#include "kernels/gemm/fp4_mm_widen.cuh"
#include "kernels/gemm/many_tokens_mm_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

using namespace many_tokens_mm;

constexpr int kWarpgroups = 2, kColumns = kWarpgroups * kWarpgroupColumns;
constexpr int kStageBlocks = kScaleTileColumns;  // of a row: a stage has 64 numbers along K
static_assert(kStageBlocks * kFp4Block * 2 == kSwizzleBytes);
// Packed values come two stages at a time: rows of 32 bytes would keep the copy engine busy.
constexpr int kHalves = 2, kPackedBytes = kHalves * kStageBlocks * kFp4Block / 2;
constexpr int kPackedK = kHalves * kStageBlocks * kFp4Block;
constexpr int kScaleElement = 8;  // bytes: a box has 256 elements across at most

// The figures are fitted to the times on an H200 (2026-11-23) of products with M from 64 to 2048, the N and K of
// Qwen3-VL-235B and DeepSeek-V3. What the model chooses took 0.1% longer than the best choice, in the mean.
constexpr TokenTile kTiles[] = {{2, 32}, {2, 64}, {2, 96}, {2, 128}, {2, 160}, {2, 192}, {2, 224}, {2, 256}};
constexpr TileTime kTimes[] = {{0.242f, 1.7f}, {0.270f, 1.5f}, {0.302f, 2.0f}, {0.325f, 2.5f},
                               {0.414f, 2.1f}, {0.494f, 0.9f}, {0.523f, 3.7f}, {0.625f, 2.0f}};

struct Fp4Call : TileCall {
  int blocks;  // of a row
  const float* alpha;
};

// Where 16 bytes of a row of packed values are, as the copy engine swizzles them.
__device__ __forceinline__ int packed_chunk(int row, int chunk) {
  constexpr int kChunks = kPackedBytes / 16;
  return row * kPackedBytes + (chunk ^ (row / 2 % kChunks)) * 16;
}

constexpr int kWidenThreads = 256;

// a as f16, rows of fp4_wide_columns(): a thread 8 numbers of a row. In a stage, lane t of four has
// block t of the weights, of whose two words widen() makes four pairs each. Pair i of word w is operand A of
// instruction 2w + i / 2, of its first half along K if i is even. So word t of chunk 4w + i of the tokens' row is that
// pair of block t.
__global__ void __launch_bounds__(kWidenThreads)
    fp4_widen_kernel(Fp4Matrix a, int blocks, int padded_blocks, uint4* wide, int chunks) {
  wait_for_predecessor();
  release_successors();
  const int64_t row = blockIdx.x;
  const int chunk = blockIdx.y * kWidenThreads + threadIdx.x;
  if (chunk >= chunks) return;
  const int word = chunk % 8 / 4, pair = chunk % 4, first_block = chunk / 8 * kStageBlocks;
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(a.values + row * a.stride) + word;
  const HalfPairs scales =
      half_of_e4m3(__ldg(reinterpret_cast<const uint32_t*>(a.scales + fp4_scale_at(row, first_block, padded_blocks))));
  uint32_t pairs[kStageBlocks];
#pragma unroll
  for (int t = 0; t < kStageBlocks; ++t) {
    const int block = first_block + t;
    // The scales of no block may be anything.
    pairs[t] = block < blocks ? widen_pair(__ldg(words + 2 * block), pair, scale_pair(scales, t)) : 0;
  }
  wide[row * chunks + chunk] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

template <class Output, int kTokens_>
struct Fp4Product : ProductShape<__half, kWarpgroups, kTokens_> {
  using Shape = ProductShape<__half, kWarpgroups, kTokens_>;
  using Shared = SharedMemory<Fp4Product>;
  using Call = Fp4Call;
  struct Maps {
    CUtensorMap tokens, weights, scales, result;
  };
  // Weights and scales of two stages.
  struct Packed {
    alignas(kSwizzleAtomBytes) uint8_t values[kColumns * kPackedBytes];
    alignas(kBoxAlignment) uint8_t scales[kHalves][kScaleTileBytes];
  };
  static constexpr int kPackedStages = 4;
  struct Extra {
    Barrier full[kPackedStages], empty[kPackedStages];

    __device__ __forceinline__ void init() {
      for (int i = 0; i < kPackedStages; ++i) {
        full[i].init(1);
        empty[i].init(Shape::kMultiplying / 32);
      }
    }
  };
  static constexpr int kStages = Shape::num_stages(0, kPackedStages * sizeof(Packed));
  static constexpr int kStagesTogether = kHalves, kWays = 1;

  static __device__ __forceinline__ void prefetch(const Call&, const Maps& maps) {
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.scales);
  }

  class Source {
   public:
    __device__ __forceinline__ Source(const Call&, const Maps& maps, const Share<Fp4Product>&, Shared& shared)
        : maps_(maps), shared_(shared) {}

    __device__ __forceinline__ void next(int stage) {
      if (stage % kHalves == 0) {
        shared_.extra.empty[at_.index].wait(at_.parity ^ 1);
      } else {
        at_.advance();
      }
    }

    static __device__ __forceinline__ int bytes() { return 0; }

    __device__ __forceinline__ void load(int, Barrier&, const Tile& tile, int stage) {
      if (stage % kHalves != 0) return;
      Packed& to = shared_.packed[at_.index];
      Barrier& full = shared_.extra.full[at_.index];
      full.arrive_and_expect(kColumns * kPackedBytes + kHalves * kScaleTileBytes);
      load_matrix_box(to.values, &maps_.weights, &full, tile.column, stage / kHalves * kPackedBytes);
      load_matrix_box(to.scales, &maps_.scales, &full, tile.column / kScaleTileRows,
                      stage * (kScaleTileBytes / kScaleElement));
    }

   private:
    const Maps& maps_;
    Shared& shared_;
    RingPosition<kPackedStages> at_;
  };

  struct Words {
    uint2 values[2];     // block t of row g, and of row g + 8
    uint32_t scales[2];  // theirs
    bool has_block;      // whether K reaches so far: scales of no block may be anything
  };
  struct Factors {
    uint32_t scales[2];  // of the two rows, each twice
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(const Call& call, Shared& shared)
        : shared_(shared), blocks_(call.blocks), row_(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) {}

    __device__ __forceinline__ void start(int begin) { block_ = begin * kStageBlocks + threadIdx.x % 4; }

    template <int kWay>
    __device__ __forceinline__ void load(int, int half, Words& words) {
      const int t = threadIdx.x % 4;
      const Packed& from = shared_.packed[at_.index];
      if (half == 0) shared_.extra.full[at_.index].wait(at_.parity);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row_ + 8 * r;
        words.values[r] =
            *reinterpret_cast<const uint2*>(from.values + packed_chunk(row, 2 * half + t / 2) + t % 2 * sizeof(uint2));
        words.scales[r] = from.scales[half][scale_in_tile(row) + t];
      }
      words.has_block = block_ < blocks_;
      block_ += kStageBlocks;
      if (half == 1) {
        __syncwarp();
        shared_.extra.empty[at_.index].arrive_if(threadIdx.x % 32 == 0);
        at_.advance();
      }
    }

    template <int kWay>
    __device__ __forceinline__ void decode(const Words& words, int step, Factors& factors, uint32_t (&a)[4]) const {
      if (step == 0) {
        const HalfPairs scales = half_of_e4m3(words.has_block ? words.scales[0] | words.scales[1] << 8 : 0);
#pragma unroll
        for (int r = 0; r < 2; ++r) factors.scales[r] = scale_pair(scales, r);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2& two = words.values[i % 2];
        a[i] = widen_pair(step < 2 ? two.x : two.y, 2 * (step % 2) + i / 2, factors.scales[i % 2]);
      }
    }

   private:
    Shared& shared_;
    const int blocks_, row_;
    int block_ = 0;
    RingPosition<kPackedStages> at_;
  };

  class Epilogue {
   public:
    __device__ __forceinline__ Epilogue(const Call& call, Shared&, int, int) : factor_(kProductFactor * *call.alpha) {}

    __device__ __forceinline__ void share() const {}

    __device__ __forceinline__ void stage(uint8_t* panel, int first_row, int, const float (&sums)[8]) const {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = round_pair(sums[2 * i], sums[2 * i + 1]);
      stage_pairs(panel, first_row, pairs);
    }

   private:
    __device__ __forceinline__ uint32_t round_pair(float sum0, float sum1) const {
      const auto pair = PairOf<Output>::round(sum0 * factor_, sum1 * factor_);
      return reinterpret_cast<const uint32_t&>(pair);
    }

    const float factor_;
  };
};

template <class Output, int kTokens>
Status launch_tokens(const Fp4MmParams& params, int splits, Stream stream) {
  using P = Fp4Product<Output, kTokens>;
  const char* const name = params.operator_name;
  Fp4Call call = {make_tile_call<P>(params.m, params.n, ceil_div(params.k, kPackedK) * kHalves, splits)};
  call.blocks = static_cast<int>(params.k / kFp4Block);
  call.alpha = params.alpha;
  const int64_t wide_columns = fp4_wide_columns(params.k);
  const uint64_t scale_row = static_cast<uint64_t>(params.padded_blocks) * kScaleTileRows;  // of tiles of scales
  typename P::Maps maps;
  SGL_RETURN_IF_ERROR(encode_tokens<P>(name, &maps.tokens, params.workspace, params.m, wide_columns, wide_columns * 2));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &maps.weights,
                                        {.data = const_cast<uint8_t*>(params.b.values),
                                         .rows = static_cast<uint64_t>(params.n),
                                         .columns = static_cast<uint64_t>(params.k / 2),
                                         .row_bytes = static_cast<uint64_t>(params.b.stride),
                                         .box_rows = kColumns,
                                         .box_columns = kPackedBytes,
                                         .element_bytes = 1,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_64B}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &maps.scales,
                                        {.data = const_cast<uint8_t*>(params.b.scales),
                                         .rows = static_cast<uint64_t>(ceil_div(params.n, kScaleTileRows)),
                                         .columns = scale_row / kScaleElement,
                                         .row_bytes = scale_row,
                                         .box_rows = 1,
                                         .box_columns = kHalves * kScaleTileBytes / kScaleElement,
                                         .element_bytes = kScaleElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  SGL_RETURN_IF_ERROR(
      encode_result<P>(name, &maps.result, params.output, params.m, params.n, params.output_stride, splits));
  return launch_product<P>(name, call, maps, stream);
}

Status launch_widen(const Fp4MmParams& params, Stream stream) {
  const int chunks = static_cast<int>(fp4_wide_columns(params.k) * 2 / sizeof(uint4));
  return launch(params.operator_name, fp4_widen_kernel,
                {.grid = dim3(static_cast<unsigned>(params.m), ceil_div(chunks, kWidenThreads)),
                 .block = dim3(kWidenThreads),
                 .pdl = true},
                stream, params.a, static_cast<int>(params.k / kFp4Block), static_cast<int>(params.padded_blocks),
                static_cast<uint4*>(params.workspace), chunks);
}

}  // namespace

bool fp4_many_tokens_takes(const Fp4MmParams& params) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  constexpr int64_t kMostK = kMostGridY * kWidenThreads * 8;  // by fp4_widen_kernel()'s grid
  return params.m > kFp4FewTokens && params.k > 0 && params.k <= kMostK &&
         matrix_map_fits(params.a.values, params.m, params.k, params.a.stride) &&
         matrix_map_fits(params.b.values, params.n, params.k, params.b.stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * 2) &&
         int64_t{ceil_div(params.m, kTiles[0].tokens)} * ceil_div(params.n, kColumns) <= kMostTiles;
}

Status multiply_fp4_many_tokens(const Fp4MmParams& params, Stream stream) {
  SGL_RETURN_IF_ERROR(launch_widen(params, stream));
  const TokenTileChoice choice = choose_tile(params.m, params.n, ceil_div(params.k, kPackedK), kHalves, kTiles, kTimes);
  return launch_tile<std::size(kTiles)>(choice.tile, [&]<int kTile>() {
    constexpr int kTokens = kTiles[kTile].tokens;
    return params.output_dtype == DType::kF16 ? launch_tokens<__half, kTokens>(params, choice.splits, stream)
                                              : launch_tokens<__nv_bfloat16, kTokens>(params, choice.splits, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
