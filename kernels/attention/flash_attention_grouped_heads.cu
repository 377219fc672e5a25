// Attention of few queries over long caches (decoding): bound by the bandwidth at which keys and values are read.
//
// One block a (sequence, KV head, tile of 16 packed rows, split of the keys). The query heads that share a KV head are
// rows of one tile, so every key is read once for all of them. Each warp walks its own keys, 16 at a time, through its
// own ring in shared memory: no barrier of the block until the end, where the warps' softmaxes are merged in order.
// The rings hold 48 to 96 KiB a block, of which all but one slot is under way while a slot is used; two blocks fit a
// multiprocessor of 228 KiB, which is several times the bandwidth-delay product of its share of the memory.
#include "kernels/attention/flash_attention_mma.cuh"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarpKeys = 16;  // keys of a warp's step: one depth of P V

template <class T, int kHeadDim_, int kHeadDimV_>
struct Config {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kKeyBytes = kWarpKeys * kHeadDim * 2, kValueBytes = kWarpKeys * kHeadDimV * 2;
  static constexpr int kSlotBytes = kKeyBytes + kValueBytes;
  static constexpr int kWarps = kHeadDim > 192 ? 2 : 4;
  // As deep as 96 KiB allow (what an sm_89 or sm_120 block can have), but not deeper than 3: then two blocks fit.
  static constexpr int kStages = kSlotBytes * kWarps * 3 <= 96 * 1024 ? 3 : 2;
  static constexpr int kRingBytes = kSlotBytes * kStages;  // of a warp
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlockKeys = kWarps * kWarpKeys;
  static constexpr int kShared = kRingBytes * kWarps;
  static_assert(kRingBytes >= kMmaRows * kHeadDimV * 4, "a warp's output is merged through its ring");
  static_assert(kSplitTile % kBlockKeys == 0);
};

// Copies the keys [first_key, first_key + 16) of one KV head into a slot. Lane 16 h + i brings the offset of key i in
// k (h = 0) or v (h = 1).
template <class C>
__device__ __forceinline__ void copy_keys(uint32_t slot, const typename C::Element* keys,
                                          const typename C::Element* values, int64_t offset, int head_dim,
                                          int head_dim_v, int lane) {
  constexpr int kKeyChunks = C::kHeadDim / kChunk, kValueChunks = C::kHeadDimV / kChunk;
#pragma unroll
  for (int i = 0; i < kWarpKeys * kKeyChunks / kWarp; ++i) {
    const int row = (i * kWarp + lane) / kKeyChunks, chunk = (i * kWarp + lane) % kKeyChunks;
    const int64_t from = __shfl_sync(0xffffffffu, offset, row);
    const bool valid = from != kNoRow && chunk * kChunk < head_dim;
    copy_chunk_async(slot + swizzled<C::kHeadDim>(row, chunk), valid ? keys + from + chunk * kChunk : keys, valid);
  }
#pragma unroll
  for (int i = 0; i < kWarpKeys * kValueChunks / kWarp; ++i) {
    const int row = (i * kWarp + lane) / kValueChunks, chunk = (i * kWarp + lane) % kValueChunks;
    const int64_t from = __shfl_sync(0xffffffffu, offset, kWarpKeys + row);
    const bool valid = from != kNoRow && chunk * kChunk < head_dim_v;
    copy_chunk_async(slot + C::kKeyBytes + swizzled<C::kHeadDimV>(row, chunk),
                     valid ? values + from + chunk * kChunk : values, valid);
  }
}

