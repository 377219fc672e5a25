// QServe's products of many tokens on Hopper: many_tokens_mm_sm90a.cuh (which says the grid) with int8 operands. What a
// lane has of a tile of weights, 16 bytes, is operand A of two instructions, of the tile's first and last 16 columns:
// a warp takes one of them. Scales and zeros of a group, the K of a stage, join the weights modulo 256.
//
// Bound by power and the tensor cores from some 1000 tokens on, by the last wave of tiles below, and by the latency of
// the ring for few. Measured by tools/bench on an H200, 2026-11-23, TOPS, in turns with the peer, sgl-kernel 0.4.2:
//   M x N x K             by channel   peer   by group   peer
//   1024 x 4096 x 8192    1551         504    1621       403
//   8192 x 9216 x 4096    1257         407    1562       423
//   8192 x 24576 x 1536   1202         382    1348       393
//   8192 x 7168 x 16384   1373         441    1658       444
#include <cuda_fp16.h>

#include <iterator>

#include "kernels/gemm/many_tokens_mm_sm90a.cuh"
#include "kernels/gemm/qserve_mm_scale.cuh"
#include "kernels/gemm/qserve_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using namespace many_tokens_mm;

constexpr int kWarpgroups = 2, kColumns = kWarpgroups * kWarpgroupColumns;
constexpr int kTilesAcross = kColumns / kQserveTile;  // tiles of weights of a stage, which has a group's numbers
constexpr int kTilesAlong = kSteps;
constexpr int kWeightElement = 8;  // bytes: a box has 256 elements across at most
static_assert(kTilesAlong * kQserveTile == kQserveGroup);

// Those by channel are fitted to the times on an H200 (2026-11-23) of products with M from 64 to 2048, the N and K of
// Qwen3-VL-235B and DeepSeek-V3; those by group are of gptq_marlin_gemm's tiles. What the model chooses took 0.1% and
// 0.3% longer than the best choice, in the mean.
constexpr TokenTile kTiles[] = {{2, 32}, {2, 64}, {2, 96}, {2, 128}, {2, 160}, {2, 192}, {2, 224}, {2, 256}};
constexpr TileTime kChannelTimes[] = {{0.184f, 2.5f}, {0.230f, 2.3f}, {0.268f, 2.2f}, {0.305f, 2.6f},
                                      {0.410f, 2.8f}, {0.490f, 2.6f}, {0.547f, 3.1f}, {0.620f, 3.6f}};
constexpr TileTime kGroupTimes[] = {{0.25f, 1.3f}, {0.292f, 1.4f}, {0.333f, 1.62f}, {0.385f, 1.55f},
                                    {0.43f, 1.8f}, {0.49f, 2.52f}, {0.566f, 2.42f}, {0.638f, 2.2f}};

template <bool kGrouped>
struct QserveStage {
  alignas(kBoxAlignment) uint8_t weights[kTilesAcross][kTilesAlong][kQserveTileBytes];
};
template <>
struct QserveStage<true> {
  alignas(kBoxAlignment) uint8_t weights[kTilesAcross][kTilesAlong][kQserveTileBytes];
  alignas(kBoxAlignment) uint8_t scales[kColumns];
  alignas(kBoxAlignment) uint8_t zeros[kColumns];
};

struct QserveCall : TileCall {
  int m;
  const __half *row_scales, *column_scales, *row_sums, *column_zeros;  // as in QserveMmParams
};

template <bool kGrouped, int kTokens_>
struct QserveProduct : ProductShape<int8_t, kWarpgroups, kTokens_> {
  using Shape = ProductShape<int8_t, kWarpgroups, kTokens_>;
  using Shape::kTokens, Shape::kStageK, typename Shape::Sum;
  using Shared = SharedMemory<QserveProduct>;
  using Call = QserveCall;
  using Packed = QserveStage<kGrouped>;
  struct Maps {
    CUtensorMap tokens, weights, scales, zeros, result;
  };
  using TokenConstant = __half2;  // scale and sum
  struct Extra {
    TokenConstant constants[kWarpgroups][kTokens];

    __device__ __forceinline__ void init() {}
  };
  static constexpr int kStages = Shape::num_stages(sizeof(Packed), sizeof(Extra)), kPackedStages = kStages;
  static constexpr int kStagesTogether = 1, kWays = 1;
  static_assert(kStageK == kQserveGroup);

