// ggml_mul_mat_vec_a8: a row of W for 8, 16 or 32 lanes, each with every 8th, 16th or 32nd group of 32 elements.
//
// A block has a run of rows. It first quantizes X to shared memory (each block for itself: one launch, no scratch); its
// warps take tiles of rows in turn, and copy some groups of them, whole rows where they are short, to shared memory
// while they multiply (__dp4a) those that they copied before. Bound by the bytes of W, and by the instructions that a
// group costs; for small matrices by latency: hence the launch ahead of the predecessor's end, and the first rows'
// lines asked into the L2 cache before waiting for it. That is a hint and no read: W may be written by the predecessor.
//
// Few rows are ggml_mul_mat_row.cu's. H200, 2026-11-23, one token, weights out of memory, in a CUDA graph, TB/s:
//   rows x k         Q4_0   Q8_0   Q4_K   Q6_K
//   9216 x 4096       1.9    2.7    1.6    1.9
//   28672 x 8192      2.8    3.5    2.2    2.7
// and Q8_0, 49152 x 576, in 10.9 µs (2.8 TB/s).
//
// Which lane adds what in which order depends on k and the number of rows alone, so a token's bits do not depend on
// the number of tokens.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_params.h"
#include "kernels/quantization/ggml_stage.cuh"
#include "kernels/quantization/ggml_vec_group.cuh"

namespace sgl_kernel::SGL_TARGET {

// ggml_mul_mat_row.cu
Status ggml_mul_mat_row(const MatVecCall& call, Stream stream);
Status ggml_vec_input(const MatVecCall& call, const TensorView& made, Stream stream);

namespace {

constexpr int kWarps = 8;   // of which those quantize X that have a part of it
constexpr int kStages = 2;  // the copy of one step is on its way while a warp computes the one before
constexpr int kCacheLine = 128;

// Shared bytes of a chunk of X: quants and scales, and what keeps the stages behind it aligned.
constexpr int chunk_bytes(int tokens, int groups) {
  return (tokens * groups * (kGroupSize + static_cast<int>(sizeof(ActivationScale))) + kPiece - 1) / kPiece * kPiece;
}

struct MatVecParams {
  void* result;
  int64_t result_stride;
  const uint8_t* W;
  Activations X;
  int64_t rows;
  int num_groups;          // k / 32
  int num_tokens;          // from the first of this launch
  int log2_lanes_per_row;  // of 8, 16 or 32: whole blocks of 256 elements
  int lane_groups;         // of a lane in a step
  int chunk_groups;        // of X in shared memory at a time; a multiple of a step's, or all
};

// The bytes of a step's copies.
struct StepBytes {
  int step;        // of a row
  int staged_row;  // from a row to the next in shared memory, where the first is staged_offset() behind a stage's start
  int stage;
};

constexpr StepBytes step_bytes_of(int blocks, int block_bytes, int warp_rows, bool whole_rows, int64_t row_bytes) {
  const int step = blocks * block_bytes;
  if (whole_rows) {
    const int row = static_cast<int>(row_bytes);
    return {step, row, staged_bytes(warp_rows * row)};
  }
  return {step, staged_bytes(step), warp_rows * staged_bytes(step)};
}

// A chunk of X in shared memory: the bytes of [token][group], by half_at(), then the scales.

// Eight elements of a chunk of X, on their way from global to shared memory. Four neighbouring threads hold a group.
template <int kTokens>
struct ChunkTask {
  int token, group, quarter;  // of the group
  bool present;
  float x[8];

  // Task `index` of the chunk of `groups` groups from `first_group` on.
  __device__ __forceinline__ void load(const MatVecParams& params, int first_group, int groups, int index) {
    quarter = index % 4;
    token = kTokens == 1 ? 0 : index / 4 / groups;
    group = index / 4 - token * groups;
    present = index < kTokens * groups * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = 0.0f;
    if (present && token < params.num_tokens) {
      load_eight(params.X, token, (int64_t{first_group} + group) * kGroupSize + quarter * 8, x);
    }
  }

