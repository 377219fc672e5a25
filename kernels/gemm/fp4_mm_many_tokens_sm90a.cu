// NVFP4 products of many tokens on Hopper: many_tokens_mm_sm90a.cuh (which says the grid) with f16 operands, which hold
// a value times its scale exactly (fp4_mm_widen.cuh). b's values are the weights. The warpgroup of the producers widens
// the tokens on their way to the ring, as packed values that the copy engine has left in another one.
//
// Along K, the instruction's order of numbers is one where a lane's weights in a stage are a block of 16, with one
// scale: see widen_row().
#include <utility>

#include "kernels/device/vec.cuh"
#include "kernels/gemm/fp4_mm_sm90a.h"
#include "kernels/gemm/fp4_mm_widen.cuh"
#include "kernels/gemm/many_tokens_mm_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

using namespace many_tokens_mm;

constexpr int kStageBlocks = kScaleTileColumns;  // of a row: a stage has 64 numbers along K
static_assert(kStageBlocks * kFp4Block * 2 == kSwizzleBytes);
// Packed values come two stages at a time: rows of 32 bytes would keep the copy engine busy.
constexpr int kHalves = 2, kPackedBytes = kHalves * kStageBlocks * kFp4Block / 2;
constexpr int kPackedK = kHalves * kStageBlocks * kFp4Block;
constexpr int kScaleElement = 8;  // bytes: a box has 256 elements across at most

constexpr TokenTile kTokenTiles[] = {
    {32, 0.25f, 1.3f}, {64, 0.292f, 1.4f}, {128, 0.385f, 1.55f}, {192, 0.49f, 2.52f}, {256, 0.638f, 2.2f},
};
constexpr int kNumTokenTiles = std::size(kTokenTiles);

struct Fp4Call : TileCall {
  int blocks;  // of a row
  const float* alpha;
};

// Where 16 bytes of a row of packed values are, as the copy engine swizzles them.
__device__ __forceinline__ int packed_chunk(int row, int chunk) {
  constexpr int kChunks = kPackedBytes / 16;
  return row * kPackedBytes + (chunk ^ (row / 2 % kChunks)) * 16;
}

// Widens a row's four blocks: two packed chunks, four scales, of which those behind the row's last block count as 0.
// A lane t of four has block t of the weights, of whose two words widen() makes four pairs each. Pair i of word w is
// operand A of instruction 2w + i / 2, of its first half along K if i is even. So word t of chunk 4w + i of the tokens'
// row is that pair of block t.
__device__ __forceinline__ void widen_row(const uint4& low, const uint4& high, uint32_t scales, uint8_t* to,
                                          int swizzle) {
  const HalfPairs halves = half_of_e4m3(scales);
  const uint32_t words[2][4] = {{low.x, low.z, high.x, high.z}, {low.y, low.w, high.y, high.w}};
  uint32_t scale[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) scale[t] = scale_pair(halves, t);
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    uint32_t pairs[4][4];
#pragma unroll
    for (int t = 0; t < 4; ++t) widen(words[w][t], scale[t], pairs[t]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(to + ((4 * w + i) ^ swizzle) * 16) =
          make_uint4(pairs[0][i], pairs[1][i], pairs[2][i], pairs[3][i]);
    }
  }
}

template <class Output, int kTokens_>
struct Fp4Product {
  using Operand = __half;
  using Sum = float;
  using Call = Fp4Call;
  static constexpr int kTokens = kTokens_;
  // Tiles of scales that a tile of tokens touches.
  static constexpr int kScaleTiles = kTokens > 128 ? 2 : 1;

  struct Maps {
    CUtensorMap tokens, weights, token_scales, weight_scales, result;
  };
  struct Words {
    uint2 values[2];     // block t of row g, and of row g + 8
    uint32_t scales[2];  // theirs
  };
  struct TokenConstant {};