// The A fragments of the 16 rows, straight from memory: two elements at a time.
template <class C>
__device__ __forceinline__ void load_queries(uint32_t (&fragments)[C::kHeadDim / kMmaRows][4],
                                             const AttentionParams& params, const AttentionSequence& sequence,
                                             int batch, int kv_head, int first_row, int num_rows, int lane) {
  const auto* q = static_cast<const typename C::Element*>(params.q);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + lane / 4 + 8 * r;
    const PackedRow packed = unpack_row(row, params.group(), kv_head);
    const auto* source = q + batch * params.q_batch_stride + (sequence.q_start + packed.token) * params.q_row_stride +
                         packed.head * params.q_head_stride;
#pragma unroll
    for (int step = 0; step < C::kHeadDim / kMmaRows; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = step * kMmaRows + half * 8 + lane % 4 * 2;
        const bool valid = row < num_rows && column < params.head_dim;
        fragments[step][2 * half + r] = valid ? *reinterpret_cast<const uint32_t*>(source + column) : 0;
      }
    }
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads)
    attend_grouped_heads_kernel(const __grid_constant__ AttentionParams params, int row_tiles) {
  using T = typename C::Element;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float warp_max[C::kWarps][kMmaRows], warp_sum[C::kWarps][kMmaRows];
  wait_for_predecessor();
  release_successors();

  // The split runs fastest over the grid, then the row tile, the KV head and the sequence.
  int index = blockIdx.x;
  const int split = index % params.num_splits;
  index /= params.num_splits;
  const int first_row = index % row_tiles * kMmaRows;
  index /= row_tiles;
  const int kv_head = index % params.num_heads_k, batch = index / params.num_heads_k;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  const AttentionSequence sequence = sequence_of(params, batch);
  const int num_rows = sequence.q_len * params.group();
  if (first_row >= num_rows) return;
  const int last_row = min(first_row + kMmaRows, num_rows) - 1;
  const KeyRange seen = {visible_keys(params, sequence.q_len, sequence.k_len, first_row / params.group()).begin,
                         visible_keys(params, sequence.q_len, sequence.k_len, last_row / params.group()).end};
  const KeyRange range = split_of(seen, split, params.num_splits, kSplitTile);
  const int first_key = range.begin / C::kBlockKeys * C::kBlockKeys + warp * kWarpKeys;
  const int steps = range.end > range.begin
                        ? (range.end - range.begin / C::kBlockKeys * C::kBlockKeys + C::kBlockKeys - 1) / C::kBlockKeys
                        : 0;

  // The slot that this lane looks up for a step: of key lane % 16, for k below lane 16 and for v from there on.
  const bool of_values = lane >= kWarpKeys;
  const int64_t batch_stride = of_values ? params.v_batch_stride : params.k_batch_stride;
  const int64_t row_stride = of_values ? params.v_row_stride : params.k_row_stride;
  const auto* keys = static_cast<const T*>(params.k) + kv_head * params.k_head_stride;
  const auto* values = static_cast<const T*>(params.v) + kv_head * params.v_head_stride;
  const auto key_of_step = [&](int step) { return first_key + step * C::kBlockKeys + lane % kWarpKeys; };
  const auto slot_of_step = [&](int step) {
    const int key = key_of_step(step);
    return key >= range.begin && key < range.end ? key_slot(params, sequence, key) : KeySlot{-1, 0};
  };
  const uint32_t ring = shared_address(shared) + warp * C::kRingBytes;
  const auto copy_step = [&](int step, KeySlot slot) {
    const int64_t offset = slot.block < 0 ? kNoRow : slot_offset(slot, batch_stride, row_stride);
    copy_keys<C>(ring + step % C::kStages * C::kSlotBytes, keys, values, offset, params.head_dim, params.head_dim_v,
                 lane);
  };

#pragma unroll
  for (int step = 0; step < C::kStages - 1; ++step) {
    if (step < steps) copy_step(step, slot_of_step(step));
    commit_copies();
  }
  // A step's slots are looked up one step before its copies start, so that the page table's latency is hidden.
  KeySlot next_slot = slot_of_step(C::kStages - 1);

  uint32_t queries[C::kHeadDim / kMmaRows][4];
  load_queries<C>(queries, params, sequence, batch, kv_head, first_row, num_rows, lane);
  const ScoreScale scale = score_scale_of(params, batch, kv_head);
  KeyRange visible[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + lane / 4 + 8 * r;
    visible[r] = visible_keys(params, sequence.q_len, sequence.k_len, row / params.group());
    if (row >= num_rows) visible[r] = {0, 0};
    visible[r].begin = max(visible[r].begin, range.begin);
    visible[r].end = min(visible[r].end, range.end);
  }

  RowPair rows;
  float output[C::kHeadDimV / kMmaColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_copies<C::kStages - 2>();
    __syncwarp();  // every lane's copies have landed, and the slot that is filled next has been read
    if (step + C::kStages - 1 < steps) copy_step(step + C::kStages - 1, next_slot);
    commit_copies();
    next_slot = slot_of_step(step + C::kStages);

    const uint32_t key_tile = ring + step % C::kStages * C::kSlotBytes, value_tile = key_tile + C::kKeyBytes;
    float scores[2][4] = {};
#pragma unroll
    for (int depth = 0; depth < C::kHeadDim / kMmaRows; ++depth) {
      uint32_t b[4];
      load_b_of_keys<C::kHeadDim>(b, key_tile, 0, depth, lane);
      mma<T>(scores[0], queries[depth], b[0], b[1]);
      mma<T>(scores[1], queries[depth], b[2], b[3]);
    }
    if (scale.softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] = cap(scores[i / 4][i % 4], scale);
    }
    mask_scores(scores, visible, first_key + step * C::kBlockKeys, lane);
    float correction[2];
    rows.update(scores, scale.log2_per_unit, correction);
    // Once the maximum has settled there is nothing to correct.
    if (__any_sync(0xffffffffu, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < C::kHeadDimV / kMmaColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[i][e] *= correction[e / 2];
      }
    }
    const uint32_t probabilities[4] = {pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
                                       pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
    for (int column = 0; column < C::kHeadDimV / kMmaRows; ++column) {
      uint32_t b[4];
      load_b_of_values<C::kHeadDimV>(b, value_tile, 0, column, lane);
      mma<T>(output[2 * column], probabilities, b[0], b[1]);
      mma<T>(output[2 * column + 1], probabilities, b[2], b[3]);
    }
  }

  // Merge the warps: each leaves its maximum, sum and output, the block adds them up in the order of the warps.
  wait_copies<0>();
  __syncwarp();
  rows.finish();
  auto* warp_output = reinterpret_cast<float*>(shared + warp * C::kRingBytes);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    if (lane % 4 == 0) {
      warp_max[warp][row] = rows.max[r];
      warp_sum[warp][row] = rows.sum[r];
    }
#pragma unroll
    for (int i = 0; i < C::kHeadDimV / kMmaColumns; ++i) {
      *reinterpret_cast<float2*>(warp_output + row * C::kHeadDimV + i * kMmaColumns + lane % 4 * 2) =
          make_float2(output[i][2 * r], output[i][2 * r + 1]);
    }
  }
  __syncthreads();

  const bool partial = params.num_splits > 1;
  for (int row = warp; row < kMmaRows && first_row + row < num_rows; row += C::kWarps) {
    const PackedRow packed = unpack_row(first_row + row, params.group(), kv_head);
    float top = negative_infinity();
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) top = fmaxf(top, warp_max[w][row]);
    float weight[C::kWarps], sum = 0.0f;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      weight[w] = top == negative_infinity() ? 0.0f : exp2_approx((warp_max[w][row] - top) * scale.log2_per_unit);
      sum += warp_sum[w][row] * weight[w];
    }
    const float sink = partial ? negative_infinity() : sink_of(params, packed.head);
    const RowEnd end = end_row(top, sum, scale.log2_per_unit, sink);
    if (lane == 0) {
      if (partial) {
        params.lse_accum[lse_accum_index(params, sequence, batch, split, packed)] = end.lse;
      } else {
        params.lse[lse_index(params, sequence, batch, packed)] = end.lse;
      }
    }
    // combine_splits() does not look at the output of a split without keys.
    if (partial && end.lse == negative_infinity()) continue;
    for (int column = lane * 2; column < params.head_dim_v; column += kWarp * 2) {
      float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int w = 0; w < C::kWarps; ++w) {
        const float2 part = *reinterpret_cast<const float2*>(shared + w * C::kRingBytes +
                                                             (row * C::kHeadDimV + column) * sizeof(float));
        total.x += part.x * weight[w];
        total.y += part.y * weight[w];
      }
      total.x *= end.factor;
      total.y *= end.factor;
      if (partial) {
        *reinterpret_cast<float2*>(params.out_accum + out_accum_index(params, sequence, batch, split, packed) +
                                   column) = total;
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<T*>(params.out) + out_index(params, sequence, batch, packed) +
                                     column) = pack<T>(total.x, total.y);
      }
    }
  }
}

