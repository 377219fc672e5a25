// gptq_marlin_gemm of many tokens on Hopper: many_tokens_mm_sm90a.cuh (which says the grid) with 16-bit operands. A
// word of Marlin's layout is what a lane holds of operand A of wgmma.m64nNk16. The scales of several groups join the
// weights before the product, rounded to a's dtype; one group's join the sums.
//
// Bound by power and the tensor cores from some 1000 tokens on (a stage of a tile of 256 tokens takes 1.02 of the
// clocks of its wgmma), by the last wave of tiles below, and where tiles have fewer than 128 tokens by the decoding:
// 115 instructions a warp and stage. Measured by tools/bench on an H200, 2026-11-23, bf16, groups of 128, in µs; in
// turns with it torch 2.11's product with a bf16 weight:
//   N x K            9216 x 4096   4096 x 8192   3072 x 4096   2112 x 7168   24576 x 1536
//   M = 64
//     uint4b8        16.2          15.0          7.8           10.7          11.5
//     uint8b128      18.5          17.2          8.9           12.1          13.6
//     torch.mm       21.5          22.6          9.3           12.6          21.5
//   M = 256
//     uint4b8        32.5          26.6          14.9          17.1          27.6
//     uint8b128      39.2          31.4          16.0          19.3          36.7
//     torch.mm       32.0          30.5          14.1          16.4          29.8
//   M = 1024
//     uint4b8        99.5          84.8          34.0          46.8          107.7
//     uint8b128      118.6         92.9          41.0          50.4          117.5
//     torch.mm       110.7         85.4          34.5          41.8          109.8
#pragma once

#include <algorithm>

#include "kernels/gemm/many_tokens_mm_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin_many_tokens {

using namespace many_tokens_mm;
using namespace marlin;

inline constexpr int kWeightElement = 8;  // bytes: a box has 256 elements across at most
static_assert(kMarlinTileN == kWarpgroupColumns && kMarlinTileK * 2 == kStepBytes);

struct Call : TileCall {
  const void* column_scales;  // of one group, else null
  const void* global_scale;   // or null
  float factor;
  bool has_scales, has_zeros;  // of groups; packed
  int group_rows;              // rows of scales, and of zeros, of a stage
  int stages_per_row;          // 1, or how many stages share a row
  int step_shift;              // step i of a stage is of its row i >> step_shift
  MarlinType type;
};

struct Maps {
  CUtensorMap tokens, weights, scales, zeros, result;
};

__device__ __forceinline__ uint32_t load_word(const uint8_t* shared) {
  return *reinterpret_cast<const uint32_t*>(shared);
}

// Which columns of its warpgroup's 64 a lane decodes: 16 * block + lane / 4, and 8 more. A row of operand A may be any
// column; were a block a warp's, all its lanes' words would lie in a quarter of the banks. Of 8-bit numbers the columns
// are two words, and every other lane / 4 takes the second one first.
template <int kBits>
struct Columns {
  int block;
  bool swapped;

  __device__ __forceinline__ Columns()
      : block((threadIdx.x / 32 + threadIdx.x % 32 / 8) % 4), swapped(kBits == 8 && threadIdx.x / 4 % 2 == 1) {}

  // Of row lane / 4 of operand A (which = 0), and of 8 rows below.
  __device__ __forceinline__ int column(int which) const {
    return 16 * block + threadIdx.x % 32 / 4 + 8 * (which ^ static_cast<int>(swapped));
  }
};

template <class T, Format kFormat_, int kWarpgroups_, int kTokens_>
struct MarlinProduct : ProductShape<T, kWarpgroups_, kTokens_> {
  using Shape = ProductShape<T, kWarpgroups_, kTokens_>;
  using Shape::kWarpgroups, Shape::kColumns, Shape::kStageK;
  using Shared = SharedMemory<MarlinProduct>;
  using Call = marlin_many_tokens::Call;
  using Maps = marlin_many_tokens::Maps;
  static constexpr Format kFormat = kFormat_;
  static constexpr int kBits = bits_of(kFormat);
  static constexpr bool kIsInteger = kFormat == Format::kInt4 || kFormat == Format::kInt8;
  static constexpr bool kIsFp4 = kFormat == Format::kE2M1;
  static constexpr int kTileBytes = kMarlinTileK * kMarlinTileN * kBits / 8;
  static constexpr int kScaleRowBytes = kColumns * 2;  // of a group; with float4 of a pair of groups
  static constexpr int kZeroRowBytes = kIsInteger ? kColumns * kBits / 8 : kBoxAlignment / kSteps;

