// ggml_mul_mat_a8 on Hopper: the quantized activations as the copy engine brings them, and a tile of the product.
//
// A warpgroup multiplies 64 rows of W by kTokens tokens with wgmma: of W each lane decodes what it holds of an operand
// in registers, X comes from shared memory. The integer sums of a group of 32 become floats and are scaled at once,
// since every group has scales of its own.
//
// The order of additions: k is cut into slices of 256 elements, and slice s belongs to strand s % kStrands. A strand
// adds its groups one after another; the result is ((strand 0 + strand 1) + strand 2) + strand 3. So a token's bits do
// not depend on the tile that it is in.
#pragma once

#include <algorithm>

#include "kernels/device/copy_async.cuh"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kStrands = 4;
inline constexpr int kTileRows = 64;        // of a warpgroup: the rows of a matrix instruction
inline constexpr int kWarpRows = 16;        // of these, a warp's
inline constexpr int kWarpgroupSize = 128;  // threads
inline constexpr int kChunkGroups = 4;      // of X: 128 bytes of a token, a row of a swizzled panel
inline constexpr int kCacheLine = 128;
inline constexpr int kSliceChunks = kSliceGroups / kChunkGroups;

constexpr int round_up(size_t value, size_t multiple) {
  return static_cast<int>((value + multiple - 1) / multiple * multiple);
}

// What belongs to 32 quantized activations of two neighbouring tokens besides their bytes: the scales, and where the
// format has offsets the sums of the quants; an f32, or for formats with two scales a group two f16, of either half.
template <bool kHasSums>
struct alignas(8) ScalePair {
  float d[2];
};
template <>
struct alignas(16) ScalePair<true> {
  float d[2];
  uint32_t sums[2];
};

// A chunk of a tile of tokens, in the workspace [token tile][chunk] as in shared memory.
template <int kTokens, bool kHasSums>
struct ActivationChunk {
  uint8_t quants[kTokens][kChunkGroups * kGroupSize];  // its 16-byte pieces swizzled
  ScalePair<kHasSums> scales[kChunkGroups][kTokens / 2];
};

// Where the 16-byte piece `piece` of a token's row is.
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
  const uint8_t* W;
  const uint8_t* X;  // ActivationChunk [token tiles][chunks]
  int64_t rows;
  int64_t num_tokens;
  int64_t row_blocks;
  int num_groups;  // k / 32

  __device__ __forceinline__ int num_slices() const { return (num_groups + kSliceGroups - 1) / kSliceGroups; }
  __device__ __forceinline__ int num_chunks() const { return (num_groups + kChunkGroups - 1) / kChunkGroups; }
};

// The slices of strands `strand`, `strand` + kStep, …
template <int kStep>
struct SliceWalk {
  int strand, slice;

  __device__ __forceinline__ explicit SliceWalk(int first) : strand(first), slice(first) {}
  __device__ __forceinline__ bool done(int num_slices) const { return strand >= kStrands || slice >= num_slices; }
  __device__ __forceinline__ void advance(int num_slices) {
    slice += kStrands;
    if (slice < num_slices) return;
    strand += kStep;
    slice = strand;
  }
};

// The weights of a warp: rows of a slice as they lie in W, and their scales.
template <class Format>
struct alignas(16) WarpWeights {
  static constexpr int kRun =  // bytes of a slice of a row
      kSliceGroups / Format::kGroupsPerBlock * static_cast<int>(sizeof(typename Format::Block));
  // An odd number of pieces puts the 8 rows that a warp reads at once into different banks.
  static constexpr int kPitch = (staged_bytes(kRun) / kPiece | 1) * kPiece;
  static constexpr int kStages = 2;

  uint8_t staged[kStages][kWarpRows][kPitch];
  // [group][row % 8][row / 8]
  float2 scales[kSliceGroups][Format::kScales][kWarpRows / 2];
  float2 offsets[Format::kHasOffset ? kSliceGroups : 1][Format::kScales][kWarpRows / 2];
};

