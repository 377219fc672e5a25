// The entry of Hopper: its own kernels for many queries, the portable ones for the other steps and cases.
#include <algorithm>

#include "kernels/attention/flash_attention_portable.h"
#include "kernels/attention/flash_attention_prefill_sm90a.h"
#include "kernels/base/launch.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileRows = 128;          // packed query rows of a tile
constexpr int kMostTileKeys = 128;      // a page is a multiple or a divisor of it, or is gathered
constexpr int kKvHeadsPerSection = 16;  // few enough to share the L2 cache, enough tiles for an even end

// Dimensions of one element get a stride that the copy engine takes, whatever the tensor's is.
TensorMapShape shape_of(const void* data, const uint64_t (&extents)[kTensorMapRank],
                        const int64_t (&strides)[kTensorMapRank - 1]) {
  constexpr int kElementBytes = 2, kAnyStride = 16;
  TensorMapShape shape = {.data = const_cast<void*>(data)};
  for (int i = 0; i < kTensorMapRank; ++i) {
    shape.extents[i] = extents[i];
    shape.box[i] = 1;
    if (i > 0) shape.strides[i - 1] = extents[i] > 1 ? strides[i - 1] * kElementBytes : kAnyStride;
  }
  return shape;
}

TensorMapShape cache_shape(const AttentionParams& params, const void* data, int head_dim, int64_t batch_stride,
                           int64_t row_stride, int64_t head_stride) {
  const bool ragged = params.cu_seqlens_k != nullptr;
  const int64_t rows = params.page_table != nullptr ? params.page_size : ragged ? params.k_extent : params.seqlen_k;
  return shape_of(data,
                  {static_cast<uint64_t>(head_dim), static_cast<uint64_t>(rows),
                   static_cast<uint64_t>(params.num_heads_k), static_cast<uint64_t>(ragged ? 1 : params.k_extent), 1},
                  {row_stride, head_stride, batch_stride, 0});
}

PrefillSchedule schedule_of(const AttentionParams& params) {
  PrefillSchedule schedule;
  const int group = params.group();
  // The largest power of two that divides the group, of those that a tile has room for.
  schedule.pack = std::min(group & -group, kTileRows);
  schedule.groups_per_kv_head = group / schedule.pack;
  schedule.num_groups = params.num_heads / schedule.pack;
  const int64_t query_tiles = (static_cast<int64_t>(params.seqlen_q) * schedule.pack + kTileRows - 1) / kTileRows;
  const int64_t stripes = static_cast<int64_t>(params.batch) * schedule.num_groups * params.num_splits;
  schedule.num_query_tiles = static_cast<int>(query_tiles);
  schedule.num_stripes = static_cast<int>(stripes);
  schedule.stripes_per_section = static_cast<int>(std::min<int64_t>(
      stripes, static_cast<int64_t>(kKvHeadsPerSection) * schedule.groups_per_kv_head * params.num_splits));
  schedule.num_tiles = static_cast<int>(std::min<int64_t>(query_tiles * stripes, INT32_MAX));
  // A persistent grid evens out tiles of one length, or of lengths that fall steadily.
  const bool equal_lengths = params.cu_seqlens_q == nullptr && params.seqused_q == nullptr &&
                             params.cu_seqlens_k == nullptr && params.seqused_k == nullptr;
  schedule.persistent = equal_lengths || params.batch == 1;
  const int page_size = params.page_size;
  schedule.gather =
      params.page_table != nullptr && (params.leftpad_k != nullptr || page_size < kLeastBoxRows ||
                                       (page_size % kMostTileKeys != 0 && kMostTileKeys % page_size != 0));
  return schedule;
}

// Whether the Hopper kernels take this step 2: tensor-core work of 16 bits, tensors that the copy engine takes.
bool prefill_takes(const AttentionParams& params, const PrefillSchedule& schedule) {
  if (params.dtype == DType::kF8E4M3 || params.seqlen_k == 0 || params.k_extent == 0) return false;
  if (schedule.num_tiles == INT32_MAX || params.total_q > INT32_MAX || params.k_extent > INT32_MAX) return false;
  return tensor_map_fits(queries_shape(params, schedule.pack)) && tensor_map_fits(keys_shape(params)) &&
         tensor_map_fits(values_shape(params));
}

Status attend(const AttentionParams& params, Stream stream) {
  if (has_wide_values(params)) return attend_wide_values(params, stream);
  if (few_packed_rows(params)) return attend_grouped_heads(params, stream);
  const PrefillSchedule schedule = schedule_of(params);
  if (!prefill_takes(params, schedule)) return attend_query_tiles(params, stream);
  if (params.head_dim <= 64 && params.head_dim_v <= 64) return prefill_h64(params, schedule, stream);
  if (params.head_dim <= 128 && params.head_dim_v <= 128) return prefill_h128(params, schedule, stream);
  if (params.head_dim <= 192 && params.head_dim_v <= 128) return prefill_h192(params, schedule, stream);
  return prefill_h256(params, schedule, stream);
}

}  // namespace

TensorMapShape queries_shape(const AttentionParams& params, int pack) {
  const bool ragged = params.cu_seqlens_q != nullptr;
  return shape_of(params.q,
                  {static_cast<uint64_t>(params.head_dim), static_cast<uint64_t>(pack),
                   static_cast<uint64_t>(ragged ? params.total_q : params.seqlen_q),
                   static_cast<uint64_t>(params.num_heads / pack), static_cast<uint64_t>(ragged ? 1 : params.batch)},
                  {params.q_head_stride, params.q_row_stride, pack * params.q_head_stride, params.q_batch_stride});
}

TensorMapShape keys_shape(const AttentionParams& params) {
  return cache_shape(params, params.k, params.head_dim, params.k_batch_stride, params.k_row_stride,
                     params.k_head_stride);
}

TensorMapShape values_shape(const AttentionParams& params) {
  return cache_shape(params, params.v, params.head_dim_v, params.v_batch_stride, params.v_row_stride,
                     params.v_head_stride);
}

Status flash_attention_most_merged_splits(int* most) {
  *most = kMostMergedSplits;
  return OkStatus();
}

Status flash_attention_forward(const AttentionParams& given, Stream stream) {
  if (given.k_new != nullptr) SGL_RETURN_IF_ERROR(append_new_keys(given, stream));
  const AttentionParams params = with_rotated_queries(given);
  SGL_RETURN_IF_ERROR(attend(params, stream));
  return params.num_partials > 1 ? combine_splits(params, stream) : OkStatus();
}

}  // namespace sgl_kernel::SGL_TARGET