template <class T, int kHeadDim, int kHeadDimV>
Status run(const AttentionParams& params, Stream stream) {
  using C = Config<T, kHeadDim, kHeadDimV>;
  const auto kernel = attend_grouped_heads_kernel<C>;
  const int64_t row_tiles = (static_cast<int64_t>(params.seqlen_q) * params.group() + kMmaRows - 1) / kMmaRows;
  const int64_t blocks = row_tiles * params.num_splits * params.num_heads_k * params.batch;
  if (blocks > INT32_MAX) return Unsupported("fwd: batch * heads * query tiles * num_splits is above 2^31 blocks");
  SGL_RETURN_IF_ERROR(allow_shared_memory("fwd", kernel, C::kShared));
  return launch(
      "fwd", kernel,
      {.grid = dim3(static_cast<unsigned>(blocks)), .block = C::kThreads, .shared_bytes = C::kShared, .pdl = true},
      stream, params, static_cast<int>(row_tiles));
}

template <class T>
Status run(const AttentionParams& params, Stream stream) {
  if (params.head_dim <= 64 && params.head_dim_v <= 64) return run<T, 64, 64>(params, stream);
  if (params.head_dim <= 128 && params.head_dim_v <= 128) return run<T, 128, 128>(params, stream);
  if (params.head_dim <= 192 && params.head_dim_v <= 128) return run<T, 192, 128>(params, stream);
  return run<T, 256, 256>(params, stream);
}

}  // namespace

Status attend_grouped_heads(const AttentionParams& params, Stream stream) {
  if (params.dtype == DType::kF16) return run<__half>(params, stream);
  return run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