// A block: kRowTiles warpgroups, with 64 rows each, share the tokens' chunks. kClusterStrands: its strand alone is this
// block's, by its rank in a cluster of kStrands blocks; else all strands are.
template <class Format_, int kTokens_, int kRowTiles_, bool kClusterStrands_>
struct MulMatShape {
  using Format = Format_;
  static constexpr int kTokens = kTokens_, kRowTiles = kRowTiles_;
  static constexpr bool kClusterStrands = kClusterStrands_;
  static constexpr int kThreads = kRowTiles * kWarpgroupSize;
  static constexpr int kStages = 3;  // of X
  // That must fit a multiprocessor's registers.
  static constexpr int kLeastBlocks = !kClusterStrands ? 1 : kTokens > 64 ? 2 : kTokens == 64 ? 4 : 5;
  using Chunk = ActivationChunk<kTokens, Format::kHasOffset>;
  static constexpr int kChunkBytes = round_up(sizeof(Chunk), kSwizzleAtomBytes);
  static constexpr int kSumsPitch = kTileRows + 4;  // the lanes of a fragment then touch all 32 banks
  using Sums = float[kRowTiles][kTokens][kSumsPitch];

  struct Buffers {
    uint8_t chunks[kStages][kChunkBytes];
    WarpWeights<Format> weights[kThreads / kWarpSize];
  };
  struct Barriers {
    Barrier full[kStages], empty[kStages];
  };
  // The sums are written when a strand is done: for one strand the other buffers are free then.
  static constexpr int kSumsOffset = kClusterStrands ? 0 : round_up(sizeof(Buffers), 16);
  static constexpr int kBarriersOffset =
      round_up(kClusterStrands ? std::max(sizeof(Sums), sizeof(Buffers)) : kSumsOffset + sizeof(Sums), 16);
  static constexpr int kSharedBytes = kBarriersOffset + sizeof(Barriers);
};

// What a warpgroup multiplies before it waits and scales: some groups, for all tokens or a half of them. Where a group
// has two scales, it needs two matrix instructions.
template <class Shape>
struct ProductBatch {
  static constexpr int kScales = Shape::Format::kScales;
  static constexpr int kTokens = kScales == 2 && Shape::kTokens >= 64 ? Shape::kTokens / 2 : Shape::kTokens;
  static constexpr int kGroups = std::clamp(64 / (kTokens * kScales), 1, kChunkGroups);
};

template <class Shape>
struct TileMultiplier {
  using Format = typename Shape::Format;
  using Block = typename Format::Block;
  using Weights = WarpWeights<Format>;
  static constexpr int kTokens = Shape::kTokens;
  static constexpr int kBatchTokens = ProductBatch<Shape>::kTokens, kBatchGroups = ProductBatch<Shape>::kGroups;

  const TileParams& params;
  typename Shape::Buffers& buffers;
  typename Shape::Barriers& barriers;
  float (&sums_out)[Shape::kRowTiles][kTokens][Shape::kSumsPitch];
  const int lane, warp;                // the warp in the block
  const int64_t first_row, row_bytes;  // the warp's rows
  const int num_rows;
  const uint8_t* const W;  // the warp's first row
  const uint8_t* const X;  // the tile's chunks
  Weights& weights;

  float sums[kTokens / 2];  // of this strand so far

  __device__ __forceinline__ TileMultiplier(const TileParams& params, uint8_t* shared,
                                            typename Shape::Barriers& barriers, int64_t row_block, int64_t token_tile)
      : params(params),
        buffers(*reinterpret_cast<typename Shape::Buffers*>(shared)),
        barriers(barriers),
        sums_out(*reinterpret_cast<typename Shape::Sums*>(shared + Shape::kSumsOffset)),
        lane(threadIdx.x % kWarpSize),
        warp(threadIdx.x / kWarpSize),
        first_row(row_block * Shape::kRowTiles * kTileRows + warp * kWarpRows),
        row_bytes(int64_t{params.num_groups / Format::kGroupsPerBlock} * sizeof(Block)),
        num_rows(static_cast<int>(max(int64_t{0}, min(int64_t{kWarpRows}, params.rows - first_row)))),
        W(params.W + first_row * row_bytes),
        X(params.X + token_tile * params.num_chunks() * static_cast<int64_t>(sizeof(typename Shape::Chunk))),
        weights(buffers.weights[warp]) {}