  static __device__ __forceinline__ void prefetch(const Call&, const Maps& maps) {
    prefetch_tensor_map(&maps.weights);
    if constexpr (kGrouped) {
      prefetch_tensor_map(&maps.scales);
      prefetch_tensor_map(&maps.zeros);
    }
  }

  class Source {
   public:
    __device__ __forceinline__ Source(const Call&, const Maps& maps, const Share<QserveProduct>&, Shared& shared)
        : maps_(maps), shared_(shared) {}

    __device__ __forceinline__ void next(int) {}

    static __device__ __forceinline__ int bytes() { return sizeof(QserveStage<false>) + (kGrouped ? 2 * kColumns : 0); }

    __device__ __forceinline__ void load(int place, Barrier& full, const Tile& tile, int stage) const {
      Packed& to = shared_.packed[place];
      load_matrix_box(to.weights, &maps_.weights, &full, tile.column / kQserveTile,
                      stage * (kTilesAlong * kQserveTileBytes / kWeightElement));
      if constexpr (kGrouped) {
        load_matrix_box(to.scales, &maps_.scales, &full, stage, tile.column);
        load_matrix_box(to.zeros, &maps_.zeros, &full, stage, tile.column);
      }
    }

   private:
    const Maps& maps_;
    Shared& shared_;
  };

  // A lane's columns are 16 * warp + lane / 4 of the warpgroup's, and 8 more.
  struct Words {
    uint4 of_step[kSteps];
    uint32_t scales, zeros;  // two bytes each
  };
  struct Factors {
    uint32_t scales[2], zeros[2];  // of the two columns
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(const Call&, const Shared& shared)
        : shared_(shared),
          across_(threadIdx.x / kWarpgroup * (kWarpgroupColumns / kQserveTile) + threadIdx.x % kWarpgroup / 64),
          half_(threadIdx.x % 64 / 32) {}

    __device__ __forceinline__ void start(int) {}

    template <int kWay>
    __device__ __forceinline__ void load(int index, int, Words& words) const {
      const Packed& stage = shared_.packed[index];
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        words.of_step[step] = *reinterpret_cast<const uint4*>(stage.weights[across_][step] + lane * 16);
      }
      if constexpr (kGrouped) {
        const int at = across_ * kQserveTile + lane / 4 * 4 + half_ * 2;
        words.scales = *reinterpret_cast<const uint16_t*>(stage.scales + at);
        words.zeros = *reinterpret_cast<const uint16_t*>(stage.zeros + at);
      }
    }

    template <int kWay>
    __device__ __forceinline__ void decode(const Words& words, int step, Factors& factors, uint32_t (&a)[4]) const {
      if (kGrouped && step == 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          factors.scales[r] = words.scales >> 8 * r & 0xff;
          factors.zeros[r] = words.zeros >> 8 * r & 0xff;
        }
      }
      const uint4& four = words.of_step[step];
      const uint32_t word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t shifted = word[i] >> 4 * half_;
        a[i] = kGrouped ? scale_qserve_weights(shifted, factors.scales[i % 2], factors.zeros[i % 2])
                        : shifted & 0x0f0f0f0f;
      }
    }

   private:
    const Shared& shared_;
    const int across_, half_;  // the tile of weights, and which of its halves
  };

  class Epilogue {
   public:
    __device__ __forceinline__ Epilogue(const Call& call, Shared& shared, int first_token, int first_column)
        : shared_constants_(shared.extra.constants[threadIdx.x / kWarpgroup]) {
      const int thread = threadIdx.x % kWarpgroup;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int column = min(first_column + thread / 32 * 16 + thread % 32 / 4 + 8 * r, call.n - 1);
        scales_[r] = __half2float(call.column_scales[column]);
        zeros_[r] = kGrouped ? 0.0f : __half2float(call.column_zeros[column]);
      }
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int token = min(first_token + thread + i * kWarpgroup, call.m - 1);
        constants_[i] = __half2(call.row_scales[token], kGrouped ? call.row_scales[token] : call.row_sums[token]);
      }
    }

    // Leaves the tokens' constants where the warpgroup reads them.
    __device__ __forceinline__ void share() const {
      const int thread = threadIdx.x % kWarpgroup;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (thread + i * kWarpgroup < kTokens) shared_constants_[thread + i * kWarpgroup] = constants_[i];
      }
    }

    __device__ __forceinline__ void stage(uint8_t* panel, int first_row, int token, const Sum (&sums)[8]) const {
      uint32_t pairs[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = token + 8 * half + threadIdx.x % 4 * 2;
        const uint2 bits = *reinterpret_cast<const uint2*>(shared_constants_ + own);
        const float2 token0 = __half22float2(reinterpret_cast<const __half2&>(bits.x));
        const float2 token1 = __half22float2(reinterpret_cast<const __half2&>(bits.y));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Sum* const pair = sums + 4 * half + 2 * r;
          pairs[2 * half + r] = round_pair(token0, token1, pair[0], pair[1], r);
        }
      }
      stage_pairs(panel, first_row, pairs);
    }

   private:
    static constexpr int kPieces = (kTokens + kWarpgroup - 1) / kWarpgroup;

    __device__ __forceinline__ uint32_t round_pair(const float2& token0, const float2& token1, int32_t sum0,
                                                   int32_t sum1, int r) const {
      float value0 = static_cast<float>(sum0) * token0.x * scales_[r];
      float value1 = static_cast<float>(sum1) * token1.x * scales_[r];
      if constexpr (!kGrouped) {
        value0 -= token0.y * zeros_[r];
        value1 -= token1.y * zeros_[r];
      }
      const __half2 pair = __floats2half2_rn(value0, value1);
      return reinterpret_cast<const uint32_t&>(pair);
    }

    TokenConstant* const shared_constants_;
    float scales_[2], zeros_[2];
    TokenConstant constants_[kPieces];
  };
};

