// ggml_mul_mat_a8 on Hopper: the activations as the copy engine brings them, and a tile of the product.
//
// A warpgroup multiplies 64 rows of W by kTokens tokens with wgmma: of W each lane decodes what it holds of an operand
// in registers, as f16, while the tensor cores multiply what it decoded before; X, as f16, too, comes from shared
// memory. For each such warpgroup another warp copies the rows as they lie in W, some slices ahead, and the first one's
// first lane asks for X.
//
// What orders shared memory: whoever writes a place waits for its `empty`, at which all arrive that have read it, for X
// a lane of each warp behind the wait_wgmma() for the instructions that read it; they read behind the place's `full`.
// The sums of a tile lie over it all, behind a barrier of the block.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "kernels/device/copy_async.cuh"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kTileRows = 64;    // of a warpgroup: the rows of a matrix instruction
inline constexpr int kWarpRows = 16;    // of these, a warp's
inline constexpr int kChunkGroups = 2;  // of X: 128 bytes of a token, a row of a swizzled panel
inline constexpr int kChunkRowBytes = kChunkGroups * kGroupSize * 2;
inline constexpr int kCacheLine = 128;
// What W is multiplied by, in f16: it leaves room for elements up to 2047, and normal numbers for scales down to 2^-19.
inline constexpr float kWeightScale = 32.0f;

// Where the 16-byte piece `piece` of a token's row of a chunk is. A row of 64 elements is four steps of a matrix
// instruction, with 16 each. Of four neighbouring weights lane i has the even ones in places 2i and 2i + 1 of a step
// and the odd ones in 2i + 8 and 2i + 9, and so are the activations: 0, 2, 4, …, 14, 1, 3, 5, …, 15.
__device__ __forceinline__ int swizzled_piece(int token, int piece) { return (piece ^ token % 8) * kPiece; }

// Copies `bytes`, a multiple of 16, at a multiple of 16 to shared memory; they count towards what `barrier` expects.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

struct TileParams {
  void* result;
  int64_t result_stride;
  DType result_dtype;
  bool result_vectors;  // four rows of a token can be stored at once
  const uint8_t* W;
  const uint8_t* X;       // [token tiles][chunks][tokens of a tile][kChunkRowBytes]
  const float* X_scales;  // [num_tokens], what a token's sums are multiplied by
  int64_t rows;
  int64_t num_tokens;
  int64_t row_blocks;
  int num_groups;  // k / 32
  int num_slices;  // of k; the last one may lack groups, in place of which X has zeros
  int splits;      // of k: blocks of a cluster
};

// The scale and the offset of a row, each twice.
template <bool kHasOffset>
struct RowFactors {
  __half2 scale;
};
template <>
struct RowFactors<true> {
  __half2 scale, offset;
};

// The weights of a warpgroup: rows of a slice as they lie in W.
template <class Format>
struct SliceOf {
  static constexpr bool kLargeBlocks = Format::kGroupsPerBlock > 1;
  static constexpr int kGroups = kLargeBlocks ? Format::kGroupsPerBlock : 4;
  static constexpr int kChunks = kGroups / kChunkGroups;
  static constexpr int kRun =  // bytes of a row
      kGroups / Format::kGroupsPerBlock * static_cast<int>(sizeof(typename Format::Block));
  // An odd number of pieces puts the 8 rows that a warp reads at once into different banks.
  static constexpr int kPieces = staged_bytes(kRun) / kPiece | 1, kPitch = kPieces * kPiece;
  static constexpr int kBytes = kTileRows * kPitch;

  // Formats with large blocks have scales that take some decoding: a warp does that for a slice at once. Of a row and
  // of the one 8 below.
  using Factors = RowFactors<Format::kHasOffset>;
  struct alignas(2 * sizeof(Factors)) TwoFactors {
    Factors row[2];
  };
  using WarpFactors = TwoFactors[kLargeBlocks ? kGroups : 1][Format::kScales][kWarpRows / 2];
};