  // By warpgroup the tiles of its columns; then the groups of the stage, kSteps of them at most.
  struct Packed {
    alignas(kBoxAlignment) uint8_t weights[kWarpgroups][kSteps * kTileBytes];
    alignas(kBoxAlignment) uint8_t scales[kSteps * kScaleRowBytes];
    alignas(kBoxAlignment) uint8_t zeros[kSteps * kZeroRowBytes];
  };
  struct Extra {
    __device__ __forceinline__ void init() {}
  };
  static constexpr int kStages = Shape::num_stages(sizeof(Packed), 0), kPackedStages = kStages;
  static constexpr int kStagesTogether = 1;
  // Whether all steps of a stage have the same scales, and zero points; whether there are packed zero points.
  static constexpr int kWays = kIsFp4 ? 1 : kIsInteger ? 4 : 2;
  static constexpr bool is_one_group(int way) { return way % 2 == 1; }
  static constexpr bool has_zeros(int way) { return way / 2 == 1; }

  static __device__ __forceinline__ void prefetch(const Call& call, const Maps& maps) {
    prefetch_tensor_map(&maps.weights);
    if (call.has_scales) prefetch_tensor_map(&maps.scales);
    if (call.has_zeros) prefetch_tensor_map(&maps.zeros);
  }

  class Source {
   public:
    __device__ __forceinline__ Source(const Call& call, const Maps& maps, const Share<MarlinProduct>& share,
                                      Shared& shared)
        : call_(call),
          maps_(maps),
          shared_(shared),
          begin_(share.begin),
          first_row_(share.begin / call.stages_per_row),
          first_of_row_(share.begin - first_row_ * call.stages_per_row),
          bytes_(sizeof(Packed::weights) +
                 call.group_rows * ((call.has_scales ? kScaleRowBytes : 0) + (call.has_zeros ? kZeroRowBytes : 0))) {}

    // Rows of groups are counted: this has to take less time than the product of a stage.
    __device__ __forceinline__ void next(int stage) {
      if (stage == begin_) {
        row_ = first_row_ * call_.group_rows;
        stages_of_row_ = first_of_row_;
      } else if (++stages_of_row_ == call_.stages_per_row) {
        row_ += call_.group_rows;
        stages_of_row_ = 0;
      }
    }

    __device__ __forceinline__ int bytes() const { return bytes_; }

    __device__ __forceinline__ void load(int place, Barrier& full, const Tile& tile, int stage) const {
      Packed& to = shared_.packed[place];
      // A box of 64 columns for each warpgroup.
      const int column = tile.column / kMarlinTileN * (kTileBytes / kWeightElement);
#pragma unroll
      for (int i = 0; i < kWarpgroups; ++i) {
        load_matrix_box(to.weights[i], &maps_.weights, &full, stage * kSteps,
                        column + i * (kTileBytes / kWeightElement));
      }
      if (call_.has_scales) load_matrix_box(to.scales, &maps_.scales, &full, row_, tile.column);
      if (call_.has_zeros) load_matrix_box(to.zeros, &maps_.zeros, &full, row_, tile.column * kBits / 8);
    }

   private:
    const Call& call_;
    const Maps& maps_;
    Shared& shared_;
    const int begin_, first_row_, first_of_row_, bytes_;
    int row_ = 0, stages_of_row_ = 0;
  };