  __device__ __forceinline__ int bytes_of(int slice) const {
    const int64_t left = row_bytes - int64_t{slice} * Weights::kRun;
    return left < Weights::kRun ? static_cast<int>(left) : Weights::kRun;
  }

  // Asks the strand's slices of the warp's rows into the L2 cache: a hint and no read, allowed before the predecessor
  // has ended.
  __device__ __forceinline__ void prefetch(int strand) const {
    const int slices = (params.num_slices() - strand + kStrands - 1) / kStrands;
#pragma unroll 1
    for (int i = lane; i < slices * kWarpRows; i += kWarpSize) {
      const int row = i % kWarpRows, slice = strand + i / kWarpRows * kStrands;
      if (row >= num_rows) continue;
      const uint8_t* run = W + row * row_bytes + int64_t{slice} * Weights::kRun;
      for (int at = 0; at < bytes_of(slice); at += kCacheLine) prefetch_to_l2(run + at);
    }
  }

  // Starts to copy a slice of the warp's rows.
  __device__ __forceinline__ void copy_weights(int slice, int stage) const {
    auto& staged = weights.staged[stage];
    const uint8_t* run = W + int64_t{slice} * Weights::kRun;
    const int bytes = bytes_of(slice);
    if (first_row > 0 && first_row + kWarpRows < params.rows) {  // a row is longer than a piece: not at an edge of W
      constexpr int kRowLanes = Weights::kPitch / kPiece <= kWarpSize / 2 ? kWarpSize / 2 : kWarpSize;
      constexpr int kStepRows = kWarpSize / kRowLanes;
      const int row = lane / kRowLanes, at = lane % kRowLanes * kPiece;
      const uint8_t* source = run + row * row_bytes + at;
      uint32_t shared = shared_address(&staged[row][at]);
      asm volatile("" : "+r"(shared));  // or it is reckoned for each copy
#pragma unroll
      for (int i = 0; i < kWarpRows; i += kStepRows) {
        const int offset = staged_offset(source);
        if (at < offset + bytes) copy_async_16(shared + i * Weights::kPitch, source - offset);
        source += kStepRows * row_bytes;
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < num_rows; ++row) {
        stage_run_at_edge(staged[row], run + row * row_bytes, bytes, params.W, params.W + params.rows * row_bytes);
      }
    }
  }

  // Where a slice of a row is in shared memory.
  __device__ __forceinline__ const Block* blocks_of(int row, int slice, int stage) const {
    const uint32_t low_address = static_cast<uint32_t>(reinterpret_cast<uint64_t>(W)) +
                                 static_cast<uint32_t>(row) * static_cast<uint32_t>(row_bytes) +
                                 static_cast<uint32_t>(slice * Weights::kRun);
    return reinterpret_cast<const Block*>(weights.staged[stage][row] + low_address % kPiece);
  }

  // The scales of a slice, for every lane to read. What was not copied gets a scale of 0, and is decoded, too, whatever
  // it is.
  __device__ __forceinline__ void store_scales(int slice, int stage) const {
    constexpr int kRowStep = kWarpSize / kSliceGroups;
    const int group = lane % kSliceGroups;
#pragma unroll
    for (int i = 0; i < kWarpRows; i += kRowStep) {
      const int row = i + lane / kSliceGroups;
      const bool present = row < num_rows && slice * kSliceGroups + group < params.num_groups;
      WeightGroup decoded;
      Format::set_scales(blocks_of(row, slice, stage)[group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock,
                         decoded);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        (&weights.scales[group][s][row % 8].x)[row / 8] = present ? decoded.scale[s] : 0.0f;
        if constexpr (Format::kHasOffset) {
          (&weights.offsets[group][s][row % 8].x)[row / 8] = present ? decoded.offset[s] : 0.0f;
        }
      }
    }
  }

  // The operands of a group's matrix instructions: where a half has a scale of its own, it has an instruction, too,
  // with zeros for the other half.
  using Operands = uint32_t[Format::kScales][4];