  // Packed values and scales of two stages.
  struct Packed {
    alignas(kSwizzleAtomBytes) uint8_t tokens[kTokens * kPackedBytes];
    alignas(kSwizzleAtomBytes) uint8_t weights[kColumns * kPackedBytes];
    alignas(kBoxAlignment) uint8_t token_scales[kScaleTiles][kHalves][kScaleTileBytes];
    alignas(kBoxAlignment) uint8_t weight_scales[kHalves][kScaleTileBytes];
  };
  static constexpr int kPackedStages = kTokens > 64 ? 3 : 4;
  struct Barriers {
    Barrier full[kPackedStages], empty[kPackedStages];

    __device__ __forceinline__ void init() {
      for (int i = 0; i < kPackedStages; ++i) {
        full[i].init(1);
        empty[i].init(kThreads);
      }
    }
  };
  static constexpr int kMostStages = 6;
  static constexpr int kStages =
      std::min<int>(kMostStages, (ring_bytes(kTokens, sizeof(TokenConstant)) - kPackedStages * sizeof(Packed)) /
                                     (kTokens * kSwizzleBytes));
  static_assert(kStages >= 3);
  static constexpr int kProducerRegisters = 88, kConsumerRegisters = 208;
  static constexpr int kFullArrivals = kWarpgroup, kStagesTogether = kHalves;
  using Shared = SharedMemory<Fp4Product>;

  // Asks the copy engine for one source after another; the first thread of the warpgroup does.
  class Loader {
   public:
    __device__ __forceinline__ Loader(const Call& call, const Maps& maps, const Share<Fp4Product>& share,
                                      Shared& shared)
        : call_(call), maps_(maps), share_(share), shared_(shared), index_(share.first), stage_(share.begin) {}

    __device__ __forceinline__ void load_next() {
      if (index_ >= call_.token_tiles * call_.column_tiles) return;
      if (threadIdx.x % kWarpgroup == 0) {
        const Tile tile = find_tile<Fp4Product>(call_, index_);
        Barrier* const full = &shared_.barriers.full[at_.index];
        Packed& to = shared_.packed[at_.index];
        shared_.barriers.empty[at_.index].wait(at_.parity ^ 1);
        full->arrive_and_expect((call_.box_tokens + kColumns) * kPackedBytes +
                                (kScaleTiles + 1) * kHalves * kScaleTileBytes);
        const int byte = stage_ / kHalves * kPackedBytes;
        const int scale = stage_ * (kScaleTileBytes / kScaleElement);
        load_matrix_box(to.tokens, &maps_.tokens, full, tile.token, byte);
        load_matrix_box(to.weights, &maps_.weights, full, tile.column, byte);
        load_matrix_box(to.token_scales, &maps_.token_scales, full, tile.token / kScaleTileRows, scale);
        load_matrix_box(to.weight_scales, &maps_.weight_scales, full, tile.column / kScaleTileRows, scale);
      }
      at_.advance();
      stage_ += kHalves;
      if (stage_ == share_.end) {
        stage_ = share_.begin;
        index_ += share_.step;
      }
    }

   private:
    const Call& call_;
    const Maps& maps_;
    const Share<Fp4Product>& share_;
    Shared& shared_;
    int index_, stage_;
    RingPosition<kPackedStages> at_;
  };