  // The scales and the zero points of a lane's two columns are neighbours in Marlin's order of columns.
  struct Words {
    uint32_t words[kSteps][kBits / 4];
    uint32_t scales[kSteps], zeros[kSteps];  // by step; if the stage is of one group, the first alone
  };
  // What a step's words are multiplied with.
  struct Factors {
    uint32_t scales[2], biases[2];  // of the two columns, each twice
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(const Call& call, const Shared& shared)
        : shared_(shared),
          step_shift_(call.step_shift),
          has_scales_(call.has_scales),
          has_zeros_(kIsInteger && call.has_zeros) {
      const Columns<kBits> columns;
      const int warpgroup = threadIdx.x / kWarpgroup, lane = threadIdx.x % 32, g = lane / 4, block = columns.block;
      weight_offset_ = warpgroup * kSteps * kTileBytes + lane * (kTileBytes / 32) + block * kBits;
      swapped_ = columns.swapped;
      if constexpr (kIsFp4) {
        // Of eight columns' 16 bytes 8 are of the first group; see marlin_fp4_scale_byte().
        scale_offset_ = warpgroup * (kScaleRowBytes / kWarpgroups) + g * 16 + block / 2 * 4;
        shift_ = 8 * (block % 2);
      } else {
        scale_offset_ = warpgroup * (kScaleRowBytes / kWarpgroups) + g * 16 + block * 4;
      }
      if constexpr (kIsInteger) {
        zero_offset_ = warpgroup * (kZeroRowBytes / kWarpgroups) + (kBits == 4 ? g : 2 * g + block / 2) * 4;
        shift_ = kBits * (kBits == 4 ? block : block % 2);
        static_assert(marlin_zero_bit(4, 2) == 4 && marlin_zero_bit(4, 3) == 20 && marlin_zero_bit(8, 3) == 24);
        const uint32_t zero = call.type == MarlinType::kU4B8 ? 8 : call.type == MarlinType::kU8B128 ? 128 : 0;
        constant_bias_ = zero_bias<T, kFormat>(zero);
        asm volatile("" : "+r"(constant_bias_));  // keeps the compiler from computing it anew each time
      }
    }

    __device__ __forceinline__ int way() const {
      if (kIsFp4) return 0;
      return (kSteps >> step_shift_ == 1 ? 1 : 0) + (has_zeros_ ? 2 : 0);
    }

    __device__ __forceinline__ void start(int) {}

    template <int kWay>
    __device__ __forceinline__ void load(int place, int, Words& packed) const {
      const Packed& from = shared_.packed[place];
      const uint8_t* const words = from.weights[0] + weight_offset_;
      const int first = swapped_ ? 4 : 0;  // bytes
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        packed.words[step][0] = load_word(words + step * kTileBytes + first);
        if constexpr (kBits == 8) packed.words[step][1] = load_word(words + step * kTileBytes + (first ^ 4));
      }
      const uint8_t* const scales = from.scales + scale_offset_;
      const uint8_t* const zeros = from.zeros + zero_offset_;
      packed.scales[0] = kUnscaled;
      if (kIsFp4 || has_scales_) packed.scales[0] = load_word(scales);
      if constexpr (has_zeros(kWay)) packed.zeros[0] = load_word(zeros);
      if constexpr (!is_one_group(kWay)) {
#pragma unroll
        for (int step = 1; step < kSteps; ++step) {
          const int in_row = kIsFp4 ? step % 2 * 8 : 0;
          packed.scales[step] = load_word(scales + (step >> step_shift_) * kScaleRowBytes + in_row);
          if constexpr (has_zeros(kWay)) packed.zeros[step] = load_word(zeros + (step >> step_shift_) * kZeroRowBytes);
        }
      }
    }