// A block: kRowTiles warpgroups that multiply, with 64 rows each, and a warp for each that copies. kBlocks of them are
// on a multiprocessor.
template <class Format_, int kTokens_, int kRowTiles_, int kBlocks_>
struct MulMatShape {
  using Format = Format_;
  using Slice = SliceOf<Format>;
  static constexpr int kTokens = kTokens_, kRowTiles = kRowTiles_, kBlocks = kBlocks_;
  static constexpr int kRows = kRowTiles * kTileRows;
  static constexpr int kMultiplying = kRowTiles * kWarpgroup;  // threads
  static constexpr int kThreads = kMultiplying + kRowTiles * kWarpSize;
  static constexpr int kWarps = kMultiplying / kWarpSize;  // that multiply
  static constexpr int kChunkBytes = kTokens * kChunkRowBytes;
  static constexpr int kSumsPitch = kTileRows + 4;  // the lanes of a fragment then touch all 32 banks
  using Sums = float[kRowTiles][kTokens][kSumsPitch];

  // Shared memory: of a multiprocessor, and what of it CUDA takes for each block.
  static constexpr int kSharedOfSm = 228 << 10, kSharedOfCuda = 1 << 10, kMostOfBlock = 227 << 10;
  static constexpr int kOtherBytes =
      kWarps * static_cast<int>(sizeof(typename Slice::WarpFactors)) + 1024;  // and barriers, and what alignment costs
  static constexpr int kShared = std::min(kMostOfBlock, kSharedOfSm / kBlocks - kSharedOfCuda);
  static constexpr int room_for(int weight_stages) {
    return (kShared - kOtherBytes - weight_stages * kRowTiles * Slice::kBytes) / kChunkBytes;
  }
  // Stages of W, and of X, a power of two.
  static constexpr int kWeightStages = room_for(4) >= 4 ? 4 : room_for(3) >= 4 ? 3 : 2;
  static constexpr int kStages = room_for(kWeightStages) >= 8 ? 8 : room_for(kWeightStages) >= 4 ? 4 : 2;

  struct Buffers {
    uint8_t chunks[kStages][kChunkBytes];
    alignas(16) uint8_t weights[kRowTiles][kWeightStages][kTileRows][Slice::kPitch];
    typename Slice::WarpFactors factors[kWarps];
  };
  struct Barriers {
    Barrier full[kStages], empty[kStages];
    Barrier weights_full[kRowTiles][kWeightStages], weights_empty[kRowTiles][kWeightStages];
  };
  static constexpr int kBarriersOffset = static_cast<int>((std::max(sizeof(Sums), sizeof(Buffers)) + 15) / 16 * 16);
  static constexpr int kSharedBytes = kBarriersOffset + static_cast<int>(sizeof(Barriers));
  static constexpr bool kFits = room_for(kWeightStages) >= kStages && kSharedBytes <= kShared;
};

// (bits & mask) ^ flip, times unit and less base: with 0x6400 a byte b becomes the f16 1024 + b. Two bytes, exact.
__device__ __forceinline__ __half2 widen(uint32_t bits, uint32_t mask, uint32_t flip, float unit, float base) {
  uint32_t pair;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(pair) : "r"(bits), "r"(mask), "r"(flip));
  return __hfma2(*reinterpret_cast<const __half2*>(&pair), __float2half2_rn(unit), __float2half2_rn(-base));
}

// What lane quarter `i` loads of a group, and of that the quants of a half as f16: the even ones, the odd ones. Nibbles
// are widened as they lie in a byte, others as bytes.
template <class F>
struct LaneQuants {
  static constexpr bool kTwoNibbles = std::is_same_v<F, Format<ggml::kQ4_0>> || std::is_same_v<F, Format<ggml::kQ4_1>>;
  static constexpr bool kOneNibble = std::is_same_v<F, Format<ggml::kQ4_K>>;

  static __device__ __forceinline__ uint2 load(const typename F::Block& block, int g, int i) {
    if constexpr (kTwoNibbles) {
      return {load_word(block.qs + 4 * i), 0};
    } else if constexpr (kOneNibble) {
      const uint8_t* const packed = block.qs + 32 * (g / 2) + 4 * i;
      return {load_word(packed), load_word(packed + 16)};
    } else {
      return F::words(block, g, i);
    }
  }

