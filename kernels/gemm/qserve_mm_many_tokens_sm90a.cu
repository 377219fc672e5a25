// QServe's products of many tokens on Hopper: many_tokens_mm_sm90a.cuh (which says the grid) with int8 operands. What a
// lane has of a tile of weights, 16 bytes, is operand A of two instructions, of the tile's first and last 16 columns:
// a warp takes one of them. Scales and zeros of a group, the K of a stage, join the weights modulo 256.
//
// Bound by power and the tensor cores from some 1000 tokens on, by the last wave of tiles below, and by the latency of
// the ring for few. Measured on an H200, 2026-11-23, random operands, TOPS; the peer is sgl-kernel 0.4.2:
//   M x N x K             by channel   peer   by group   peer
//   1024 x 4096 x 8192    1587         536    1472       412
//   8192 x 9216 x 4096    1435         519    1368       431
//   8192 x 24576 x 1536   1224         429    1225       400
//   8192 x 7168 x 16384   1497         560    1390       455
#include <cuda_fp16.h>

#include <utility>

#include "kernels/gemm/many_tokens_mm_sm90a.cuh"
#include "kernels/gemm/qserve_mm_scale.cuh"
#include "kernels/gemm/qserve_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using namespace many_tokens_mm;

constexpr int kStageK = kSwizzleBytes;                // numbers of a byte
constexpr int kTilesAcross = kColumns / kQserveTile;  // tiles of weights of a stage
constexpr int kTilesAlong = kStageK / kQserveTile;    // "
constexpr int kWeightElement = 8;                     // bytes: a box has 256 elements across at most
static_assert(kTilesAlong == kSteps && kStageK == kQserveGroup);

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
struct QserveProduct {
  using Operand = int8_t;
  using Sum = int32_t;
  using Call = QserveCall;
  using Packed = QserveStage<kGrouped>;
  static constexpr int kTokens = kTokens_;
  static constexpr int kMostStages = 8;
  static constexpr int kStageBytes = kTokens * kSwizzleBytes + sizeof(Packed);
  static constexpr int kStages = std::min<int>(kMostStages, ring_bytes(kTokens, sizeof(__half2)) / kStageBytes);
  static constexpr int kPackedStages = kStages;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kFullArrivals = kGrouped ? 3 : 2, kStagesTogether = 1;
  using Shared = SharedMemory<QserveProduct>;

  struct Maps {
    CUtensorMap tokens, weights, scales, zeros, result;
  };
  struct Barriers {
    __device__ __forceinline__ void init() {}
  };

  // A thread for each of the tokens, the weights, and the scales and zeros: asking the copy engine for a box takes a
  // thread so long that one for all would not keep up.
  static __device__ __forceinline__ void produce(const Call& call, const Maps& maps, const Share<QserveProduct>& share,
                                                 Shared& shared) {
    const int warp = threadIdx.x % kWarpgroup / 32;
    if (threadIdx.x % 32 != 0 || warp >= kFullArrivals) return;
    const int tiles = call.token_tiles * call.column_tiles;
    const int bytes = warp == 0   ? call.box_tokens * kSwizzleBytes
                      : warp == 1 ? static_cast<int>(sizeof(QserveStage<false>))
                                  : 2 * kColumns;
    RingPosition<kStages> at;
    for (int index = share.first; index < tiles; index += share.step) {
      const Tile tile = find_tile<QserveProduct>(call, index);
      for (int stage = share.begin; stage < share.end; ++stage) {
        Barrier* const full = &shared.full[at.index];
        Packed& to = shared.packed[at.index];
        shared.empty[at.index].wait(at.parity ^ 1);
        full->arrive_and_expect(bytes);
        if (warp == 0) {
          load_matrix_box(shared.tokens[at.index], &maps.tokens, full, tile.token, stage * kStageK);
        } else if (warp == 1) {
          load_matrix_box(to.weights, &maps.weights, full, tile.column / kQserveTile,
                          stage * (kTilesAlong * kQserveTileBytes / kWeightElement));
        } else if constexpr (kGrouped) {
          load_matrix_box(to.scales, &maps.scales, full, stage, tile.column);
          load_matrix_box(to.zeros, &maps.zeros, full, stage, tile.column);
        }
        at.advance();
      }
    }
  }