    template <int kWay>
    __device__ __forceinline__ void decode(const Words& packed, int step, Factors& factors, uint32_t (&a)[4]) const {
      if (step == 0 || !is_one_group(kWay)) {
        const int first = swapped_ ? 0x3232 : 0x1010;  // choose one of a pair, twice
        const int second = swapped_ ? 0x1010 : 0x3232;
        const uint32_t scales = scale_pair(packed.scales[step]);
        factors.scales[0] = __byte_perm(scales, 0, first);
        factors.scales[1] = __byte_perm(scales, 0, second);
        factors.biases[0] = factors.biases[1] = constant_bias_;
        if constexpr (has_zeros(kWay)) {
          constexpr uint32_t kMask = kBits == 4 ? 0x000f000f : 0x00ff00ff;
          const uint32_t zeros = packed.zeros[step] >> shift_ & kMask;
          factors.biases[0] = zero_bias<T, kFormat>(__byte_perm(zeros, 0, first));
          factors.biases[1] = zero_bias<T, kFormat>(__byte_perm(zeros, 0, second));
        }
      }
      const uint32_t (&words)[kBits / 4] = packed.words[step];
      decode_raw<T, kFormat, !has_zeros(kWay)>(words[0], 0, factors.biases[0], a[0], a[2]);
      decode_raw<T, kFormat, !has_zeros(kWay)>(words[kBits / 8], kBits == 4 ? 1 : 0, factors.biases[1], a[1], a[3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = multiply_pairs<T>(a[i], factors.scales[i % 2]);
    }

   private:
    // The product with a scale makes up for kRebias, too.
    static constexpr uint32_t kUnscaled = kFormat == Format::kE4M3 ? kRebias<T, kFormat>
                                          : kIsHalf<T>             ? 0x3c003c00
                                                                   : 0x3f803f80;

    // The low half is of the first column.
    __device__ __forceinline__ uint32_t scale_pair(uint32_t word) const {
      return kIsFp4 ? fp4_scale_pair<T>(word >> shift_) : word;
    }

    const Shared& shared_;
    const int step_shift_;
    const bool has_scales_, has_zeros_;
    bool swapped_;
    int weight_offset_, scale_offset_, zero_offset_ = 0, shift_ = 0;
    uint32_t constant_bias_ = 0;
  };

  class Epilogue {
   public:
    __device__ __forceinline__ Epilogue(const Call& call, Shared&, int, int first_column) {
      const float factor = mixed_mm::result_factor(static_cast<const T*>(call.global_scale), call.factor);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scales_[r] = factor;
        if (call.column_scales != nullptr && first_column < call.n) {
          const int place = marlin_scale_place(columns_.column(r), false);
          scales_[r] *= static_cast<float>(static_cast<const T*>(call.column_scales)[first_column + place]);
        }
      }
    }

    __device__ __forceinline__ void share() const {}

    // Lanes with neighbouring columns, four apart, swap halves, so that each has two columns of one token.
    __device__ __forceinline__ void stage(uint8_t* panel, int first_row, int, const float (&sums)[8]) const {
      const int lane = threadIdx.x % 32, odd = lane / 4 % 2;
      // Of words {first column's pair of tokens, second column's}: what the other lane stores, and what this one does.
      const uint32_t give = odd == 0 ? 0x7632 : columns_.swapped ? 0x1054 : 0x5410;
      const uint32_t take_low = odd == 0 ? 0x5410 : 0x3254, take_high = odd == 0 ? 0x7610 : 0x3276;
      const int token = first_row + lane % 4 * 2 + odd, place = lane / 8 * 4;
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        uint32_t words[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* const pair = sums + 4 * tile + 2 * i;
          words[i] = bit_cast<uint32_t>(mixed_mm::to_pair<T>(pair[0] * scales_[i], pair[1] * scales_[i]));
        }
        const uint32_t taken = __shfl_xor_sync(~0u, __byte_perm(words[0], words[1], give), 4);
        uint8_t* const row = panel + (token + 8 * tile) * kSwizzleBytes + place;
        // The halves of `taken` are of the lower and of the upper 8 columns of the block.
        const uint32_t lower = __byte_perm(columns_.swapped ? words[1] : words[0], taken, take_low);
        const uint32_t upper = __byte_perm(columns_.swapped ? words[0] : words[1], taken, take_high);
        const int chunk = 2 * columns_.block;
        *reinterpret_cast<uint32_t*>(row + ((chunk ^ token % 8) * 16)) = lower;
        *reinterpret_cast<uint32_t*>(row + (((chunk + 1) ^ token % 8) * 16)) = upper;
      }
    }

