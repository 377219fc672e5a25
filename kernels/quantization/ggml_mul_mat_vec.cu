// ggml_mul_mat_vec_a8: a row of W for 8, 16 or 32 lanes, each with every 8th, 16th or 32nd group of 32 elements.
//
// A block first quantizes X to shared memory (each block for itself: one launch, no scratch), and then takes tiles of
// rows, whose bytes each warp copies to shared memory kStages - 1 steps ahead; __dp4a multiplies. Bound by the bytes of
// W, for small matrices by latency: hence the launch ahead of the predecessor's end, and the first tile's lines asked
// into the L2 cache before waiting for it. That is a hint and no read: W may be written by the predecessor.
//
// Which lane adds what in which order depends on k and the number of rows alone, so a token's bits do not depend on
// the number of tokens.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kMaxWarps = 8;
constexpr int kStages = 3;  // two copies of about 1 KB a warp on their way hide the memory's latency with 16 warps
constexpr int kCacheLine = 128;

struct MatVecParams {
  void* result;
  int64_t result_stride;
  const uint8_t* W;
  Activations X;
  int64_t rows;
  int num_groups;     // k / 32
  int num_tokens;     // from the first of this launch
  int lanes_per_row;  // 8, 16 or 32: whole blocks of 256 elements
  int chunk_groups;   // of X in shared memory at a time; a multiple of 32, or all
};

// A tile of X in shared memory: the bytes of [token][group], then the scales. The halves of a group trade places in
// every other four groups, so that 8 lanes that read the same half of 8 groups at once touch all 32 banks.
__device__ __forceinline__ int half_group_at(int group, int half) { return group * 2 + (half ^ (group >> 2 & 1)); }

template <int kTokens>
__device__ __forceinline__ void quantize_chunk(const MatVecParams& params, int first_group, int groups, uint8_t* quants,
                                               ActivationScale* scales) {
  constexpr int kLanesPerGroup = 4;
  const int tasks = kTokens * groups * kLanesPerGroup;
  for (int base = 0; base < tasks; base += blockDim.x) {
    const int task = base + threadIdx.x;
    const int quarter = task % kLanesPerGroup, slot = task / kLanesPerGroup;
    const int token = kTokens == 1 ? 0 : slot / groups, group = slot - token * groups;
    float x[8] = {};
    if (task < tasks && token < params.num_tokens) {
      load_eight(params.X, token, (int64_t{first_group} + group) * kGroupSize + quarter * 8, x);
    }
    ActivationScale scale;
    const uint2 bytes = quantize_group(x, scale);
    if (task < tasks) {
      uint8_t* row = quants + token * params.chunk_groups * kGroupSize;
      *reinterpret_cast<uint2*>(row + half_group_at(group, quarter / 2) * 16 + quarter % 2 * 8) = bytes;
      if (quarter == 0) scales[token * params.chunk_groups + group] = scale;
    }
  }
}

// Blocks of the largest size that fit a multiprocessor's registers: 64, 80 or 128 a thread.
constexpr int resident_blocks(int tokens) { return tokens <= 2 ? 4 : tokens <= 4 ? 3 : 2; }