  // The lane's part of a group of the warp's rows: of rows lane / 4 and lane / 4 + 8, of either half.
  __device__ __forceinline__ void decode(const Block* const (&blocks)[2], int group, Operands& a) const {
    constexpr int kSecond = Format::kScales - 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint2 halves =
          Format::words(blocks[r][group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, lane % 4);
      if constexpr (Format::kScales == 2) a[0][2 + r] = a[1][r] = 0;
      a[0][r] = halves.x;
      a[kSecond][2 + r] = halves.y;
    }
  }

  // Adds the scaled sums of a group, for the tokens from kFirst on.
  template <int kFirst>
  __device__ __forceinline__ void add_scaled(const int32_t (&dots)[Format::kScales][kBatchTokens / 2], int group,
                                             const ScalePair<Format::kHasOffset> (&pairs)[kTokens / 2]) {
    float2 scale[Format::kScales], offset[Format::kScales];
#pragma unroll
    for (int s = 0; s < Format::kScales; ++s) {
      scale[s] = weights.scales[group][s][lane / 4];
      if constexpr (Format::kHasOffset) offset[s] = weights.offsets[group][s][lane / 4];
    }
#pragma unroll
    for (int j = 0; j < kBatchTokens / 8; ++j) {
      const ScalePair<Format::kHasOffset> pair = pairs[kFirst / 2 + 4 * j + lane % 4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int r = c / 2, e = c % 2;
        float value = __fmul_rn(r == 0 ? scale[0].x : scale[0].y, static_cast<float>(dots[0][4 * j + c]));
        if constexpr (Format::kScales == 2) {
          value = __fmaf_rn(r == 0 ? scale[1].x : scale[1].y, static_cast<float>(dots[1][4 * j + c]), value);
          if constexpr (Format::kHasOffset) {
            const float2 halves = __half22float2(*reinterpret_cast<const __half2*>(&pair.sums[e]));
            value = __fmaf_rn(r == 0 ? offset[0].x : offset[0].y, halves.x, value);
            value = __fmaf_rn(r == 0 ? offset[1].x : offset[1].y, halves.y, value);
          }
        } else if constexpr (Format::kHasOffset) {
          value = __fmaf_rn(r == 0 ? offset[0].x : offset[0].y, __uint_as_float(pair.sums[e]), value);
        }
        float& sum = sums[kFirst / 2 + 4 * j + c];
        sum = __fmaf_rn(pair.d[e], value, sum);
      }
    }
  }

