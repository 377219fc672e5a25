// Attention with values of up to 512 dimensions and queries over them, as multi-head latent attention has it: with few
// queries bound by the bandwidth at which keys and values are read, with many by the tensor cores.
//
// One block a (sequence, KV head, tile of 32 packed query rows, split of the keys) of 8 warps, which walk the keys 32
// at a time. A row of the output is too wide for a warp's registers, so that each phase divides the work in its own
// way:
//   S = Q K^T + Q_v V^T   a warp has 16 rows, 16 keys and every other depth of 16; the two halves meet in shared memory
//   softmax               a warp has 4 rows, a lane one key
//   O += P V              a warp has all rows and 64 columns
// V lies in shared memory once for both products. There is one buffer of keys and values: the next ones are called to
// the L2 cache meanwhile, and two blocks of a multiprocessor of 228 KiB take turns at the tensor cores.
#include "kernels/attention/flash_attention_mma.cuh"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocksPerSm = 2;
constexpr int kTileM = 32;  // packed query rows
constexpr int kTileN = 32;  // keys of a step: one a lane
constexpr int kHeadDim = kMostHeadDimWithWide, kHeadDimV = kMostWideValues;
constexpr int kDepthHalves = 2;                   // of S, between warps
constexpr int kWarpRows = kTileM / kWarps;        // of a warp's softmax
constexpr int kWarpColumns = kHeadDimV / kWarps;  // of a warp's output
constexpr int kRowTiles = kTileM / kMmaRows;
constexpr int kSteps = kHeadDim / kMmaRows / kDepthHalves;  // of a warp's part of Q K^T
// Strides that spread eight rows over all banks.
constexpr int kScoreStride = kTileN + 8;  // f32
constexpr int kProbabilityBytes = kTileN * 2 + 16;

// Shared memory, in bytes from its start: the tiles of Q, Q_v, K and V, and what the phases hand over.
constexpr int kQueryAt = 0;
constexpr int kValueQueryAt = kQueryAt + kTileM * kHeadDim * 2;
constexpr int kKeyAt = kValueQueryAt + kTileM * kHeadDimV * 2;
constexpr int kValueAt = kKeyAt + kTileN * kHeadDim * 2;
constexpr int kScoreAt = kValueAt + kTileN * kHeadDimV * 2;
constexpr int kProbabilityAt = kScoreAt + kDepthHalves * kTileM * kScoreStride * 4;
constexpr int kShared = kProbabilityAt + kTileM * kProbabilityBytes;
static_assert(kShared <= 97 * 1024, "an sm_89 or sm_120 block has 99 KiB, of which the offsets take some");
static_assert(kTileN == kWarp && kWarps == kRowTiles * (kTileN / 16) * kDepthHalves);