// kRows rows of W for each lane, kTokens rows of X.
template <class Format, int kTokens, int kRows>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, resident_blocks(kTokens))
    ggml_mul_mat_vec_kernel(const __grid_constant__ MatVecParams params) {
  using Block = typename Format::Block;
  constexpr int kGroupsPerBlock = Format::kGroupsPerBlock;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, num_warps = blockDim.x / kWarpSize;
  const int lanes_per_row = params.lanes_per_row;
  const int row_lane = lane % lanes_per_row;

  // A warp's tile is warp_rows rows; a step of it, lanes_per_row groups of each of them.
  const int warp_rows = kWarpSize / lanes_per_row * kRows;
  const int block_rows = warp_rows * num_warps;
  const int step_bytes = lanes_per_row / kGroupsPerBlock * static_cast<int>(sizeof(Block));
  const int staged_row_bytes = staged_bytes(step_bytes);
  const int64_t row_bytes = int64_t{params.num_groups / kGroupsPerBlock} * sizeof(Block);
  const int steps = (params.num_groups + lanes_per_row - 1) / lanes_per_row;
  const uint8_t* const W_end = params.W + params.rows * row_bytes;

  extern __shared__ uint4 shared[];
  uint8_t* const quants = reinterpret_cast<uint8_t*>(shared);
  ActivationScale* const scales =
      reinterpret_cast<ActivationScale*>(quants + kTokens * params.chunk_groups * kGroupSize);
  // The scales may be an odd number of 8 bytes.
  uint8_t* const stages =
      quants + (kTokens * params.chunk_groups * 40 + 15) / 16 * 16 + warp * kStages * warp_rows * staged_row_bytes;

  const int64_t first_row = int64_t{blockIdx.x} * block_rows + warp * warp_rows;
  {
    const uint8_t* line = params.W + first_row * row_bytes + lane * kCacheLine;
    const uint8_t* end = params.W + min(first_row + warp_rows, params.rows) * row_bytes;
    for (; line < end; line += kWarpSize * kCacheLine) prefetch_to_l2(line);
  }
  release_successors();
  wait_for_predecessor();

  // The next step to copy runs ahead of the one to compute. It always commits, so that groups count steps.
  int64_t copy_row = first_row;
  int copy_step = 0, copy_stage = 0;
  const auto copy_next = [&] {
    if (copy_row < params.rows && steps > 0) {
      for (int i = 0; i < warp_rows && copy_row + i < params.rows; ++i) {
        const int64_t at = int64_t{copy_step} * step_bytes;
        const int bytes = static_cast<int>(min(int64_t{step_bytes}, row_bytes - at));
        stage_run(stages + (copy_stage * warp_rows + i) * staged_row_bytes, params.W + (copy_row + i) * row_bytes + at,
                  bytes, params.W, W_end);
      }
      if (++copy_step == steps) {
        copy_step = 0;
        copy_row += int64_t{gridDim.x} * block_rows;
      }
    }
    commit_copies();
    copy_stage = copy_stage + 1 == kStages ? 0 : copy_stage + 1;
  };
  for (int i = 0; i + 1 < kStages; ++i) copy_next();

  const bool one_chunk = params.chunk_groups >= params.num_groups;
  bool quantized = false;
  int stage = 0;
  // Every warp of a block goes through the same tiles and steps, with or without rows: there are barriers inside.
  for (int64_t row0 = first_row; row0 - warp * warp_rows < params.rows; row0 += int64_t{gridDim.x} * block_rows) {
    float sums[kRows][kTokens] = {};
    int chunk_start = 0;
    for (int step = 0; step < steps; ++step) {
      const int step_group = step * lanes_per_row;
      if (one_chunk ? !quantized : step_group % params.chunk_groups == 0) {
        if (quantized) __syncthreads();
        chunk_start = step_group;
        quantize_chunk<kTokens>(params, chunk_start, min(params.chunk_groups, params.num_groups - chunk_start), quants,
                                scales);
        quantized = true;
        __syncthreads();
      }
      copy_next();
      wait_for_copies<kStages - 1>();
      __syncwarp();

      const int group = step_group + row_lane;
      if (group < params.num_groups) {
        WeightGroup weights[kRows];
        bool present[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int i = r * (kWarpSize / lanes_per_row) + lane / lanes_per_row;
          present[r] = row0 + i < params.rows;
          if (present[r]) {
            const uint8_t* run = params.W + (row0 + i) * row_bytes + int64_t{step} * step_bytes;
            const uint8_t* staged = stages + (stage * warp_rows + i) * staged_row_bytes + staged_offset(run);
            Format::decode(reinterpret_cast<const Block*>(staged)[row_lane / kGroupsPerBlock],
                           row_lane % kGroupsPerBlock, weights[r]);
          }
        }
        const int x_group = group - chunk_start;
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const uint4* x_row = reinterpret_cast<const uint4*>(quants + t * params.chunk_groups * kGroupSize);
          const uint4 x0 = x_row[half_group_at(x_group, 0)], x1 = x_row[half_group_at(x_group, 1)];
          const uint32_t x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
          const ActivationScale activation = scales[t * params.chunk_groups + x_group];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (!present[r]) continue;
            int dots[2] = {0, 0};
#pragma unroll
            for (int w = 0; w < 8; ++w) {
              int& dot = dots[Format::kScales == 2 ? w / 4 : 0];
              dot = __dp4a(static_cast<int>(weights[r].quants[w]), static_cast<int>(x[w]), dot);
            }
            const float value = scaled_dot<Format>(weights[r].scale, weights[r].offset, static_cast<float>(dots[0]),
                                                   static_cast<float>(dots[1]), activation);
            sums[r][t] = __fmaf_rn(activation.d, value, sums[r][t]);
          }
        }
      }
      __syncwarp();  // before the next copy writes over this stage
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }

#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row0 + r * (kWarpSize / lanes_per_row) + lane / lanes_per_row;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float sum = sums[r][t];
        for (int offset = lanes_per_row / 2; offset > 0; offset /= 2) {
          sum += __shfl_xor_sync(0xffffffff, sum, offset);
        }
        if (row_lane == 0 && row < params.rows && t < params.num_tokens) {
          store_element(params.result, params.X.dtype, t * params.result_stride + row, sum);
        }
      }
    }
  }
}

// The lanes that share a row: 32 for short latency, or for many rows what leaves the fewest lanes idle.
int choose_lanes_per_row(int64_t rows, int num_groups) {
  constexpr int64_t kManyRows = 4096;  // a warp for each of so many already fills any GPU
  if (rows < kManyRows) return 32;
  int best = 32;
  for (int lanes : {16, 8}) {
    const auto slots = [num_groups](int lanes) { return (num_groups + lanes - 1) / lanes * lanes; };
    if (slots(lanes) < slots(best)) best = lanes;
  }
  return best;
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    cudaGetLastError();
  }
  return value;
}

template <class Format, int kTokens, int kRows>
Status launch_mat_vec(MatVecParams params, Stream stream) {
  const auto kernel = ggml_mul_mat_vec_kernel<Format, kTokens, kRows>;
  const int lanes = choose_lanes_per_row(params.rows, params.num_groups);
  const int warp_rows = kWarpSize / lanes * kRows;
  const int sms = num_sms();
  // Small blocks where large ones would leave multiprocessors idle.
  const int num_warps = params.rows < int64_t{2} * sms * warp_rows * kMaxWarps ? kMaxWarps / 2 : kMaxWarps;
  const int64_t tiles = (params.rows + warp_rows * num_warps - 1) / (warp_rows * num_warps);

  const int stage_bytes =
      num_warps * kStages * warp_rows *
      staged_bytes(lanes / Format::kGroupsPerBlock * static_cast<int>(sizeof(typename Format::Block)));
  constexpr int kBytesPerGroup = kGroupSize + sizeof(ActivationScale);
  constexpr int kMostChunkBytes = 80 << 10;  // all of X for 8 tokens of k = 8192
  const int chunk_bytes =
      std::min(kMostChunkBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - stage_bytes - kPiece);
  const int most_groups = std::max(32, chunk_bytes / (kTokens * kBytesPerGroup) / 32 * 32);
  params.lanes_per_row = lanes;
  params.chunk_groups = std::min(params.num_groups, most_groups);
  const int shared_bytes = (kTokens * params.chunk_groups * kBytesPerGroup + 15) / 16 * 16 + stage_bytes;
  constexpr int kAlwaysAllowed = 48 << 10;
  if (shared_bytes > kAlwaysAllowed) {
    SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_vec_a8", kernel, shared_bytes));
  }
  int64_t grid = tiles;
  if (tiles > 2 * sms) {  // as many blocks as are resident at once: each quantizes X
    int resident = 1;
    SGL_RETURN_IF_ERROR(cuda_status(
        "ggml_mul_mat_vec_a8",
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, num_warps * kWarpSize, shared_bytes)));
    grid = std::min(tiles, int64_t{sms} * std::max(resident, 1));
  }
  return launch("ggml_mul_mat_vec_a8", kernel,
                {.grid = static_cast<unsigned>(grid),
                 .block = static_cast<unsigned>(num_warps * kWarpSize),
                 .shared_bytes = static_cast<size_t>(shared_bytes),
                 .pdl = kHasPdl},
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
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 1, 1>(params, stream)));
    } else if (params.num_tokens == 2) {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 2, 1>(params, stream)));
    } else if (params.num_tokens <= 4) {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 4, 2>(params, stream)));
    } else {
      SGL_RETURN_IF_ERROR((launch_mat_vec<Format, 8, 2>(params, stream)));
    }
  }
  return OkStatus();
}

}  // namespace

Status ggml_mul_mat_vec_a8(TensorView result, TensorView, TensorView W, TensorView X, int64_t type, int64_t row,
                           Stream stream) {
  MatVecParams params = {};
  params.result = result.data();
  params.result_stride = result.stride(0);
  params.W = W.data<const uint8_t>();
  params.X = activations_of(X);
  params.rows = row;
  params.num_groups = static_cast<int>(X.size(1) / kGroupSize);
  SGL_SWITCH_GGML_TYPE(type, F, return mat_vec<F>(params, X.size(0), stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