  static __device__ __forceinline__ void widen_half(uint2 loaded, int g, int half, __half2 (&quants)[2]) {
    constexpr uint32_t kFlip = 0x64006400;
    uint32_t bits = half == 0 ? loaded.x : loaded.y;
    if constexpr (kTwoNibbles) {
      constexpr float kZero = F::kHasOffset ? 0 : 8;
      quants[0] = widen(half == 0 ? loaded.x << 4 : loaded.x, 0x00f000f0, kFlip, 1.0f / 16, 64 + kZero);
      quants[1] = widen(half == 0 ? loaded.x >> 4 : loaded.x >> 8, 0x00f000f0, kFlip, 1.0f / 16, 64 + kZero);
    } else if constexpr (kOneNibble) {
      const uint32_t mask = g % 2 == 0 ? 0x000f000f : 0x00f000f0;
      const float unit = g % 2 == 0 ? 1.0f : 1.0f / 16;
      quants[0] = widen(bits, mask, kFlip, unit, 1024 * unit);
      quants[1] = widen(bits >> 8, mask, kFlip, unit, 1024 * unit);
    } else {
      // A signed byte with its sign bit flipped is 128 more.
      constexpr bool kSigned = !F::kHasOffset;
      constexpr uint32_t kByteFlip = kSigned ? kFlip ^ 0x00800080 : kFlip;
      constexpr float kBase = kSigned ? 1024 + 128 : 1024;
      quants[0] = widen(bits, 0x00ff00ff, kByteFlip, 1, kBase);
      quants[1] = widen(bits >> 8, 0x00ff00ff, kByteFlip, 1, kBase);
    }
  }
};

// A pointer to shared memory that the compiler keeps in a register, and does not reckon again for each use.
template <class T>
__device__ __forceinline__ const T* hold(const T* pointer) {
  uint32_t address = shared_address(pointer);
  asm volatile("" : "+r"(address));
  return static_cast<const T*>(__cvta_shared_to_generic(address));
}

// A block's rows, tokens and slices of k.
struct TileShare {
  int64_t first_row;
  const uint8_t* X;  // the tile's chunks
  int first_slice, num_slices;
};

__device__ __forceinline__ int64_t row_bytes_of(const TileParams& params, int groups_per_block, int block_bytes) {
  return static_cast<int64_t>(params.num_groups / groups_per_block) * block_bytes;
}

// A warp that copies a warpgroup's rows, and the first one X, too.
template <class Shape>
struct TileCopier {
  using Format = typename Shape::Format;
  using Slice = typename Shape::Slice;

  const TileParams& params;
  typename Shape::Buffers& buffers;
  typename Shape::Barriers& barriers;
  const TileShare& share;
  const int lane, tile;  // of the block's row tiles
  const int64_t first_row, row_bytes;
  const int num_rows;
  const uint8_t* const W;  // the first row

  __device__ __forceinline__ TileCopier(const TileParams& params, typename Shape::Buffers& buffers,
                                        typename Shape::Barriers& barriers, const TileShare& share)
      : params(params),
        buffers(buffers),
        barriers(barriers),
        share(share),
        lane(threadIdx.x % kWarpSize),
        tile((threadIdx.x - Shape::kMultiplying) / kWarpSize),
        first_row(share.first_row + tile * kTileRows),
        row_bytes(row_bytes_of(params, Format::kGroupsPerBlock, sizeof(typename Format::Block))),
        num_rows(static_cast<int>(max(int64_t{0}, min(int64_t{kTileRows}, params.rows - first_row)))),
        W(params.W + first_row * row_bytes) {}

  __device__ __forceinline__ int bytes_of(int slice) const {
    const int64_t left = row_bytes - int64_t{slice} * Slice::kRun;
    return left < Slice::kRun ? static_cast<int>(left) : Slice::kRun;
  }