  // A lane's columns are 16 * warp + lane / 4 of the warpgroup's, and 8 more.
  struct Words {
    uint4 of_step[kSteps];
    uint32_t scales, zeros;  // two bytes each
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(const Call&, const Shared& shared)
        : shared_(shared),
          across_(threadIdx.x / kWarpgroup * (kWarpgroupColumns / kQserveTile) + threadIdx.x % kWarpgroup / 64),
          half_(threadIdx.x % 64 / 32) {}

    __device__ __forceinline__ void start(int) {}

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

    __device__ __forceinline__ void decode(const Words& words, Weights& weights) const {
      const int shift = 4 * half_;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4& four = words.of_step[step];
        const uint32_t word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t shifted = word[i] >> shift;
          if constexpr (kGrouped) {
            const int column = 8 * (i % 2);
            weights[step][i] =
                scale_qserve_weights(shifted, words.scales >> column & 0xff, words.zeros >> column & 0xff);
          } else {
            weights[step][i] = shifted & 0x0f0f0f0f;
          }
        }
      }
    }

   private:
    const Shared& shared_;
    const int across_, half_;  // the tile of weights, and which of its halves
  };

  using TokenConstant = __half2;  // scale and sum

  class Epilogue {
   public:
    __device__ __forceinline__ Epilogue(const Call& call, int first_token, int first_column) {
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
    __device__ __forceinline__ void share(TokenConstant (&constants)[kTokens]) const {
      const int thread = threadIdx.x % kWarpgroup;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (thread + i * kWarpgroup < kTokens) constants[thread + i * kWarpgroup] = constants_[i];
      }
    }

    // Of two tokens' sums of the first column, then of the second.
    __device__ __forceinline__ void round(const TokenConstant* tokens, const Sum (&sums)[4], uint32_t& first,
                                          uint32_t& second) const {
      const uint2 bits = *reinterpret_cast<const uint2*>(tokens);
      const float2 token0 = __half22float2(reinterpret_cast<const __half2&>(bits.x));
      const float2 token1 = __half22float2(reinterpret_cast<const __half2&>(bits.y));
      first = round_pair(token0, token1, sums[0], sums[1], 0);
      second = round_pair(token0, token1, sums[2], sums[3], 1);
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

    float scales_[2], zeros_[2];
    TokenConstant constants_[kPieces];
  };
};

template <bool kGrouped, int kTokens>
Status launch_tokens(const QserveMmParams& params, int splits, Stream stream) {
  using P = QserveProduct<kGrouped, kTokens>;
  const char* const name = params.operator_name;
  QserveCall call = {make_tile_call<P>(params.m, params.n, ceil_div(params.k, kStageK), splits)};
  call.m = static_cast<int>(params.m);
  call.row_scales = static_cast<const __half*>(params.row_scales);
  call.column_scales = static_cast<const __half*>(params.column_scales);
  call.row_sums = static_cast<const __half*>(params.row_sums);
  call.column_zeros = static_cast<const __half*>(params.column_zeros);
  const uint64_t n = static_cast<uint64_t>(params.n), k = static_cast<uint64_t>(params.k);
  const uint64_t weight_row = k * kQserveTile / 2;
  typename P::Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_matrix_map(name, &maps.tokens,
                                        {.data = const_cast<int8_t*>(params.input),
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = k,
                                         .row_bytes = static_cast<uint64_t>(params.input_stride),
                                         .box_rows = static_cast<uint32_t>(call.box_tokens),
                                         .box_columns = kStageK,
                                         .element_bytes = 1}));
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

// From a tile chosen at run time to its instantiation.
template <bool kGrouped>
Status launch_choice(const QserveMmParams& params, const TokenTileChoice& choice, Stream stream) {
  using Launch = Status(const QserveMmParams&, int, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kNumTokenTiles];
    } table = {{&launch_tokens<kGrouped, kTokenTiles[i].tokens>...}};
    return table;
  }(std::make_integer_sequence<int, kNumTokenTiles>());
  return kLaunches.at[choice.tile](params, choice.splits, stream);
}

}  // namespace

bool qserve_many_tokens_takes(const QserveMmParams& params) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  return params.k > 0 && matrix_map_fits(params.input, params.m, params.k, params.input_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * 2) &&
         int64_t{ceil_div(params.m, kTokenTiles[0].tokens)} * ceil_div(params.n, kColumns) <= kMostTiles;
}

Status multiply_qserve_many_tokens(const QserveMmParams& params, Stream stream) {
  const TokenTileChoice choice = choose_tile(params.m, params.n, ceil_div(params.k, kStageK), 1);
  return params.grouped ? launch_choice<true>(params, choice, stream) : launch_choice<false>(params, choice, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