  static __device__ __forceinline__ void produce(const Call& call, const Maps& maps, const Share<Fp4Product>& share,
                                                 Shared& shared) {
    const int thread = threadIdx.x % kWarpgroup;
    const int tiles = call.token_tiles * call.column_tiles;
    Loader loader(call, maps, share, shared);
    for (int i = 0; i < kPackedStages - 1; ++i) loader.load_next();
    RingPosition<kPackedStages> source_at;
    RingPosition<kStages> at;
    for (int index = share.first; index < tiles; index += share.step) {
      const int first = find_tile<Fp4Product>(call, index).token % kScaleTileRows;
      for (int stage = share.begin; stage < share.end; stage += kHalves) {
        const Packed& source = shared.packed[source_at.index];
        shared.barriers.full[source_at.index].wait(source_at.parity);
#pragma unroll 1
        for (int half = 0; half < kHalves; ++half) {
          const int blocks = min(max(call.blocks - (stage + half) * kStageBlocks, 0), kStageBlocks);
          const uint32_t mask = blocks == kStageBlocks ? ~0u : (1u << (8 * blocks)) - 1;
          shared.empty[at.index].wait(at.parity ^ 1);
#pragma unroll
          for (int i = 0; i < kTokens; i += kWarpgroup) {
            const int row = i + thread;
            if (kTokens % kWarpgroup != 0 && row >= kTokens) break;
            const uint4 low = *reinterpret_cast<const uint4*>(source.tokens + packed_chunk(row, 2 * half));
            const uint4 high = *reinterpret_cast<const uint4*>(source.tokens + packed_chunk(row, 2 * half + 1));
            const int of_scales = first + row;
            const uint32_t scales = *reinterpret_cast<const uint32_t*>(
                source.token_scales[of_scales / kScaleTileRows][half] + scale_in_tile(of_scales % kScaleTileRows));
            widen_row(low, high, scales & mask, shared.tokens[at.index] + row * kSwizzleBytes, row % 8);
          }
          fence_shared_for_async_proxy();
          shared.full[at.index].arrive();
          at.advance();
        }
        shared.barriers.empty[source_at.index].arrive();
        source_at.advance();
        loader.load_next();
      }
    }
  }

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(const Call& call, Shared& shared)
        : shared_(shared), blocks_(call.blocks), row_(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) {}

    __device__ __forceinline__ void start(int begin) { block_ = begin * kStageBlocks + threadIdx.x % 4; }

    __device__ __forceinline__ void load(int, int half, Words& words) {
      const int t = threadIdx.x % 4;
      const Packed& source = shared_.packed[at_.index];
      if (half == 0) shared_.barriers.full[at_.index].wait(at_.parity);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row_ + 8 * r;
        words.values[r] = *reinterpret_cast<const uint2*>(source.weights + packed_chunk(row, 2 * half + t / 2) +
                                                          t % 2 * sizeof(uint2));
        // Those of no block may be anything.
        words.scales[r] = block_ < blocks_ ? source.weight_scales[half][scale_in_tile(row) + t] : 0;
      }
      block_ += kStageBlocks;
      if (half == 1) {
        shared_.barriers.empty[at_.index].arrive();
        at_.advance();
      }
    }

    __device__ __forceinline__ void decode(const Words& words, Weights& weights) const {
      const HalfPairs scales = half_of_e4m3(words.scales[0] | words.scales[1] << 8);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t scale = scale_pair(scales, r);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          uint32_t pairs[4];
          widen(w == 0 ? words.values[r].x : words.values[r].y, scale, pairs);
#pragma unroll
          for (int i = 0; i < 4; ++i) weights[2 * w + i / 2][r + 2 * (i % 2)] = pairs[i];
        }
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
    __device__ __forceinline__ Epilogue(const Call& call, int, int) : factor_(kProductFactor * *call.alpha) {}

    __device__ __forceinline__ void share(TokenConstant (&)[kTokens]) const {}

    // Of two tokens' sums of the first column, then of the second.
    __device__ __forceinline__ void round(const TokenConstant*, const Sum (&sums)[4], uint32_t& first,
                                          uint32_t& second) const {
      first = round_pair(sums[0], sums[1]);
      second = round_pair(sums[2], sums[3]);
    }

   private:
    __device__ __forceinline__ uint32_t round_pair(float sum0, float sum1) const {
      const auto pair = PairOf<Output>::round(sum0 * factor_, sum1 * factor_);
      return reinterpret_cast<const uint32_t&>(pair);
    }

    const float factor_;
  };
};