  // Multiplies a batch of groups, the slice's from `group` on and the chunk's from `column` on, for the tokens from
  // kFirst on; those from `groups` on are not there.
  template <int kFirst>
  __device__ __forceinline__ void multiply_batch(const typename Shape::Chunk& chunk, int group, int groups, int column,
                                                 Operands (&a)[kBatchGroups]) {
    int32_t dots[kBatchGroups][Format::kScales][kBatchTokens / 2];
    const uint64_t descriptor =
        make_descriptor(shared_address(chunk.quants[kFirst]), 0) + descriptor_offset(column * kGroupSize);
    const auto pin = [&] {
#pragma unroll
      for (int i = 0; i < kBatchGroups; ++i) {
#pragma unroll
        for (int s = 0; s < Format::kScales; ++s) {
          pin_registers(dots[i][s]);
          pin_registers(a[i][s]);
        }
      }
    };
    pin();
    open_wgmma();
#pragma unroll
    for (int i = 0; i < kBatchGroups; ++i) {
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        wgmma_registers_transposed<int8_t, kBatchTokens>(
            dots[i][s], a[i][s], descriptor + descriptor_offset(i * kGroupSize), /*accumulate=*/0);
      }
    }
    commit_wgmma();
    wait_wgmma<0>();
    pin();
#pragma unroll
    for (int i = 0; i < kBatchGroups; ++i) {
      if (group + i < groups) add_scaled<kFirst>(dots[i], group + i, chunk.scales[column + i]);
    }
  }

  // Brings the strand's sums to shared memory: behind the first, adds them to what is there.
  __device__ __forceinline__ void add_strand(bool first) const {
    const int row = warp % (kTileRows / kWarpRows) * kWarpRows + lane / 4;
    auto& out = sums_out[warp / (kTileRows / kWarpRows)];
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float& place = out[8 * j + lane % 4 * 2 + c % 2][row + c / 2 * 8];
        place = first ? sums[4 * j + c] : place + sums[4 * j + c];
      }
    }
  }

  // All of the block's strands. `first_strand` is this block's only one in a cluster, else 0.
  __device__ __forceinline__ void run(int first_strand) {
    constexpr int kStep = Shape::kClusterStrands ? kStrands : 1;
    using Chunk = typename Shape::Chunk;
    const int num_slices = params.num_slices(), num_chunks = params.num_chunks();

    // X: one thread of the block asks for chunks ahead of the one in use.
    const bool leads = threadIdx.x == 0;
    SliceWalk<kStep> chunk_ahead(first_strand);
    int chunk_half = 0;
    RingPosition<Shape::kStages> ring_ahead;
    const auto copy_chunk = [&] {
      if (!leads || chunk_ahead.done(num_slices)) return;
      const int chunk = chunk_ahead.slice * kSliceChunks + chunk_half;
      Barrier& full = barriers.full[ring_ahead.index];
      barriers.empty[ring_ahead.index].wait(ring_ahead.parity ^ 1);
      full.arrive_and_expect(sizeof(Chunk));
      copy_bulk(buffers.chunks[ring_ahead.index], X + int64_t{chunk} * static_cast<int>(sizeof(Chunk)), sizeof(Chunk),
                &full);
      ring_ahead.advance();
      if (++chunk_half == kSliceChunks || chunk + 1 == num_chunks) {
        chunk_half = 0;
        chunk_ahead.advance(num_slices);
      }
    };
    for (int i = 0; i + 2 < Shape::kStages; ++i) copy_chunk();

    SliceWalk<kStep> weights_ahead(first_strand);
    int stage_ahead = 0;
    const auto copy_slice = [&] {
      if (!weights_ahead.done(num_slices)) {
        copy_weights(weights_ahead.slice, stage_ahead);
        weights_ahead.advance(num_slices);
      }
      commit_copies();
      stage_ahead = stage_ahead + 1 == Weights::kStages ? 0 : stage_ahead + 1;
    };
    for (int i = 0; i + 1 < Weights::kStages; ++i) copy_slice();

    RingPosition<Shape::kStages> ring;
    int stage = 0;
#pragma unroll 1
    for (int strand = first_strand; strand < kStrands; strand += kStep) {
#pragma unroll
      for (float& sum : sums) sum = 0.0f;
#pragma unroll 1
      for (int slice = strand; slice < num_slices; slice += kStrands) {
        copy_slice();
        wait_for_copies<Weights::kStages - 1>();
        __syncwarp();
        store_scales(slice, stage);
        __syncwarp();
        const Block* const blocks[2] = {blocks_of(lane / 4, slice, stage), blocks_of(lane / 4 + 8, slice, stage)};
        const int groups = min(kSliceGroups, params.num_groups - slice * kSliceGroups);
#pragma unroll 1
        for (int first = 0; first < groups; first += kChunkGroups) {
          copy_chunk();
          __syncwarp();
          barriers.full[ring.index].wait(ring.parity);
          const Chunk& chunk = *reinterpret_cast<const Chunk*>(buffers.chunks[ring.index]);
#pragma unroll
          for (int column = 0; column < kChunkGroups; column += kBatchGroups) {
            if (first + column >= groups) break;
            Operands a[kBatchGroups];
#pragma unroll
            for (int i = 0; i < kBatchGroups; ++i) decode(blocks, first + column + i, a[i]);
            multiply_batch<0>(chunk, first + column, groups, column, a);
            if constexpr (kBatchTokens < kTokens)
              multiply_batch<kBatchTokens>(chunk, first + column, groups, column, a);
          }
          __syncwarp();
          barriers.empty[ring.index].arrive_if(lane == 0);
          ring.advance();
        }
        __syncwarp();  // before the next copy and the next scales
        stage = stage + 1 == Weights::kStages ? 0 : stage + 1;
      }
      if constexpr (Shape::kClusterStrands) {
        __syncthreads();  // the sums lie over the other buffers
        add_strand(/*first=*/true);
      } else {
        add_strand(strand == 0);
      }
    }
  }
};

}  // namespace sgl_kernel::SGL_TARGET
