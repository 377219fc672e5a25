#include "kernels/attention/flash_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention/flash_attention_indices.h"
#include "kernels/attention/flash_attention_params.h"
#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(flash_attention_forward);
SGL_DECLARE_TARGETS(flash_attention_most_merged_splits);

namespace {

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kHeadDimStep = 8;  // of f16: 16 bytes
constexpr int64_t kFp8HeadDimStep = 16;
constexpr int64_t kAlignment = 16;  // bytes of one asynchronous copy

using OptionalTensor = std::optional<TensorView>;

// The arguments that are checked, by their schema's names.
struct Arguments {
  const TensorView &out, &softmax_lse, &out_accum, &softmax_lse_accum, &rotated_q, &q, &k, &v;
  const OptionalTensor &k_new, &v_new, &q_v, &cu_seqlens_q, &cu_seqlens_k, &cu_seqlens_k_new, &seqused_q, &seqused_k;
  const OptionalTensor &page_table, &kv_batch_idx, &leftpad_k, &rotary_cos, &rotary_sin, &seqlens_rotary;
  const OptionalTensor &q_descale, &k_descale, &v_descale, &sinks;

  bool is_fp8() const { return q.dtype() == DType::kF8E4M3; }
};

// Rows, heads and the last dimension, of a tensor with or without a batch dimension in front.
int64_t row_stride(const TensorView& tensor) { return tensor.stride(-3); }
int64_t head_stride(const TensorView& tensor) { return tensor.stride(-2); }
int64_t batch_stride(const TensorView& tensor) { return tensor.rank() == 4 ? tensor.stride(0) : 0; }

const int32_t* indices(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->data<const int32_t>() : nullptr;
}

// An index vector of `extent` elements on q's device.
void check_indices(Check& check, const char* name, const OptionalTensor& tensor, int64_t extent, const TensorView& q) {
  if (!tensor.has_value()) return;
  check.dtype(name, *tensor, {DType::kI32})
      .shape(name, *tensor, {extent}, "of the batch")
      .contiguous(name, *tensor)
      .same_device({{"q", q}, {name, *tensor}});
}

void check_head_dim(Check& check, const char* name, int64_t head_dim, int64_t most, bool is_fp8) {
  check.that(head_dim > 0 && head_dim <= most && head_dim % (is_fp8 ? kFp8HeadDimStep : kHeadDimStep) == 0, name,
             head_dim,
             is_fp8                    ? "a multiple of 16, from 16 to 256"
             : most == kMostWideValues ? "a multiple of 8, from 8 to 512"
                                       : "a multiple of 8, from 8 to 256");
}

int64_t batch_of(const Arguments& a) { return a.cu_seqlens_q.has_value() ? a.cu_seqlens_q->size(0) - 1 : a.q.size(0); }

Status check_queries(const Arguments& a) {
  Check check("fwd");
  const int rank = a.cu_seqlens_q.has_value() ? 3 : 4;
  const bool on_cpu = a.q.device().is_cpu();
  check.rank("q", a.q, rank);
  if (a.cu_seqlens_q.has_value()) check.rank("cu_seqlens_q", *a.cu_seqlens_q, 1);
  if (on_cpu) {
    check.dtype("q", a.q, {DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kF32});
  } else {
    check.dtype("q", a.q, {DType::kF16, DType::kBF16, DType::kF8E4M3});
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (a.cu_seqlens_q.has_value()) {
    check.that(a.cu_seqlens_q->size(0) > 0, "cu_seqlens_q.shape[0]", a.cu_seqlens_q->size(0), "the batch plus 1");
    SGL_RETURN_IF_ERROR(check.status());
  }
  const int64_t batch = batch_of(a), num_heads = a.q.size(-2);
  check_indices(check, "cu_seqlens_q", a.cu_seqlens_q, batch + 1, a.q);
  check_indices(check, "seqused_q", a.seqused_q, batch, a.q);
  check_head_dim(check, "q.shape[-1]", a.q.size(-1), kMaxHeadDim, a.is_fp8());
  check.that(num_heads > 0, "q.shape[-2]", num_heads, "at least 1");
  check.dense_last_dim("q", a.q);
  if (!on_cpu) check.aligned("q", a.q, kAlignment);
  return check.status();
}

Status check_keys(const Arguments& a) {
  Check check("fwd");
  const bool paged = a.page_table.has_value(), ragged = a.cu_seqlens_k.has_value();
  const bool on_cpu = a.q.device().is_cpu();
  const int64_t batch = batch_of(a), head_dim = a.q.size(-1);
  check.that(!(paged && ragged), "cu_seqlens_k", "is given with page_table", "one of them at most");
  check.rank("k", a.k, ragged ? 3 : 4).rank("v", a.v, ragged ? 3 : 4);
  if (paged) check.rank("page_table", *a.page_table, 2);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t num_heads_k = a.k.size(-2);
  check.same_dtype("k", a.k, "q", a.q).dense_last_dim("k", a.k);
  check.that(num_heads_k > 0 && a.q.size(-2) % std::max<int64_t>(num_heads_k, 1) == 0, "k.shape[-2]", num_heads_k,
             "a divisor of q.shape[-2]");
  if (ragged) {
    check.shape("k", a.k, {Check::kAny, num_heads_k, head_dim}, "q.shape[-1]");
  } else {
    check.shape("k", a.k, {Check::kAny, Check::kAny, num_heads_k, head_dim}, "q.shape[-1]");
  }
  if (!on_cpu) check.aligned("k", a.k, kAlignment);
  const int64_t head_dim_v = a.v.size(-1);
  check.same_dtype("v", a.v, "q", a.q).dense_last_dim("v", a.v);
  if (ragged) {
    check.shape("v", a.v, {a.k.size(0), num_heads_k, head_dim_v}, "k.shape[:-1]");
  } else {
    check.shape("v", a.v, {a.k.size(0), a.k.size(1), num_heads_k, head_dim_v}, "k.shape[:-1]");
  }
  const bool may_be_wide = head_dim <= kMostHeadDimWithWide && !a.is_fp8();
  check_head_dim(check, "v.shape[-1]", head_dim_v, may_be_wide ? kMostWideValues : kMostNarrowValues, a.is_fp8());
  if (!on_cpu) check.aligned("v", a.v, kAlignment);
  check.same_device({{"q", a.q}, {"k", a.k}, {"v", a.v}});
  check_indices(check, "cu_seqlens_k", a.cu_seqlens_k, batch + 1, a.q);
  check_indices(check, "seqused_k", a.seqused_k, batch, a.q);
  check_indices(check, "leftpad_k", a.leftpad_k, batch, a.q);
  check_indices(check, "kv_batch_idx", a.kv_batch_idx, batch, a.q);
  if (paged) {
    check.dtype("page_table", *a.page_table, {DType::kI32})
        .dense_last_dim("page_table", *a.page_table)
        .same_device({{"q", a.q}, {"page_table", *a.page_table}})
        .that(a.k.size(1) > 0, "k.shape[1]", a.k.size(1), "the page size, at least 1");
  }
  if (!ragged && !a.kv_batch_idx.has_value()) {
    const int64_t cache_batch = paged ? a.page_table->size(0) : a.k.size(0);
    check.that(cache_batch == batch, paged ? "page_table.shape[0]" : "k.shape[0]", cache_batch,
               "the batch (without kv_batch_idx)");
  }
  check.that(!(ragged && a.kv_batch_idx.has_value()), "kv_batch_idx", "is given with cu_seqlens_k",
             "one of them at most");
  if (a.sinks.has_value()) {
    check.dtype("sinks", *a.sinks, {DType::kF32, DType::kF16, DType::kBF16})
        .shape("sinks", *a.sinks, {a.q.size(-2)}, "q.shape[-2]")
        .contiguous("sinks", *a.sinks)
        .same_device({{"q", a.q}, {"sinks", *a.sinks}});
  }
  return check.status();
}

Status check_queries_of_values(const Arguments& a) {
  Check check("fwd");
  if (!a.q_v.has_value()) return OkStatus();
  const TensorView& q_v = *a.q_v;
  check.that(!a.is_fp8(), "q_v", "is given with q of float8_e4m3fn", "float16 or bfloat16");
  check.that(a.q.size(-1) <= kMostHeadDimWithWide, "q.shape[-1]", a.q.size(-1), "at most 64 with q_v");
  check.rank("q_v", q_v, a.q.rank());
  SGL_RETURN_IF_ERROR(check.status());
  if (q_v.rank() == 3) {
    check.shape("q_v", q_v, {a.q.size(0), a.q.size(1), a.v.size(-1)}, "q.shape[:-1], v.shape[-1]");
  } else {
    check.shape("q_v", q_v, {a.q.size(0), a.q.size(1), a.q.size(2), a.v.size(-1)}, "q.shape[:-1], v.shape[-1]");
  }
  check.same_dtype("q_v", q_v, "q", a.q).dense_last_dim("q_v", q_v).same_device({{"q", a.q}, {"q_v", q_v}});
  if (!a.q.device().is_cpu()) check.aligned("q_v", q_v, kAlignment);
  return check.status();
}

Status check_scales(const Arguments& a) {
  Check check("fwd");
  const int64_t batch = batch_of(a), num_heads_k = a.k.size(-2);
  const auto check_one = [&](const char* name, const OptionalTensor& scales) {
    if (!scales.has_value()) return;
    check.that(a.is_fp8(), name, "is given with q of another dtype", "q, k and v of float8_e4m3fn with it")
        .dtype(name, *scales, {DType::kF32})
        .shape(name, *scales, {batch, num_heads_k}, "the batch, k.shape[-2]")
        .same_device({{"q", a.q}, {name, *scales}});
  };
  check_one("q_descale", a.q_descale);
  check_one("k_descale", a.k_descale);
  check_one("v_descale", a.v_descale);
  return check.status();
}

Status check_new_keys(const Arguments& a) {
  Check check("fwd");
  const int64_t batch = batch_of(a), num_heads_k = a.k.size(-2);
  check.that(a.k_new.has_value() == a.v_new.has_value(), "v_new", "and k_new do not go together", "both or neither");
  check.that(a.rotary_cos.has_value() == a.rotary_sin.has_value(), "rotary_sin", "and rotary_cos do not go together",
             "both or neither");
  check.that(!a.rotary_cos.has_value() || a.k_new.has_value(), "rotary_cos", "is given without k_new",
             "k_new and v_new with it");
  check.that(!a.seqlens_rotary.has_value() || a.rotary_cos.has_value(), "seqlens_rotary", "is given without rotary_cos",
             "rotary_cos and rotary_sin with it");
  check.that(!a.cu_seqlens_k_new.has_value() || a.k_new.has_value(), "cu_seqlens_k_new", "is given without k_new",
             "k_new and v_new with it");
  if (!check.ok() || !a.k_new.has_value()) return check.status();
  check.that(a.seqused_k.has_value(), "k_new", "is given without seqused_k",
             "seqused_k with it (the keys that the cache holds already)");
  check.that(!a.cu_seqlens_k.has_value(), "k_new", "is given with cu_seqlens_k", "a dense or paged cache");
  const bool ragged = a.cu_seqlens_k_new.has_value();
  check.rank("k_new", *a.k_new, ragged ? 3 : 4).rank("v_new", *a.v_new, ragged ? 3 : 4);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t head_dim = a.q.size(-1), head_dim_v = a.v.size(-1);
  if (ragged) {
    check.shape("k_new", *a.k_new, {Check::kAny, num_heads_k, head_dim}, "k.shape[-2:]")
        .shape("v_new", *a.v_new, {a.k_new->size(0), num_heads_k, head_dim_v}, "k_new.shape[:-1], v.shape[-1]");
  } else {
    check.shape("k_new", *a.k_new, {batch, Check::kAny, num_heads_k, head_dim}, "the batch, k.shape[-2:]")
        .shape("v_new", *a.v_new, {batch, a.k_new->size(1), num_heads_k, head_dim_v}, "k_new.shape[:-1], v.shape[-1]");
  }
  check_indices(check, "cu_seqlens_k_new", a.cu_seqlens_k_new, batch + 1, a.q);
  check.same_dtype("k_new", *a.k_new, "q", a.q)
      .same_dtype("v_new", *a.v_new, "q", a.q)
      .dense_last_dim("k_new", *a.k_new)
      .dense_last_dim("v_new", *a.v_new)
      .same_device({{"q", a.q}, {"k_new", *a.k_new}, {"v_new", *a.v_new}})
      .no_internal_overlap("k", a.k)
      .no_internal_overlap("v", a.v)
      .no_overlap("k", a.k, "v", a.v)
      .no_overlap("k", a.k, "q", a.q)
      .no_overlap("v", a.v, "q", a.q)
      .no_overlap("k", a.k, "k_new", *a.k_new)
      .no_overlap("k", a.k, "v_new", *a.v_new)
      .no_overlap("v", a.v, "k_new", *a.k_new)
      .no_overlap("v", a.v, "v_new", *a.v_new);
  if (a.rotary_cos.has_value()) {
    check.rank("rotary_cos", *a.rotary_cos, 2);
    SGL_RETURN_IF_ERROR(check.status());
    const int64_t rotary_dim = 2 * a.rotary_cos->size(1);
    check.that(rotary_dim > 0 && rotary_dim <= head_dim, "rotary_cos.shape[1]", rotary_dim / 2,
               "from 1 to half of q.shape[-1]");
    check.that(a.rotary_cos->size(0) > 0, "rotary_cos.shape[0]", a.rotary_cos->size(0), "at least 1 position");
    check.same_shape("rotary_sin", *a.rotary_sin, "rotary_cos", *a.rotary_cos)
        .same_dtype("rotary_cos", *a.rotary_cos, "q", a.q)
        .same_dtype("rotary_sin", *a.rotary_sin, "q", a.q)
        .contiguous("rotary_cos", *a.rotary_cos)
        .contiguous("rotary_sin", *a.rotary_sin)
        .same_device({{"q", a.q}, {"rotary_cos", *a.rotary_cos}, {"rotary_sin", *a.rotary_sin}})
        .same_shape("rotated_q", a.rotated_q, "q", a.q)
        .same_dtype("rotated_q", a.rotated_q, "q", a.q)
        .contiguous("rotated_q", a.rotated_q)
        .same_device({{"q", a.q}, {"rotated_q", a.rotated_q}});
    if (!a.q.device().is_cpu()) check.aligned("rotated_q", a.rotated_q, kAlignment);
    check_indices(check, "seqlens_rotary", a.seqlens_rotary, batch, a.q);
  }
  return check.status();
}

// After the inputs: the caller gives those, and most often out's shape follows from them.
Status check_results(const Arguments& a) {
  Check check("fwd");
  const bool ragged = a.cu_seqlens_q.has_value();
  const int64_t batch = batch_of(a), num_heads = a.q.size(-2), head_dim_v = a.v.size(-1);
  check.rank("out", a.out, ragged ? 3 : 4);
  SGL_RETURN_IF_ERROR(check.status());
  if (ragged) {
    check.shape("out", a.out, {a.q.size(0), num_heads, head_dim_v}, "q.shape[:-1], v.shape[-1]")
        .shape("softmax_lse", a.softmax_lse, {num_heads, a.q.size(0)}, "q.shape, heads before rows");
  } else {
    check.shape("out", a.out, {batch, a.q.size(1), num_heads, head_dim_v}, "q.shape[:-1], v.shape[-1]")
        .shape("softmax_lse", a.softmax_lse, {batch, num_heads, a.q.size(1)}, "q.shape, heads before rows");
  }
  if (a.is_fp8()) {
    check.dtype("out", a.out, {DType::kBF16});
  } else {
    check.same_dtype("out", a.out, "q", a.q);
  }
  check.dense_last_dim("out", a.out)
      .dtype("softmax_lse", a.softmax_lse, {DType::kF32})
      .contiguous("softmax_lse", a.softmax_lse)
      .same_device({{"q", a.q}, {"out", a.out}, {"softmax_lse", a.softmax_lse}});
  if (!a.q.device().is_cpu()) check.aligned("out", a.out, kAlignment);
  check.no_internal_overlap("out", a.out)
      .no_overlap("out", a.out, "q", a.q)
      .no_overlap("out", a.out, "k", a.k)
      .no_overlap("out", a.out, "v", a.v)
      .no_overlap("softmax_lse", a.softmax_lse, "out", a.out);
  if (a.q_v.has_value()) check.no_overlap("out", a.out, "q_v", *a.q_v);
  return check.status();
}

int64_t num_partials_of(const Arguments& a) {
  return a.out_accum.rank() > 0 ? std::max<int64_t>(a.out_accum.size(0), 1) : 1;
}

// Without num_splits each partial result is of one split. `most_merged` is of the call: 1 where it has many rows.
Status check_splits(const Arguments& a, int64_t num_splits, int64_t most_merged) {
  Check check("fwd");
  const int64_t partials = num_partials_of(a);
  check.that(num_splits >= 0 && num_splits <= kMaxSplits, "num_splits", num_splits, "from 0 to 256");
  check.that(partials <= kMaxSplits, "out_accum.shape[0]", partials, "at most 256");
  if (a.q.device().is_cpu()) return check.status();  // which does not split
  check.that(num_splits == 0 || num_splits == partials || partials_of(num_splits, most_merged) == partials,
             "out_accum.shape[0]", partials, "fwd_num_partials() of num_splits");
  if (!check.ok() || partials <= 1) return check.status();
  const int64_t batch = batch_of(a), num_heads = a.q.size(-2), head_dim_v = a.out.size(-1);
  if (a.cu_seqlens_q.has_value()) {
    check.shape("out_accum", a.out_accum, {partials, num_heads, a.q.size(0), head_dim_v}, "of the partial results")
        .shape("softmax_lse_accum", a.softmax_lse_accum, {partials, num_heads, a.q.size(0)}, "of the partial results");
  } else {
    check
        .shape("out_accum", a.out_accum, {partials, batch, num_heads, a.q.size(1), head_dim_v},
               "of the partial results")
        .shape("softmax_lse_accum", a.softmax_lse_accum, {partials, batch, num_heads, a.q.size(1)},
               "of the partial results");
  }
  check.dtype("out_accum", a.out_accum, {DType::kF32})
      .dtype("softmax_lse_accum", a.softmax_lse_accum, {DType::kF32})
      .contiguous("out_accum", a.out_accum)
      .contiguous("softmax_lse_accum", a.softmax_lse_accum)
      .same_device({{"q", a.q}, {"out_accum", a.out_accum}, {"softmax_lse_accum", a.softmax_lse_accum}})
      .no_overlap("out_accum", a.out_accum, "out", a.out)
      .no_overlap("out_accum", a.out_accum, "softmax_lse_accum", a.softmax_lse_accum);
  check.aligned("out_accum", a.out_accum, kAlignment);
  return check.status();
}

AttentionScales scales_of(const OptionalTensor& scales) {
  if (!scales.has_value()) return {};
  return {scales->data<const float>(), scales->stride(0), scales->stride(1)};
}

// The tensors as pointers and strides; lengths and scalars follow in fwd().
AttentionParams pointers_of(const Arguments& a) {
  AttentionParams params;
  params.dtype = a.q.dtype();
  params.q = a.q.data();
  params.q_batch_stride = batch_stride(a.q);
  params.q_row_stride = row_stride(a.q);
  params.q_head_stride = head_stride(a.q);
  params.cu_seqlens_q = indices(a.cu_seqlens_q);
  params.seqused_q = indices(a.seqused_q);
  if (a.q_v.has_value()) {
    params.q_v = a.q_v->data();
    params.q_v_batch_stride = batch_stride(*a.q_v);
    params.q_v_row_stride = row_stride(*a.q_v);
    params.q_v_head_stride = head_stride(*a.q_v);
  }

  params.k = a.k.data();
  params.k_batch_stride = batch_stride(a.k);
  params.k_row_stride = row_stride(a.k);
  params.k_head_stride = head_stride(a.k);
  params.k_extent = a.k.size(0);
  params.v = a.v.data();
  params.v_batch_stride = batch_stride(a.v);
  params.v_row_stride = row_stride(a.v);
  params.v_head_stride = head_stride(a.v);
  params.cu_seqlens_k = indices(a.cu_seqlens_k);
  params.seqused_k = indices(a.seqused_k);
  params.leftpad_k = indices(a.leftpad_k);
  params.kv_batch_idx = indices(a.kv_batch_idx);
  if (a.page_table.has_value()) {
    params.page_table = indices(a.page_table);
    params.page_table_stride = a.page_table->stride(0);
    params.page_size = static_cast<int>(a.k.size(1));
  }

  if (a.k_new.has_value()) {
    params.k_new = a.k_new->data();
    params.k_new_batch_stride = batch_stride(*a.k_new);
    params.k_new_row_stride = row_stride(*a.k_new);
    params.k_new_head_stride = head_stride(*a.k_new);
    params.v_new = a.v_new->data();
    params.v_new_batch_stride = batch_stride(*a.v_new);
    params.v_new_row_stride = row_stride(*a.v_new);
    params.v_new_head_stride = head_stride(*a.v_new);
    params.cu_seqlens_k_new = indices(a.cu_seqlens_k_new);
    params.seqlen_k_new = static_cast<int>(a.k_new->size(-3));
  }
  if (a.rotary_cos.has_value()) {
    params.rotary_cos = a.rotary_cos->data();
    params.rotary_sin = a.rotary_sin->data();
    params.seqlens_rotary = indices(a.seqlens_rotary);
    params.rotary_dim = static_cast<int>(2 * a.rotary_cos->size(1));
    params.rotary_positions = a.rotary_cos->size(0);
    params.rotated_q = a.rotated_q.data();
  }

  params.out = a.out.data();
  params.out_batch_stride = batch_stride(a.out);
  params.out_row_stride = row_stride(a.out);
  params.out_head_stride = head_stride(a.out);
  params.lse = a.softmax_lse.data<float>();
  params.lse_head_stride = a.softmax_lse.size(-1);
  params.lse_batch_stride = a.softmax_lse.rank() == 3 ? a.softmax_lse.size(1) * a.softmax_lse.size(2) : 0;
  if (!a.q.device().is_cpu() && num_partials_of(a) > 1) {
    params.num_partials = static_cast<int>(num_partials_of(a));
    params.out_accum = a.out_accum.data<float>();
    params.lse_accum = a.softmax_lse_accum.data<float>();
    params.lse_accum_head_stride = params.lse_head_stride;
    params.lse_accum_batch_stride = params.lse_batch_stride;
    params.lse_accum_split_stride = a.softmax_lse.num_elements();
    params.out_accum_head_stride = params.lse_head_stride * a.out.size(-1);
    params.out_accum_batch_stride = params.lse_batch_stride * a.out.size(-1);
    params.out_accum_split_stride = params.lse_accum_split_stride * a.out.size(-1);
  }
  params.q_descale = scales_of(a.q_descale);
  params.k_descale = scales_of(a.k_descale);
  params.v_descale = scales_of(a.v_descale);
  if (a.sinks.has_value()) {
    params.sinks = a.sinks->data();
    params.sinks_dtype = a.sinks->dtype();
  }
  return params;
}

}  // namespace

Status fwd(TensorView out, TensorView softmax_lse, TensorView out_accum, TensorView softmax_lse_accum,
           TensorView rotated_q, TensorView q, TensorView k, TensorView v, const OptionalTensor& k_new,
           const OptionalTensor& v_new, const OptionalTensor& q_v, const OptionalTensor& given_out,
           const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
           const OptionalTensor& cu_seqlens_k_new, const OptionalTensor& seqused_q, const OptionalTensor& seqused_k,
           std::optional<int64_t> max_seqlen_q, std::optional<int64_t> max_seqlen_k, const OptionalTensor& page_table,
           const OptionalTensor& kv_batch_idx, const OptionalTensor& leftpad_k, const OptionalTensor& rotary_cos,
           const OptionalTensor& rotary_sin, const OptionalTensor& seqlens_rotary, const OptionalTensor& q_descale,
           const OptionalTensor& k_descale, const OptionalTensor& v_descale, std::optional<double> softmax_scale,
           bool is_causal, int64_t window_size_left, int64_t window_size_right, int64_t attention_chunk, double softcap,
           bool is_rotary_interleaved, const OptionalTensor& /*scheduler_metadata*/, int64_t num_splits,
           std::optional<bool> /*pack_gqa*/, int64_t sm_margin, const OptionalTensor& sinks, Stream stream) {
  // clang-format off
  const Arguments arguments = {
      out, softmax_lse, out_accum, softmax_lse_accum, rotated_q, q, k, v, k_new, v_new, q_v, cu_seqlens_q, cu_seqlens_k,
      cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin,
      seqlens_rotary, q_descale, k_descale, v_descale, sinks};
  // clang-format on
  SGL_RETURN_IF_ERROR(check_queries(arguments));
  SGL_RETURN_IF_ERROR(check_keys(arguments));
  SGL_RETURN_IF_ERROR(check_queries_of_values(arguments));
  SGL_RETURN_IF_ERROR(check_scales(arguments));
  SGL_RETURN_IF_ERROR(check_new_keys(arguments));
  SGL_RETURN_IF_ERROR(check_results(arguments));

  const int64_t seqlen_q = cu_seqlens_q.has_value() ? max_seqlen_q.value_or(q.size(0)) : q.size(1);
  const int64_t seqlen_k = page_table.has_value()     ? page_table->size(1) * k.size(1)
                           : cu_seqlens_k.has_value() ? max_seqlen_k.value_or(k.size(0))
                                                      : k.size(1);
  Check extents("fwd");  // before they are multiplied
  extents.that(seqlen_q >= 0 && seqlen_q <= INT32_MAX, "max_seqlen_q", seqlen_q, "from 0 to 2^31 - 1");
  extents.that(seqlen_k >= 0 && seqlen_k <= INT32_MAX, "max_seqlen_k", seqlen_k, "from 0 to 2^31 - 1");
  SGL_RETURN_IF_ERROR(extents.status());
  int most_merged = 1;
  if (merges_splits(seqlen_q, q.size(-2) / k.size(-2), v.size(-1), q_v.has_value())) {
    SGL_RETURN_IF_ERROR(
        internal::dispatch("fwd", flash_attention_most_merged_splits_targets, q.device(), &most_merged));
  }
  SGL_RETURN_IF_ERROR(check_splits(arguments, num_splits, most_merged));
  const double scale = softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
  Check check("fwd");
  check.that(!given_out.has_value() || given_out->data() == out.data(), "out", "is not the result tensor",
             "the same memory");
  check.that(std::max(seqlen_q, q.size(-3)) * q.size(-2) <= INT32_MAX, "q", q.size(-3) * q.size(-2),
             "at most 2^31 - 1 rows and heads in a sequence");
  check.that(!k_new.has_value() || k_new->size(-3) <= INT32_MAX, "k_new.shape[-3]",
             k_new.has_value() ? k_new->size(-3) : 0, "at most 2^31 - 1");
  check.that(std::isfinite(scale) && scale > 0.0, "softmax_scale", scale, "positive and finite");
  check.that(std::isfinite(softcap) && softcap >= 0.0, "softcap", softcap, "finite and at least 0");
  check.that(window_size_left >= -1, "window_size_left", window_size_left, "at least -1");
  check.that(window_size_right >= -1, "window_size_right", window_size_right, "at least -1");
  check.that(attention_chunk >= 0 && attention_chunk <= INT32_MAX, "attention_chunk", attention_chunk,
             "from 0 to 2^31 - 1");
  check.that(sm_margin >= 0, "sm_margin", sm_margin, "at least 0");
  SGL_RETURN_IF_ERROR(check.status());
  if (softmax_lse.empty()) return OkStatus();

  AttentionParams params = pointers_of(arguments);
  params.num_splits = !q.device().is_cpu() && num_splits > 0 ? static_cast<int>(num_splits) : params.num_partials;
  params.batch = static_cast<int>(batch_of(arguments));
  params.seqlen_q = static_cast<int>(seqlen_q);
  params.total_q = q.rank() == 3 ? q.size(0) : q.size(0) * q.size(1);
  params.seqlen_k = static_cast<int>(seqlen_k);
  params.num_heads = static_cast<int>(q.size(-2));
  params.num_heads_k = static_cast<int>(k.size(-2));
  params.head_dim = static_cast<int>(q.size(-1));
  params.head_dim_v = static_cast<int>(v.size(-1));
  params.softmax_scale = static_cast<float>(scale);
  params.softcap = static_cast<float>(softcap);
  params.rotary_interleaved = is_rotary_interleaved;
  params.attention_chunk = static_cast<int>(attention_chunk);
  // A window that reaches past either end of the keys is none.
  params.window_left = window_size_left >= seqlen_k - 1 ? -1 : static_cast<int>(window_size_left);
  params.window_right =
      window_size_right >= seqlen_q - 1 && window_size_right > 0 ? -1 : static_cast<int>(window_size_right);
  if (is_causal) params.window_right = 0;
  params.rotate_q_by_row = params.window_left >= 0 || params.window_right >= 0 || params.attention_chunk > 0;
  if (params.batch == 0 || params.seqlen_q == 0) return OkStatus();
  const int64_t cache_batch = page_table.has_value() ? page_table->size(0) : k.size(0);
  SGL_RETURN_IF_ERROR(check_attention_indices(params, cache_batch, q.device(), stream));
  return internal::dispatch("fwd", flash_attention_forward_targets, q.device(), params, stream);
}

int64_t fwd_most_merged_splits(Device device) {
  int most = 1;
  return internal::dispatch("fwd", flash_attention_most_merged_splits_targets, device, &most).ok() ? most : 1;
}

}  // namespace sgl_kernel