// Adds the product of 16 rows of `a` and 16 rows of `b`, over the depths 16 (2 i + half) for i < steps.
template <class T, int kDim>
__device__ __forceinline__ void multiply(float (&scores)[2][4], uint32_t a, int row, uint32_t b, int key, int half,
                                         int steps, int lane) {
#pragma unroll 4
  for (int i = 0; i < steps; ++i) {
    uint32_t rows[4], keys[4];
    load_matrices(rows, chunk_address<kDim>(a, row + lane % 16, 2 * half + lane / 16, 2 * i));
    load_matrices(keys, chunk_address<kDim>(b, key + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2, 2 * i));
    mma<T>(scores[0], rows, keys[0], keys[1]);
    mma<T>(scores[1], rows, keys[2], keys[3]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    attend_wide_values_kernel(const __grid_constant__ AttentionParams params, int row_tiles) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int64_t query_offsets[2][kTileM];  // in q and in q_v
  __shared__ int64_t key_offsets[2][kTileN];    // in k and in v
  __shared__ KeyRange row_ranges[kTileM];
  __shared__ float row_factors[kTileM];  // what a row's output is to be multiplied by
  wait_for_predecessor();
  release_successors();

  // The split runs fastest over the grid, then the row tile, backwards (the last see the most keys), the KV head and
  // the sequence.
  int index = blockIdx.x;
  const int split = index % params.num_splits;
  index /= params.num_splits;
  const int first_row = (row_tiles - 1 - index % row_tiles) * kTileM;
  index /= row_tiles;
  const int kv_head = index % params.num_heads_k, batch = index / params.num_heads_k;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = params.group();

  const AttentionSequence sequence = sequence_of(params, batch);
  const int num_rows = sequence.q_len * group;
  if (first_row >= num_rows) return;
  const int last_row = min(first_row + kTileM, num_rows) - 1;
  const KeyRange seen = {visible_keys(params, sequence.q_len, sequence.k_len, first_row / group).begin,
                         visible_keys(params, sequence.q_len, sequence.k_len, last_row / group).end};
  const KeyRange range = split_of(seen, split, params.num_splits, kSplitTile);
  const int first_key = range.begin / kTileN * kTileN;
  const int steps = range.end > range.begin ? (range.end - first_key + kTileN - 1) / kTileN : 0;

  // Thread i < 32 looks up key i of a tile for k, thread 32 + i for v.
  const bool of_values = threadIdx.x >= kTileN;
  const bool looks_up = threadIdx.x < 2 * kTileN;
  const auto slot_of_step = [&](int step) {
    const int key = first_key + step * kTileN + lane;
    return looks_up && key >= range.begin && key < range.end ? key_slot(params, sequence, key) : KeySlot{-1, 0};
  };
  const auto store_offset = [&](KeySlot slot) {
    if (!looks_up) return;
    const int64_t batch_stride = of_values ? params.v_batch_stride : params.k_batch_stride;
    const int64_t row_stride = of_values ? params.v_row_stride : params.k_row_stride;
    key_offsets[of_values][lane] = slot.block < 0 ? kNoRow : slot_offset(slot, batch_stride, row_stride);
  };
  const uint32_t base = shared_address(shared);
  const auto* keys = static_cast<const T*>(params.k) + kv_head * params.k_head_stride;
  const auto* values = static_cast<const T*>(params.v) + kv_head * params.v_head_stride;
  const auto copy_step = [&] {
    copy_rows<T, kThreads, kHeadDim, kTileN>(base + kKeyAt, keys, key_offsets[0], params.head_dim);
    copy_rows<T, kThreads, kHeadDimV, kTileN>(base + kValueAt, values, key_offsets[1], params.head_dim_v);
    commit_copies();
  };

  // Threads 8 i … 8 i + 7 call row i.
  const auto prefetch_step = [&] {
    constexpr int kLine = 64, kLines = kHeadDimV / kLine;  // elements of 128 bytes
    static_assert(kThreads == kTileN * kLines);
    const int row = threadIdx.x / kLines, line = threadIdx.x % kLines;
    const int64_t in_k = key_offsets[0][row], in_v = key_offsets[1][row];
    if (in_k == kNoRow) return;
    if (line * kLine < params.head_dim_v) prefetch_to_l2(values + in_v + line * kLine);
    if (line == 0) prefetch_to_l2(keys + in_k);
  };

  if (threadIdx.x < kTileM) {
    const int row = first_row + threadIdx.x;
    const PackedRow packed = unpack_row(row, group, kv_head);
    const int64_t token = sequence.q_start + packed.token;
    const bool exists = row < num_rows;
    query_offsets[0][threadIdx.x] =
        exists ? batch * params.q_batch_stride + token * params.q_row_stride + packed.head * params.q_head_stride
               : kNoRow;
    query_offsets[1][threadIdx.x] =
        exists ? batch * params.q_v_batch_stride + token * params.q_v_row_stride + packed.head * params.q_v_head_stride
               : kNoRow;
    KeyRange visible = {0, 0};
    if (exists) visible = visible_keys(params, sequence.q_len, sequence.k_len, packed.token);
    row_ranges[threadIdx.x] = {max(visible.begin, range.begin), min(visible.end, range.end)};
  }
  store_offset(slot_of_step(0));
  __syncthreads();
  if (steps > 0) {
    copy_rows<T, kThreads, kHeadDim, kTileM>(base + kQueryAt, static_cast<const T*>(params.q), query_offsets[0],
                                             params.head_dim);
    if (params.q_v != nullptr) {
      copy_rows<T, kThreads, kHeadDimV, kTileM>(base + kValueQueryAt, static_cast<const T*>(params.q_v),
                                                query_offsets[1], params.head_dim_v);
    }
    copy_step();
  }

  const ScoreScale scale = score_scale_of(params, batch, kv_head);
  // Of S: these rows, these keys, this half of the depths. V's depths are taken in pairs, up to head_dim_v.
  const int row_tile = warp / 4 * kMmaRows, key_tile = warp / 2 % 2 * 16, half = warp % 2;
  const int value_steps = params.q_v != nullptr ? (params.head_dim_v + 2 * kMmaRows - 1) / (2 * kMmaRows) : 0;
  auto* scores = reinterpret_cast<float*>(shared + kScoreAt);  // [depth half, row, key]
  auto* score_target = scores + (half * kTileM + row_tile + lane / 4) * kScoreStride + key_tile + lane % 4 * 2;
  float row_max[kWarpRows], row_sum[kWarpRows];  // of the softmax; a lane has its own keys' part of the sum
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    row_max[i] = negative_infinity();
    row_sum[i] = 0.0f;
  }
  float output[kRowTiles][kWarpColumns / kMmaColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    const KeySlot ahead = slot_of_step(step + 1);
    wait_for_copies<0>();
    __syncthreads();  // the tiles are there for all, and so are the offsets used
    store_offset(ahead);

    float part[2][4] = {};
    multiply<T, kHeadDim>(part, base + kQueryAt, row_tile, base + kKeyAt, key_tile, half, kSteps, lane);
    multiply<T, kHeadDimV>(part, base + kValueQueryAt, row_tile, base + kValueAt, key_tile, half, value_steps, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(score_target + i * kMmaColumns) = make_float2(part[i][0], part[i][1]);
      *reinterpret_cast<float2*>(score_target + 8 * kScoreStride + i * kMmaColumns) =
          make_float2(part[i][2], part[i][3]);
    }
    __syncthreads();
    prefetch_step();  // the next one: its offsets are stored

#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = warp * kWarpRows + i, key = first_key + step * kTileN + lane;
      const KeyRange visible = row_ranges[row];
      float score = scores[row * kScoreStride + lane] + scores[(kTileM + row) * kScoreStride + lane];
      if (scale.softcap > 0.0f) score = cap(score, scale);
      if (key < visible.begin || key >= visible.end) score = negative_infinity();
      float tile_max = fmaxf(row_max[i], score);
#pragma unroll
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, distance));
      }
      // While no key is visible the maximum is -infinity, and -infinity - -infinity would be NaN.
      const float shift = tile_max == negative_infinity() ? 0.0f : tile_max * scale.log2_per_unit;
      const float correction = exp2_approx(row_max[i] * scale.log2_per_unit - shift);
      const float probability = exp2_approx(score * scale.log2_per_unit - shift);
      row_max[i] = tile_max;
      row_sum[i] = row_sum[i] * correction + probability;
      *reinterpret_cast<T*>(shared + kProbabilityAt + row * kProbabilityBytes + lane * 2) = from_float<T>(probability);
      if (lane == 0) row_factors[row] = correction;
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const float factor[2] = {row_factors[m * kMmaRows + lane / 4], row_factors[m * kMmaRows + lane / 4 + 8]};
#pragma unroll
      for (int i = 0; i < kWarpColumns / kMmaColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[m][i][e] *= factor[e / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < kTileN / 16; ++n) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        load_matrices(
            p[m], base + kProbabilityAt + (m * kMmaRows + lane % 16) * kProbabilityBytes + (2 * n + lane / 16) * 16);
      }