template <bool kGrouped, int kTokens>
Status launch_tokens(const QserveMmParams& params, int splits, Stream stream) {
  using P = QserveProduct<kGrouped, kTokens>;
  const char* const name = params.operator_name;
  QserveCall call = {make_tile_call<P>(params.m, params.n, ceil_div(params.k, P::kStageK), splits)};
  call.m = static_cast<int>(params.m);
  call.row_scales = static_cast<const __half*>(params.row_scales);
  call.column_scales = static_cast<const __half*>(params.column_scales);
  call.row_sums = static_cast<const __half*>(params.row_sums);
  call.column_zeros = static_cast<const __half*>(params.column_zeros);
  const uint64_t n = static_cast<uint64_t>(params.n), k = static_cast<uint64_t>(params.k);
  const uint64_t weight_row = k * kQserveTile / 2;
  typename P::Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_tokens<P>(name, &maps.tokens, params.input, params.m, params.k, params.input_stride));
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &maps.weights,
                                        {.data = const_cast<uint8_t*>(params.weights),
                                         .rows = n / kQserveTile,
                                         .columns = weight_row / kWeightElement,
                                         .row_bytes = weight_row,
                                         .box_rows = kTilesAcross,
                                         .box_columns = kTilesAlong * kQserveTileBytes / kWeightElement,
                                         .element_bytes = kWeightElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (kGrouped) {
    const auto encode_groups = [&](CUtensorMap* map, const uint8_t* groups) {
      return encode_matrix_map(name, map,
                               {.data = const_cast<uint8_t*>(groups),
                                .rows = k / kQserveGroup,
                                .columns = n,
                                .row_bytes = n,
                                .box_rows = 1,
                                .box_columns = kColumns,
                                .element_bytes = 1,
                                .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
    };
    SGL_RETURN_IF_ERROR(encode_groups(&maps.scales, params.group_scales));
    SGL_RETURN_IF_ERROR(encode_groups(&maps.zeros, params.group_zeros));
  }
  SGL_RETURN_IF_ERROR(
      encode_result<P>(name, &maps.result, params.output, params.m, params.n, params.output_stride, splits));
  return launch_product<P>(name, call, maps, stream);
}

}  // namespace

bool qserve_many_tokens_takes(const QserveMmParams& params) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  return params.k > 0 && matrix_map_fits(params.input, params.m, params.k, params.input_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * 2) &&
         int64_t{ceil_div(params.m, kTiles[0].tokens)} * ceil_div(params.n, kColumns) <= kMostTiles;
}

Status multiply_qserve_many_tokens(const QserveMmParams& params, Stream stream) {
  const int stages = ceil_div(params.k, kQserveGroup);
  const TokenTileChoice choice =
      choose_tile(params.m, params.n, stages, 1, kTiles, params.grouped ? kGroupTimes : kChannelTimes);
  return launch_tile<std::size(kTiles)>(choice.tile, [&]<int kTile>() {
    constexpr int kTokens = kTiles[kTile].tokens;
    return params.grouped ? launch_tokens<true, kTokens>(params, choice.splits, stream)
                          : launch_tokens<false, kTokens>(params, choice.splits, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