  // Asks W's part into the L2 cache: a hint and no read, allowed before the predecessor has ended.
  __device__ __forceinline__ void prefetch() const {
    const int64_t bytes =
        min(row_bytes - int64_t{share.first_slice} * Slice::kRun, int64_t{share.num_slices} * Slice::kRun);
#pragma unroll 1
    for (int row = lane; row < num_rows; row += kWarpSize) {
      const uint8_t* run = W + row * row_bytes + int64_t{share.first_slice} * Slice::kRun;
      for (int64_t at = 0; at < bytes; at += kCacheLine) prefetch_to_l2(run + at);
    }
  }

  __device__ __forceinline__ void run() const {
    for (unsigned i = 0; i < share.num_slices; ++i) {
      copy_weights(i);
      if (tile == 0) {
        if (lane == 0) {
          for (unsigned chunk = i * Slice::kChunks; chunk < (i + 1) * Slice::kChunks; ++chunk) copy_chunk(chunk);
        }
        __syncwarp();
      }
    }
  }

  __device__ __forceinline__ void copy_weights(unsigned i) const {
    const unsigned stage = i % Shape::kWeightStages;
    barriers.weights_empty[tile][stage].wait(i / Shape::kWeightStages % 2 ^ 1);
    Barrier& full = barriers.weights_full[tile][stage];
    const int slice = share.first_slice + i, bytes = bytes_of(slice);
    constexpr int kRowLanes = std::bit_ceil(static_cast<unsigned>(Slice::kPieces)), kStepRows = kWarpSize / kRowLanes;
    static_assert(kRowLanes <= kWarpSize);
    const int row = lane / kRowLanes, at = lane % kRowLanes * kPiece;
    const uint8_t* source = W + row * row_bytes + int64_t{slice} * Slice::kRun + at;
    uint32_t shared = shared_address(&buffers.weights[tile][stage][row][at]);
    const int64_t step = kStepRows * row_bytes;
    // A row is longer than a piece: elsewhere the pieces around a run are of the matrix.
    const bool at_edge =
        (first_row == 0 && slice == 0) || (first_row + kTileRows >= params.rows && slice + 1 == params.num_slices);
    if (!at_edge) {
#pragma unroll 8
      for (int j = 0; j < kTileRows; j += kStepRows) {
        const int offset = staged_offset(source);
        if (at < offset + bytes && row + j < num_rows) copy_async_16(shared, source - offset);
        source += step;
        shared += kStepRows * Slice::kPitch;
      }
      full.arrive_after_copies();
    } else {
#pragma unroll 1
      for (int j = 0; j < kTileRows; j += kStepRows) {
        const int offset = staged_offset(source);
        if (at < offset + bytes && row + j < num_rows) copy_piece_at_edge(shared, source - offset);
        source += step;
        shared += kStepRows * Slice::kPitch;
      }
      commit_copies();
      wait_for_copies<0>();
      full.arrive();
    }
  }

  // Copies a piece, or what of it is of the matrix.
  __device__ __forceinline__ void copy_piece_at_edge(uint32_t shared, const uint8_t* source) const {
    const uint8_t* const end = params.W + params.rows * row_bytes;
    if (source >= params.W && source + kPiece <= end) {
      copy_async_16(shared, source);
    } else {
#pragma unroll 1
      for (int i = 0; i < kPiece; i += 2) {
        if (source + i < params.W || source + i >= end) continue;
        const uint16_t value = *reinterpret_cast<const uint16_t*>(source + i);
        *static_cast<uint16_t*>(__cvta_shared_to_generic(shared + i)) = value;
      }
    }
  }

  __device__ __forceinline__ void copy_chunk(unsigned chunk) const {
    const unsigned place = chunk % Shape::kStages;
    Barrier& full = barriers.full[place];
    barriers.empty[place].wait(chunk / Shape::kStages % 2 ^ 1);
    full.arrive_and_expect(Shape::kChunkBytes);
    const int64_t at = int64_t{share.first_slice} * Slice::kChunks + chunk;
    copy_bulk(buffers.chunks[place], share.X + at * Shape::kChunkBytes, Shape::kChunkBytes, &full);
  }
};