#pragma unroll
      for (int column = 0; column < kWarpColumns / 16; ++column) {
        uint32_t b[4];
        load_b_of_values<kHeadDimV>(b, base + kValueAt + warp * kWarpColumns * 2, n * 16, column, lane);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(output[m][2 * column], p[m], b[0], b[1]);
          mma<T>(output[m][2 * column + 1], p[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // nobody reads the tiles any more
    if (step + 1 < steps) copy_step();
  }

  const bool partial = params.num_splits > 1;
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int row = warp * kWarpRows + i;
    if (first_row + row >= num_rows) break;
    const PackedRow packed = unpack_row(first_row + row, group, kv_head);
    const float sink = partial ? negative_infinity() : sink_of(params, packed.head);
    const RowEnd end = end_row(row_max[i], warp_reduce<Sum>(row_sum[i]), scale.log2_per_unit, sink);
    if (lane != 0) continue;
    row_factors[row] = end.factor;
    if (partial) {
      params.lse_accum[lse_accum_index(params, sequence, batch, split, packed)] = end.lse;
    } else {
      params.lse[lse_index(params, sequence, batch, packed)] = end.lse;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int row = i * 8 + lane / 4, m = i / 2, r = i % 2;
    if (first_row + row >= num_rows) break;
    const PackedRow packed = unpack_row(first_row + row, group, kv_head);
    const float factor = row_factors[row];
    const int64_t target =
        partial ? out_accum_index(params, sequence, batch, split, packed) : out_index(params, sequence, batch, packed);
#pragma unroll
    for (int n = 0; n < kWarpColumns / kMmaColumns; ++n) {
      const int column = warp * kWarpColumns + n * kMmaColumns + lane % 4 * 2;
      if (column >= params.head_dim_v) continue;
      const float first = output[m][n][2 * r] * factor, second = output[m][n][2 * r + 1] * factor;
      if (partial) {
        *reinterpret_cast<float2*>(params.out_accum + target + column) = make_float2(first, second);
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<T*>(params.out) + target + column) = pack<T>(first, second);
      }
    }
  }
}

}  // namespace

Status attend_wide_values(const AttentionParams& params, Stream stream) {
  const auto kernel =
      params.dtype == DType::kF16 ? attend_wide_values_kernel<__half> : attend_wide_values_kernel<__nv_bfloat16>;
  const int64_t row_tiles = (static_cast<int64_t>(params.seqlen_q) * params.group() + kTileM - 1) / kTileM;
  const int64_t blocks = row_tiles * params.num_splits * params.num_heads_k * params.batch;
  if (blocks > INT32_MAX) return Unsupported("fwd: batch * heads * query tiles * num_splits is above 2^31 blocks");
  SGL_RETURN_IF_ERROR(allow_shared_memory("fwd", kernel, kShared));
  return launch("fwd", kernel,
                {.grid = dim3(static_cast<unsigned>(blocks)), .block = kThreads, .shared_bytes = kShared, .pdl = true},
                stream, params, static_cast<int>(row_tiles));
}

}  // namespace sgl_kernel::SGL_TARGET