  // The whole warp calls it.
  __device__ __forceinline__ void store(const MatVecParams& params, uint8_t* quants, ActivationScale* scales) const {
    ActivationScale scale;
    const uint2 bytes = quantize_group(x, scale);
    if (!present) return;
    const int slot = token * params.chunk_groups + group;
    *reinterpret_cast<uint2*>(quants + slot * kGroupSize + half_at(group, quarter / 2) + quarter % 2 * 8) = bytes;
    if (quarter == 0) scales[slot] = scale;
  }
};

// Sums over the 2^log2_lanes lanes of a row, of kCount values at once. Each level hands half of the values that are
// left to the lanes across, until one is left: fewer shuffles than to sum them one by one, in the same order for each.
template <int kCount>
struct LaneSums {
  float (&values)[kCount];
  int first = 0;       // the values that this lane ends up with, in front, are the sums of those from `first` on
  int count = kCount;  // so many: 2 where 8 lanes cannot split 16 values further
  bool owns = true;    // false: another lane has them too

  template <int kLevel = 0>
  __device__ __forceinline__ void add(int row_lane, int log2_lanes) {
    constexpr int kHalf = kCount >> (kLevel + 1);  // 0 once a single value is left
    if (kLevel >= log2_lanes) return;
    const int offset = 1 << (log2_lanes - 1 - kLevel);
    const bool upper = (row_lane & offset) != 0;
    if constexpr (kHalf > 0) {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float sent = upper ? values[i] : values[kHalf + i], kept = upper ? values[kHalf + i] : values[i];
        values[i] = kept + __shfl_xor_sync(0xffffffff, sent, offset);
      }
      if (upper) first += kHalf;
      count = kHalf;
    } else {
      values[0] += __shfl_xor_sync(0xffffffff, values[0], offset);
      if (upper) owns = false;
    }
    constexpr int kLevels = 5;
    if constexpr (kLevel + 1 < kLevels) add<kLevel + 1>(row_lane, log2_lanes);
  }
};

// Rows of a lane. Several share what it loads of X, which is more than what it loads of W for several tokens.
constexpr int rows_of_lane(int tokens) { return tokens > 1 ? 2 : 1; }

// Blocks of the largest size that fit a multiprocessor's registers: 80 or 128 a thread.
constexpr int resident_blocks(int tokens) { return tokens > 1 ? 2 : 3; }

// kTokens rows of X.
template <class Format, int kTokens>
__global__ void __launch_bounds__(kWarps* kWarpSize, resident_blocks(kTokens))
    ggml_mul_mat_vec_kernel(const __grid_constant__ MatVecParams params) {
  using Block = typename Format::Block;
  constexpr int kGroupsPerBlock = Format::kGroupsPerBlock, kRows = rows_of_lane(kTokens);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int lanes_per_row = 1 << params.log2_lanes_per_row;
  const int row_lane = lane & (lanes_per_row - 1);

  // A warp's tile is warp_rows rows; a step of it, lane_groups * lanes_per_row groups of each of them. Lane l has rows
  // l / lanes_per_row + r * side_rows. Where a step is whole rows, they are copied as one run.
  const int side_rows = kWarpSize >> params.log2_lanes_per_row;
  const int warp_rows = side_rows * kRows;
  const int64_t row_stride = int64_t{kWarps} * warp_rows;  // from a warp's tile to its next
  const int step_groups = lanes_per_row * params.lane_groups;
  const int64_t row_bytes = int64_t{params.num_groups / kGroupsPerBlock} * sizeof(Block);
  const int steps = (params.num_groups + step_groups - 1) / step_groups;
  const bool whole_rows = steps == 1;
  const StepBytes bytes = step_bytes_of(step_groups / kGroupsPerBlock, sizeof(Block), warp_rows, whole_rows, row_bytes);
  const uint8_t* const W_end = params.W + params.rows * row_bytes;

  extern __shared__ uint4 shared[];
  uint8_t* const quants = reinterpret_cast<uint8_t*>(shared);
  ActivationScale* const scales =
      reinterpret_cast<ActivationScale*>(quants + kTokens * params.chunk_groups * kGroupSize);
  uint8_t* const stages = quants + chunk_bytes(kTokens, params.chunk_groups) + warp * kStages * bytes.stage;

  release_successors();
  // The tiles are shared out evenly over the blocks.
  const int64_t tiles = (params.rows + warp_rows - 1) / warp_rows;
  const int64_t first_block_row = blockIdx.x * tiles / gridDim.x * warp_rows;
  const int64_t end_row = min((blockIdx.x + int64_t{1}) * tiles / gridDim.x * warp_rows, params.rows);
  const int64_t first_row = first_block_row + warp * warp_rows;
  constexpr int64_t kMostPrefetched = 16 << 10;  // all of the rows would be in the way of X
  const int64_t prefetched = min((end_row - first_block_row) * row_bytes, kMostPrefetched);
#pragma unroll 1
  for (int64_t at = threadIdx.x * kCacheLine; at < prefetched; at += kWarps * kWarpSize * kCacheLine) {
    prefetch_to_l2(params.W + first_block_row * row_bytes + at);
  }

  // The next step to copy runs ahead of the one to compute. It always commits, so that groups count steps.
  int64_t copy_row = first_row;
  const uint8_t* copy_run = params.W + first_row * row_bytes;
  int copy_step = 0, copy_stage = 0;
  const int64_t tile_stride = row_stride * row_bytes - int64_t{steps} * bytes.step;
  const bool starts_aligned = staged_offset(params.W) == 0;
  const auto copy_next = [&] {
    if (copy_row < end_row) {
      // A row is longer than a piece: with rows before and behind it, a run is not at an edge of W.
      const bool inside = copy_row + warp_rows < params.rows && (copy_row > 0 || starts_aligned);
      const int rows = static_cast<int>(min(int64_t{warp_rows}, params.rows - copy_row));
      const int run_bytes = whole_rows               ? rows * static_cast<int>(row_bytes)
                            : copy_step + 1 == steps ? static_cast<int>(row_bytes - int64_t{steps - 1} * bytes.step)
                                                     : bytes.step;
      uint8_t* staged = stages + copy_stage * bytes.stage;
      const uint8_t* run = copy_run;
#pragma unroll 1
      for (int i = 0; i < (whole_rows ? 1 : rows); ++i) {
        if (inside) {
          stage_run(staged, run, run_bytes);
        } else {
          stage_run_at_edge(staged, run, run_bytes, params.W, W_end);
        }
        run += row_bytes;
        staged += bytes.staged_row;
      }
      copy_run += bytes.step;
      if (++copy_step == steps) {
        copy_step = 0;
        copy_row += row_stride;
        copy_run += tile_stride;
      }
    }
    commit_copies();
    copy_stage = copy_stage + 1 == kStages ? 0 : copy_stage + 1;
  };

  // What this lane reads of each stage and of each token's groups.
  int staged_at[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    staged_at[r] = (r * side_rows + (lane >> params.log2_lanes_per_row)) * bytes.staged_row +
                   row_lane / kGroupsPerBlock * static_cast<int>(sizeof(Block));
  }
  const int lane_step_bytes = lanes_per_row / kGroupsPerBlock * static_cast<int>(sizeof(Block));
  const int x_row_bytes = params.chunk_groups * kGroupSize;
  const int x_half0 = half_at(row_lane, 0), x_half1 = half_at(row_lane, 1);

  wait_for_predecessor();
  bool started = false;
  int chunk_start = 0;
  const bool one_chunk = params.chunk_groups >= params.num_groups;
  int stage = 0;
  // Every warp of a block goes through the same number of tiles and steps, with or without rows: there may be barriers
  // inside. What a lane computes of a row that is not there is not stored.
  for (int64_t row0 = first_row; row0 - warp * warp_rows < end_row; row0 += row_stride) {
    float sums[kRows * kTokens] = {};  // [row][token]
    uint32_t run_address[kRows];       // of the run that the row is in, its low bits
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row0 + (whole_rows ? 0 : r * side_rows + (lane >> params.log2_lanes_per_row));
      run_address[r] = static_cast<uint32_t>(reinterpret_cast<uint64_t>(params.W) + row * row_bytes);
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int start = one_chunk ? 0 : step * step_groups / params.chunk_groups * params.chunk_groups;
      if (!started || start != chunk_start) {
        if (started) __syncthreads();
        chunk_start = start;
        const int groups = min(params.chunk_groups, params.num_groups - start);
        // Each load runs ahead of the store before it, the first of W in the shadow of the first of X. A warp without a
        // task only waits.
        const int tasks = kTokens * groups * 4;
        ChunkTask<kTokens> task, next;
        if (warp * kWarpSize < tasks) next.load(params, start, groups, threadIdx.x);
        if (!started) {
          started = true;
#pragma unroll 1
          for (int i = 0; i + 1 < kStages; ++i) copy_next();
        }
#pragma unroll 1
        for (int at = warp * kWarpSize; at < tasks; at += kWarps * kWarpSize) {
          task = next;
          const int after = at + kWarps * kWarpSize;
          if (after < tasks) next.load(params, start, groups, after + lane);
          task.store(params, quants, scales);
        }
        __syncthreads();
      }
      copy_next();
      wait_for_copies<kStages - 1>();
      __syncwarp();

      const int step_end = row0 < end_row ? min(step_groups, params.num_groups - step * step_groups) : 0;
      const uint8_t* staged = stages + stage * bytes.stage;
#pragma unroll(kTokens == 1 ? 2 : 1)
      for (int group = row_lane; group < step_end; group += lanes_per_row, staged += lane_step_bytes) {
        const auto decode = [&](int r) {
          WeightGroup weights;
          const uint8_t* block = staged + staged_at[r] + run_address[r] % kPiece;
          Format::decode(*reinterpret_cast<const Block*>(block), row_lane % kGroupsPerBlock, weights);
          return weights;
        };
        const auto add = [&](int r, int t, const WeightGroup& weights, const ActivationGroup& x) {
          add_group<Format>(weights, x, sums[r * kTokens + t]);
        };
        const int x_group = step * step_groups + group - chunk_start;
        const uint8_t* x_quants = quants + x_group * kGroupSize;
        if constexpr (kTokens == 1) {
          const ActivationGroup x = load_group(x_quants, x_half0, x_half1, scales[x_group]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) add(r, 0, decode(r), x);
        } else {
          WeightGroup weights[kRows];
#pragma unroll
          for (int r = 0; r < kRows; ++r) weights[r] = decode(r);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            const ActivationGroup x =
                load_group(x_quants + t * x_row_bytes, x_half0, x_half1, scales[t * params.chunk_groups + x_group]);
#pragma unroll
            for (int r = 0; r < kRows; ++r) add(r, t, weights[r], x);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) run_address[r] += bytes.step;
      __syncwarp();  // before the next copy writes over this stage
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    LaneSums<kRows * kTokens> totals{sums};
    totals.add(row_lane, params.log2_lanes_per_row);
#pragma unroll
    for (int i = 0; i < kRows * kTokens && i < 2; ++i) {
      const int r = (totals.first + i) / kTokens, t = (totals.first + i) % kTokens;
      const int64_t row = row0 + r * side_rows + (lane >> params.log2_lanes_per_row);
      if (totals.owns && i < totals.count && row < end_row && t < params.num_tokens) {
        store_element(params.result, params.X.dtype, t * params.result_stride + row, sums[i]);
      }
    }
  }
}

// With a warp for each row, more rows than this are bound by the instructions issued, not by latency (H200).
constexpr int64_t kManyRows = 8192;

// The lanes that share a row: 32 for short latency, or for many rows the most that leave few lanes idle.
int choose_log2_lanes_per_row(int64_t rows, int num_groups) {
  if (rows < kManyRows) return 5;
  const auto idle_lanes = [num_groups](int log2) { return -num_groups & ((1 << log2) - 1); };
  for (int log2 : {5, 4}) {
    if (idle_lanes(log2) <= num_groups / 8) return log2;
  }
  return 3;
}

// So few rows, in all the tokens, that latency bounds them; more where that kernel also saves one. Both add in the same
// order then: a warp a row.
bool takes_row_kernel(const MatVecCall& call) {
  const int64_t rows = call.result.size(1), most = call.input == VecInput::kAsItIs ? kManyRows : 2 * kManyRows;
  return call.k <= kMostSiluElements && rows < kManyRows && call.X.size(0) * rows < most;
}

template <class Format, int kTokens>
Status launch_mat_vec(MatVecParams params, Stream stream) {
  const auto kernel = ggml_mul_mat_vec_kernel<Format, kTokens>;
  constexpr int kRows = rows_of_lane(kTokens);
  params.log2_lanes_per_row = choose_log2_lanes_per_row(params.rows, params.num_groups);
  const int lanes = 1 << params.log2_lanes_per_row, warp_rows = kWarpSize / lanes * kRows;
  const int sms = num_sms();
  const int64_t tiles = (params.rows + warp_rows * kWarps - 1) / (warp_rows * kWarps);

  // Steps of one size, of at most kMostStageBytes and from 1 to 4 groups a lane.
  constexpr int kMostStageBytes = kTokens == 1 ? 4352 : 3328;
  constexpr int kBlockBytes = sizeof(typename Format::Block);
  constexpr int kLaneGroupBytes = kRows * kWarpSize / Format::kGroupsPerBlock * kBlockBytes;
  constexpr int kMostLaneGroups = std::clamp(kMostStageBytes / kLaneGroupBytes, 1, 4);
  const int all_lane_groups = std::max(1, (params.num_groups + lanes - 1) / lanes);
  const int steps = (all_lane_groups + kMostLaneGroups - 1) / kMostLaneGroups;
  params.lane_groups = (all_lane_groups + steps - 1) / steps;
  const int step_groups = lanes * params.lane_groups;
  const int64_t row_bytes = int64_t{params.num_groups / Format::kGroupsPerBlock} * kBlockBytes;
  const bool whole_rows = params.num_groups <= step_groups;
  const StepBytes bytes =
      step_bytes_of(step_groups / Format::kGroupsPerBlock, kBlockBytes, warp_rows, whole_rows, row_bytes);
  const int stages_bytes = kWarps * kStages * bytes.stage;
  constexpr int kMostChunkBytes = 80 << 10;  // all of X for 8 tokens of k = 8192
  const int most_bytes = std::min(kMostChunkBytes, max_shared_memory() - stages_bytes);
  const int most_groups = std::max(1, most_bytes / chunk_bytes(kTokens, step_groups)) * step_groups;
  params.chunk_groups = std::min(params.num_groups, most_groups);
  const int shared_bytes = chunk_bytes(kTokens, params.chunk_groups) + stages_bytes;
  constexpr int kAlwaysAllowed = 48 << 10;
  if (shared_bytes > kAlwaysAllowed) {
    SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_vec_a8", kernel, shared_bytes));
  }
  int64_t grid = tiles;
  if (tiles > 2 * sms) {  // as many blocks as are resident at once: each quantizes X
    int resident = 1;
    SGL_RETURN_IF_ERROR(cuda_status("ggml_mul_mat_vec_a8", cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                                               &resident, kernel, kWarps * kWarpSize, shared_bytes)));
    grid = std::min(tiles, int64_t{sms} * std::max(resident, 1));
  }
  return launch("ggml_mul_mat_vec_a8", kernel,
                {.grid = static_cast<unsigned>(grid),
                 .block = static_cast<unsigned>(kWarps * kWarpSize),
                 .shared_bytes = static_cast<size_t>(shared_bytes),
                 .pdl = true},
                stream, params);
}

// Up to 8 tokens at a time.
template <class Format>
Status mat_vec(const MatVecParams& whole, int64_t num_tokens, Stream stream) {
  constexpr int kMostTokens = 8;
  const int64_t element_bytes = size_of(whole.X.dtype);
  for (int64_t first = 0; first < num_tokens; first += kMostTokens) {
    MatVecParams params = whole;
    params.num_tokens = static_cast<int>(std::min<int64_t>(kMostTokens, num_tokens - first));
    params.result = static_cast<char*>(whole.result) + first * whole.result_stride * element_bytes;
    params.X.data = static_cast<const char*>(whole.X.data) + first * whole.X.row_stride * element_bytes;
    if (params.num_tokens == 1) {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 1>(params, stream)));
    } else if (params.num_tokens <= 4) {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 4>(params, stream)));
    } else {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 8>(params, stream)));
    }
  }
  return OkStatus();
}

}  // namespace

Status ggml_mul_mat_vec(const MatVecCall& call, Stream stream) {
  if (takes_row_kernel(call)) return ggml_mul_mat_row(call, stream);
  TensorView X = call.X;
  if (call.input != VecInput::kAsItIs) {
    X = TensorView(call.workspace.data(), X.dtype(), {X.size(0), call.k}, X.device());
    SGL_RETURN_IF_ERROR(ggml_vec_input(call, X, stream));
  }
  MatVecParams params = {};
  params.result = call.result.data();
  params.result_stride = call.result.stride(0);
  params.W = call.W.data<const uint8_t>();
  params.X = activations_of(X);
  params.rows = call.result.size(1);
  params.num_groups = static_cast<int>(call.k / kGroupSize);
  SGL_SWITCH_GGML_TYPE(call.type, F, return mat_vec<F>(params, X.size(0), stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