// A warp of those that multiply.
template <class Shape>
struct TileMultiplier {
  using Format = typename Shape::Format;
  using Block = typename Format::Block;
  using Slice = typename Shape::Slice;
  using Factors = typename Slice::Factors;
  static constexpr int kTokens = Shape::kTokens;

  const TileParams& params;
  typename Shape::Buffers& buffers;
  typename Shape::Barriers& barriers;
  const TileShare& share;
  const int lane, warp, tile, tile_row;  // the warp in the block, its row tile, and its first row of that
  const uint32_t low_address;            // of W's row, the low bits
  const uint32_t row_bytes;

  __device__ __forceinline__ TileMultiplier(const TileParams& params, typename Shape::Buffers& buffers,
                                            typename Shape::Barriers& barriers, const TileShare& share)
      : params(params),
        buffers(buffers),
        barriers(barriers),
        share(share),
        lane(threadIdx.x % kWarpSize),
        warp(threadIdx.x / kWarpSize),
        tile(threadIdx.x / kWarpgroup),
        tile_row(warp * kWarpRows % kTileRows),
        low_address(static_cast<uint32_t>(reinterpret_cast<uint64_t>(params.W))),
        row_bytes(static_cast<uint32_t>(row_bytes_of(params, Format::kGroupsPerBlock, sizeof(Block)))) {}

  // Where a slice of a row of the warp's is in shared memory.
  __device__ __forceinline__ const Block* blocks_of(int row, unsigned i) const {
    const uint32_t w_row = static_cast<uint32_t>(share.first_row) + warp * kWarpRows + row;
    const uint32_t address = low_address + w_row * row_bytes + (share.first_slice + i) * Slice::kRun;
    return reinterpret_cast<const Block*>(buffers.weights[tile][i % Shape::kWeightStages][tile_row + row] +
                                          address % kPiece);
  }