   private:
    const Columns<kBits> columns_;
    float scales_[2];  // of the two columns
  };
};

// What the sums lack. Of a float8's one group b_scales hold 2^8 (bf16: 2^120).
template <class P>
constexpr float factor_of(bool one_group) {
  if (P::kFormat == Format::kE2M1) return kFp4Factor<typename P::Operand>;
  return one_group ? kScaleFactor<typename P::Operand, P::kFormat> : 1.0f;
}

template <class P>
Status launch_tokens(const MarlinGemmParams& params, int splits, Stream stream) {
  constexpr char kName[] = "gptq_marlin_gemm";
  const bool one_group = params.num_groups == 1;
  const int groups = static_cast<int>(std::max<int64_t>(1, P::kStageK / params.group_size));  // of a stage
  Call call = {make_tile_call<P>(params.m, params.n, static_cast<int>(params.k / P::kStageK), splits)};
  call.column_scales = one_group ? params.scales : nullptr;
  call.global_scale = params.global_scale;
  call.factor = factor_of<P>(one_group);
  call.has_scales = !one_group;
  call.has_zeros = params.zeros != nullptr;
  call.group_rows = P::kIsFp4 ? groups / 2 : groups;
  call.stages_per_row = static_cast<int>(std::max<int64_t>(1, params.group_size / P::kStageK));
  call.step_shift = P::kIsFp4 || groups == 2 ? 1 : groups == 1 ? 2 : 0;
  call.type = params.type;
  const bool gathered = params.gathered != nullptr;
  const uint64_t n = static_cast<uint64_t>(params.n), num_groups = static_cast<uint64_t>(params.num_groups);
  const uint64_t weight_row = n / kMarlinTileN * P::kTileBytes, zero_row = n * P::kBits / 8;
  const uint32_t group_rows = static_cast<uint32_t>(call.group_rows);
  Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_tokens<P>(kName, &maps.tokens, gathered ? params.gathered : params.a, params.m, params.k,
                                       (gathered ? params.k : params.a_stride) * 2));
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.weights,
                                        {.data = const_cast<uint32_t*>(params.weight),
                                         .rows = static_cast<uint64_t>(params.k / kMarlinTileK),
                                         .columns = weight_row / kWeightElement,
                                         .row_bytes = weight_row,
                                         .box_rows = kSteps,
                                         .box_columns = P::kTileBytes / kWeightElement,
                                         .element_bytes = kWeightElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (call.has_scales) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.scales,
                                          {.data = const_cast<void*>(params.scales),
                                           .rows = P::kIsFp4 ? num_groups / 2 : num_groups,
                                           .columns = n,
                                           .row_bytes = n * 2,
                                           .box_rows = group_rows,
                                           .box_columns = P::kColumns,
                                           .element_bytes = 2,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  if (call.has_zeros) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.zeros,
                                          {.data = const_cast<void*>(params.zeros),
                                           .rows = num_groups,
                                           .columns = zero_row,
                                           .row_bytes = zero_row,
                                           .box_rows = group_rows,
                                           .box_columns = P::kZeroRowBytes,
                                           .element_bytes = 1,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  SGL_RETURN_IF_ERROR(encode_result<P>(kName, &maps.result, params.result, params.m, params.n, params.n, splits));
  return launch_product<P>(kName, call, maps, stream);
}

template <Format kFormat>
Status launch_format(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream) {
  return launch_tile<kMarlinTiles>(choice.tile, [&]<int kTile>() {
    constexpr TokenTile kTokenTile = kMarlinTokenTiles[kTile];
    constexpr int kWarpgroups = kTokenTile.warpgroups, kTokens = kTokenTile.tokens;
    return params.dtype == DType::kF16
               ? launch_tokens<MarlinProduct<__half, kFormat, kWarpgroups, kTokens>>(params, choice.splits, stream)
               : launch_tokens<MarlinProduct<__nv_bfloat16, kFormat, kWarpgroups, kTokens>>(params, choice.splits,
                                                                                            stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET::marlin_many_tokens