Status encode_values(const char* name, CUtensorMap* map, const Fp4Matrix& matrix, int64_t rows, int64_t k,
                     int box_rows) {
  return encode_matrix_map(name, map,
                           {.data = const_cast<uint8_t*>(matrix.values),
                            .rows = static_cast<uint64_t>(rows),
                            .columns = static_cast<uint64_t>(k / 2),
                            .row_bytes = static_cast<uint64_t>(matrix.stride),
                            .box_rows = static_cast<uint32_t>(box_rows),
                            .box_columns = kPackedBytes,
                            .element_bytes = 1,
                            .swizzle = CU_TENSOR_MAP_SWIZZLE_64B});
}

// Rows of tiles of scales.
Status encode_scales(const char* name, CUtensorMap* map, const Fp4Matrix& matrix, int64_t rows, int64_t padded_blocks,
                     int box_rows) {
  const uint64_t row_bytes = static_cast<uint64_t>(padded_blocks) * kScaleTileRows;
  return encode_matrix_map(name, map,
                           {.data = const_cast<uint8_t*>(matrix.scales),
                            .rows = static_cast<uint64_t>(ceil_div(rows, kScaleTileRows)),
                            .columns = row_bytes / kScaleElement,
                            .row_bytes = row_bytes,
                            .box_rows = static_cast<uint32_t>(box_rows),
                            .box_columns = kHalves * kScaleTileBytes / kScaleElement,
                            .element_bytes = kScaleElement,
                            .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
}

template <class Output, int kTokens>
Status launch_tokens(const Fp4MmParams& params, int splits, Stream stream) {
  using P = Fp4Product<Output, kTokens>;
  const char* const name = params.operator_name;
  Fp4Call call = {make_tile_call<P>(params.m, params.n, ceil_div(params.k, kPackedK) * kHalves, splits)};
  call.blocks = static_cast<int>(params.k / kFp4Block);
  call.alpha = params.alpha;
  typename P::Maps maps;
  SGL_RETURN_IF_ERROR(encode_values(name, &maps.tokens, params.a, params.m, params.k, call.box_tokens));
  SGL_RETURN_IF_ERROR(encode_values(name, &maps.weights, params.b, params.n, params.k, kColumns));
  SGL_RETURN_IF_ERROR(
      encode_scales(name, &maps.token_scales, params.a, params.m, params.padded_blocks, P::kScaleTiles));
  SGL_RETURN_IF_ERROR(encode_scales(name, &maps.weight_scales, params.b, params.n, params.padded_blocks, 1));
  SGL_RETURN_IF_ERROR(
      encode_result<P>(name, &maps.result, params.output, params.m, params.n, params.output_stride, splits));
  return launch_product<P>(name, call, maps, stream);
}

// From a tile chosen at run time to its instantiation.
template <class Output>
Status launch_choice(const Fp4MmParams& params, const TokenTileChoice& choice, Stream stream) {
  using Launch = Status(const Fp4MmParams&, int, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kNumTokenTiles];
    } table = {{&launch_tokens<Output, kTokenTiles[i].tokens>...}};
    return table;
  }(std::make_integer_sequence<int, kNumTokenTiles>());
  return kLaunches.at[choice.tile](params, choice.splits, stream);
}

}  // namespace

bool fp4_many_tokens_takes(const Fp4MmParams& params) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  return params.k > 0 && matrix_map_fits(params.a.values, params.m, params.k, params.a.stride) &&
         matrix_map_fits(params.b.values, params.n, params.k, params.b.stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * 2) &&
         int64_t{ceil_div(params.m, kTokenTiles[0].tokens)} * ceil_div(params.n, kColumns) <= kMostTiles;
}

Status multiply_fp4_many_tokens(const Fp4MmParams& params, Stream stream) {
  const TokenTileChoice choice = choose_tile(kTokenTiles, params.m, params.n, ceil_div(params.k, kPackedK), kHalves);
  return params.output_dtype == DType::kF16 ? launch_choice<__half>(params, choice, stream)
                                            : launch_choice<__nv_bfloat16>(params, choice, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