  // What a group of a row is multiplied by and what is added, times kWeightScale, in f16. Those of rows that were not
  // copied are anything: such rows have no results.
  static __device__ __forceinline__ void set_factors(const Block& block, int group,
                                                     Factors (&factors)[Format::kScales]) {
    if constexpr (Slice::kLargeBlocks) {
      WeightGroup decoded;
      Format::set_scales(block, group, decoded);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        factors[s].scale = __float2half2_rn(decoded.scale[s] * kWeightScale);
        if constexpr (Format::kHasOffset) factors[s].offset = __float2half2_rn(decoded.offset[s] * kWeightScale);
      }
    } else {
      // A small block has them as f16.
      const auto scaled = [](uint16_t bits) {
        return __hmul2(__half2half2(__ushort_as_half(bits)), __float2half2_rn(kWeightScale));
      };
      factors[0].scale = scaled(block.d);
      if constexpr (Format::kHasOffset) factors[0].offset = scaled(block.m);
    }
  }

  // Those of a slice, for every lane to read.
  __device__ __forceinline__ void store_factors(unsigned i) const {
    constexpr int kRowStep = kWarpSize / Slice::kGroups;
    const int group = lane % Slice::kGroups;
#pragma unroll
    for (int j = 0; j < kWarpRows; j += kRowStep) {
      const int row = j + lane / Slice::kGroups;
      Factors factors[Format::kScales];
      set_factors(*blocks_of(row, i), group, factors);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) buffers.factors[warp][group][s][row % 8].row[row / 8] = factors[s];
    }
  }

  // The lane's part of a group of the warp's rows, of rows lane / 4 and lane / 4 + 8.
  struct Group {
    uint2 quants[2];
    Factors factors[2][Format::kScales];
  };

  // One that is not present is zeros.
  __device__ __forceinline__ void load(const Block* const (&blocks)[2], int group, bool present, Group& loaded) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Block& block = blocks[r][group / Format::kGroupsPerBlock];
      loaded.quants[r] = LaneQuants<Format>::load(block, group % Format::kGroupsPerBlock, lane % 4);
      if constexpr (!Slice::kLargeBlocks) {
        set_factors(block, 0, loaded.factors[r]);
        if (!present) loaded.factors[r][0] = {};
      }
    }
    if constexpr (Slice::kLargeBlocks) {
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        const auto two = buffers.factors[warp][group][s][lane / 4];
        loaded.factors[0][s] = two.row[0];
        loaded.factors[1][s] = two.row[1];
      }
    }
  }

  // The operand of a half.
  static __device__ __forceinline__ void decode(const Group& loaded, int group, int half, uint32_t (&a)[4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      __half2 quants[2];
      LaneQuants<Format>::widen_half(loaded.quants[r], group, half, quants);
      const Factors& f = loaded.factors[r][Format::kScales == 2 ? half : 0];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        __half2 weights;
        if constexpr (Format::kHasOffset) {
          weights = __hfma2(quants[i], f.scale, f.offset);
        } else {
          weights = __hmul2(quants[i], f.scale);
        }
        a[2 * i + r] = *reinterpret_cast<const uint32_t*>(&weights);
      }
    }
  }

  __device__ __forceinline__ void run(float (&sums)[kTokens / 2]) const {
    uint32_t a[2][2][4] = {};  // [group % 2][half]
#pragma unroll 1
    for (unsigned i = 0; i < share.num_slices; ++i) {
      const unsigned stage = i % Shape::kWeightStages;
      barriers.weights_full[tile][stage].wait(i / Shape::kWeightStages % 2);
      if constexpr (Slice::kLargeBlocks) {
        __syncwarp();  // the last slice's have been read
        store_factors(i);
        __syncwarp();
      }
      const Block* const blocks[2] = {hold(blocks_of(lane / 4, i)), hold(blocks_of(lane / 4 + 8, i))};
      const int groups = params.num_groups - (share.first_slice + i) * Slice::kGroups;
      Group loaded;
      load(blocks, 0, 0 < groups, loaded);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pin_registers(a[0][half]);
        decode(loaded, 0, half, a[0][half]);
      }
#pragma unroll
      for (int group = 0; group < Slice::kGroups; ++group) {
        const unsigned chunk = i * Slice::kChunks + group / kChunkGroups, place = chunk % Shape::kStages;
        const bool opens = group % kChunkGroups == 0;
        if (group + 1 < Slice::kGroups) load(blocks, group + 1, group + 1 < groups, loaded);
        if (opens) barriers.full[place].wait(chunk / Shape::kStages % 2);
        const uint64_t tokens = make_descriptor(shared_address(buffers.chunks[place]), 0);
        // An instruction starts behind the last one, and until then the warp may have to wait: so each is followed by
        // decoding what the next group's takes.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          pin_registers(sums);
          pin_registers(a[group % 2][half]);
          open_wgmma();
          constexpr int kStepBytes = kGroupSize;  // 16 elements
          wgmma_registers_transposed<__half, kTokens>(
              sums, a[group % 2][half], tokens + descriptor_offset((group % kChunkGroups * 2 + half) * kStepBytes),
              group > 0 || half > 0 || i > 0);
          commit_wgmma();
          pin_registers(sums);
          wait_wgmma<2>();
          if (opens && half == 1) {  // the chunk before has been multiplied
            barriers.empty[(chunk - 1) % Shape::kStages].arrive_if(lane == 0 && chunk > 0);
          }
          if (group + 1 < Slice::kGroups) {
            pin_registers(a[1 - group % 2][half]);
            decode(loaded, group + 1, half, a[1 - group % 2][half]);
          }
        }
        if (group + 2 == Slice::kGroups) barriers.weights_empty[tile][stage].arrive();
      }
    }
    wait_wgmma<0>();
    pin_registers(sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) pin_registers(a[i / 2][i % 2]);
  }

  __device__ __forceinline__ void leave_sums(typename Shape::Sums& out, const float (&sums)[kTokens / 2]) const {
    const int row = tile_row + lane / 4;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) out[tile][8 * j + lane % 4 * 2 + c % 2][row + c / 2 * 8] = sums[4 * j + c];
    }
  }
};

}  // namespace sgl_kernel::SGL_TARGET
