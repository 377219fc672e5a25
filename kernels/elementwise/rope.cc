#include "kernels/elementwise/rope.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/elementwise/rope_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(rope);

namespace {

constexpr int64_t kMaxHeadDim = 1024;  // a head is one block's work at most

Heads heads_of(const TensorView& tensor) { return {tensor.data(), tensor.stride(0), tensor.stride(1)}; }

Indices indices_of(const TensorView& tensor) { return {tensor.data(), tensor.dtype() == DType::kI64}; }

// The very same elements: what "in place" means.
bool same_memory(const TensorView& a, const TensorView& b) {
  return a.data() == b.data() && a.stride(0) == b.stride(0) && a.stride(1) == b.stride(1);
}

void check_table(Check& check, const TensorView& cos_sin_cache, int64_t head_dim) {
  check.rank("cos_sin_cache", cos_sin_cache, 2).dense_last_dim("cos_sin_cache", cos_sin_cache);
  if (!check.ok()) return;
  const int64_t rotary_dim = cos_sin_cache.size(1);
  check.that(rotary_dim % 2 == 0 && rotary_dim <= head_dim, "cos_sin_cache.shape[-1]", rotary_dim,
             "an even rotary_dim of at most head_dim");
  check.that(head_dim <= kMaxHeadDim, "head_dim", head_dim, "at most 1024");
}

void check_output(Check& check, const char* name, const TensorView& output, const char* input_name,
                  const TensorView& input) {
  check.same_dtype(name, output, input_name, input)
      .same_shape(name, output, input_name, input)
      .dense_last_dim(name, output)
      .no_internal_overlap(name, output);
  if (check.ok() && !same_memory(output, input)) check.no_overlap(name, output, input_name, input);
}

// A [positions.shape, H * head_size] or [positions.shape, H, head_size] tensor as [T, H, head_size].
void check_heads(Check& check, const char* name, const TensorView& tensor, const TensorView& positions,
                 int64_t head_size, TensorView* heads) {
  const int lead = positions.rank();
  check.rank(name, tensor, lead + 1, lead + 2).dense_last_dim(name, tensor);
  if (!check.ok()) return;
  bool same_tokens = true;
  for (int dim = 0; dim < lead; ++dim) same_tokens = same_tokens && tensor.size(dim) == positions.size(dim);
  if (!same_tokens) {
    const std::string is = "has shape " + shape_string(tensor);
    const std::string expected = "leading dimensions " + shape_string(positions) + " (= positions.shape)";
    check.that(false, name, is.c_str(), expected.c_str());
    return;
  }
  const bool flat = tensor.rank() == lead + 1;
  const int64_t width = tensor.size(-1);
  if (flat ? width % head_size != 0 : width != head_size) {
    const std::string is = "has shape " + shape_string(tensor);
    const std::string expected =
        std::string(flat ? "a multiple of " : "") + "head_size, " + std::to_string(head_size) + ", as last extent";
    check.that(false, name, is.c_str(), expected.c_str());
  }
  check.no_internal_overlap(name, tensor);
  if (!check.ok()) return;
  // The tokens' common stride: that of the rows if the heads are one dimension, else of the dimensions before them.
  const int64_t num_heads = flat ? width / head_size : tensor.size(-2);
  int64_t token_stride = tensor.stride(lead - 1);
  if (lead == 2 && tensor.size(1) == 1) token_stride = tensor.stride(0);
  if (lead == 2 && tensor.size(0) > 1 && tensor.size(1) > 1) {
    check.that(tensor.stride(0) == tensor.stride(1) * tensor.size(1), name, "has batch and sequence strides apart",
               "tokens that one stride describes");
  }
  const int64_t shape[3] = {positions.num_elements(), num_heads, head_size};
  const int64_t strides[3] = {token_stride, flat ? head_size : tensor.stride(-2), 1};
  *heads = TensorView(tensor.data(), tensor.dtype(), 3, shape, strides, tensor.device());
}

}  // namespace

Status apply_rope_pos_ids_cos_sin_cache(TensorView q, TensorView k, TensorView q_rope, TensorView k_rope,
                                        TensorView cos_sin_cache, TensorView pos_ids, bool interleave, bool enable_pdl,
                                        const std::optional<TensorView>& v, const std::optional<TensorView>& k_buffer,
                                        const std::optional<TensorView>& v_buffer,
                                        const std::optional<TensorView>& kv_cache_loc, Stream stream) {
  Check check("apply_rope_pos_ids_cos_sin_cache");
  check.rank("q", q, 3).rank("k", k, 3).dtype("q", q, {DType::kF16, DType::kBF16, DType::kF32});
  SGL_RETURN_IF_ERROR(check.status());
  check.same_dtype("k", k, "q", q)
      .shape("k", k, {q.size(0), Check::kAny, q.size(2)}, "q.shape[0], *, q.shape[2]")
      .dense_last_dim("q", q)
      .dense_last_dim("k", k);
  check_output(check, "q_rope", q_rope, "q", q);
  check_output(check, "k_rope", k_rope, "k", k);
  check.no_overlap("q_rope", q_rope, "k", k)
      .no_overlap("k_rope", k_rope, "q", q)
      .no_overlap("q_rope", q_rope, "k_rope", k_rope)
      .dtype("cos_sin_cache", cos_sin_cache, {DType::kF32})
      .dtype("pos_ids", pos_ids, {DType::kI32, DType::kI64})
      .shape("pos_ids", pos_ids, {q.size(0)}, "q.shape[0]")
      .contiguous("pos_ids", pos_ids)
      .same_device({{"q", q},
                    {"k", k},
                    {"q_rope", q_rope},
                    {"k_rope", k_rope},
                    {"cos_sin_cache", cos_sin_cache},
                    {"pos_ids", pos_ids}});
  check_table(check, cos_sin_cache, q.size(2));
  for (const NamedTensor& rotated : {NamedTensor{"q_rope", q_rope}, NamedTensor{"k_rope", k_rope}}) {
    check.no_overlap(rotated.name, rotated.tensor, "cos_sin_cache", cos_sin_cache)
        .no_overlap(rotated.name, rotated.tensor, "pos_ids", pos_ids);
  }
  const bool writes_cache = v.has_value();
  check.that(writes_cache == k_buffer.has_value() && writes_cache == v_buffer.has_value() &&
                 writes_cache == kv_cache_loc.has_value(),
             "v, k_buffer, v_buffer, kv_cache_loc", "are partly given", "all or none of them");
  if (check.ok() && writes_cache) {
    check.same_dtype("v", *v, "q", q)
        .same_shape("v", *v, "k", k)
        .dense_last_dim("v", *v)
        .same_dtype("k_buffer", *k_buffer, "q", q)
        .shape("k_buffer", *k_buffer, {Check::kAny, k.size(1), k.size(2)}, "*, k.shape[1], k.shape[2]")
        .dense_last_dim("k_buffer", *k_buffer)
        .no_internal_overlap("k_buffer", *k_buffer)
        .same_dtype("v_buffer", *v_buffer, "q", q)
        .same_shape("v_buffer", *v_buffer, "k_buffer", *k_buffer)
        .dense_last_dim("v_buffer", *v_buffer)
        .no_internal_overlap("v_buffer", *v_buffer)
        .dtype("kv_cache_loc", *kv_cache_loc, {DType::kI32, DType::kI64})
        .shape("kv_cache_loc", *kv_cache_loc, {q.size(0)}, "q.shape[0]")
        .contiguous("kv_cache_loc", *kv_cache_loc)
        .same_device(
            {{"q", q}, {"v", *v}, {"k_buffer", *k_buffer}, {"v_buffer", *v_buffer}, {"kv_cache_loc", *kv_cache_loc}})
        .no_overlap("k_buffer", *k_buffer, "v_buffer", *v_buffer)
        .no_overlap("q_rope", q_rope, "v", *v)
        .no_overlap("k_rope", k_rope, "v", *v)
        .no_overlap("q_rope", q_rope, "kv_cache_loc", *kv_cache_loc)
        .no_overlap("k_rope", k_rope, "kv_cache_loc", *kv_cache_loc);
    for (const NamedTensor& cache : {NamedTensor{"k_buffer", *k_buffer}, NamedTensor{"v_buffer", *v_buffer}}) {
      for (const NamedTensor& other :
           {NamedTensor{"q", q}, NamedTensor{"k", k}, NamedTensor{"v", *v}, NamedTensor{"q_rope", q_rope},
            NamedTensor{"k_rope", k_rope}, NamedTensor{"cos_sin_cache", cos_sin_cache}, NamedTensor{"pos_ids", pos_ids},
            NamedTensor{"kv_cache_loc", *kv_cache_loc}}) {
        check.no_overlap(cache.name, cache.tensor, other.name, other.tensor);
      }
    }
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (q.empty() && k.empty()) return OkStatus();
  check.in_range("pos_ids", pos_ids, cos_sin_cache.size(0), "cos_sin_cache.shape[0]", stream);
  if (writes_cache) check.in_range("kv_cache_loc", *kv_cache_loc, k_buffer->size(0), "k_buffer.shape[0]", stream);
  SGL_RETURN_IF_ERROR(check.status());

  RopeParams params = {};
  params.operator_name = "apply_rope_pos_ids_cos_sin_cache";
  params.dtype = q.dtype();
  params.num_tokens = q.size(0);
  params.num_q_heads = static_cast<int>(q.size(1));
  params.num_k_heads = static_cast<int>(k.size(1));
  params.head_dim = static_cast<int>(q.size(2));
  params.rotary_dim = static_cast<int>(cos_sin_cache.size(1));
  params.interleave = interleave;
  params.enable_pdl = enable_pdl;
  params.q = heads_of(q);
  params.q_rope = heads_of(q_rope);
  params.k = heads_of(k);
  params.k_rope = heads_of(k_rope);
  if (writes_cache) {
    params.v = heads_of(*v);
    params.k_buffer = heads_of(*k_buffer);
    params.v_buffer = heads_of(*v_buffer);
    params.slots = indices_of(*kv_cache_loc);
  }
  params.positions = indices_of(pos_ids);
  params.cos_sin_cache = cos_sin_cache.data();
  params.cache_dtype = cos_sin_cache.dtype();
  params.cache_stride = cos_sin_cache.stride(0);
  return internal::dispatch(params.operator_name, rope_targets, q.device(), params, stream);
}

Status rotary_embedding(TensorView positions, TensorView query, const std::optional<TensorView>& key, int64_t head_size,
                        TensorView cos_sin_cache, bool is_neox, Stream stream) {
  Check check("rotary_embedding");
  check.dtype("positions", positions, {DType::kI32, DType::kI64})
      .rank("positions", positions, 1, 2)
      .contiguous("positions", positions)
      .that(head_size > 0, "head_size", head_size, "at least 1")
      .dtype("query", query, {DType::kF16, DType::kBF16, DType::kF32});
  SGL_RETURN_IF_ERROR(check.status());
  TensorView query_heads, key_heads;
  check_heads(check, "query", query, positions, head_size, &query_heads);
  if (key.has_value()) {
    check.same_dtype("key", *key, "query", query);
    check_heads(check, "key", *key, positions, head_size, &key_heads);
    check.no_overlap("key", *key, "query", query).same_device({{"query", query}, {"key", *key}});
  }
  check.same_device({{"query", query}, {"positions", positions}, {"cos_sin_cache", cos_sin_cache}})
      .dtype("cos_sin_cache", cos_sin_cache, {DType::kF32, query.dtype()})
      .no_overlap("query", query, "positions", positions)
      .no_overlap("query", query, "cos_sin_cache", cos_sin_cache);
  if (key.has_value()) {
    check.no_overlap("key", *key, "positions", positions).no_overlap("key", *key, "cos_sin_cache", cos_sin_cache);
  }
  check_table(check, cos_sin_cache, head_size);
  SGL_RETURN_IF_ERROR(check.status());
  if (query.empty() && (!key.has_value() || key->empty())) return OkStatus();
  check.in_range("positions", positions, cos_sin_cache.size(0), "cos_sin_cache.shape[0]", stream);
  SGL_RETURN_IF_ERROR(check.status());

  RopeParams params = {};
  params.operator_name = "rotary_embedding";
  params.dtype = query.dtype();
  params.num_tokens = query_heads.size(0);
  params.num_q_heads = static_cast<int>(query_heads.size(1));
  params.num_k_heads = key.has_value() ? static_cast<int>(key_heads.size(1)) : 0;
  params.head_dim = static_cast<int>(head_size);
  params.rotary_dim = static_cast<int>(cos_sin_cache.size(1));
  params.interleave = !is_neox;
  params.enable_pdl = true;
  params.q = params.q_rope = heads_of(query_heads);
  if (key.has_value()) params.k = params.k_rope = heads_of(key_heads);
  params.positions = indices_of(positions);
  params.cos_sin_cache = cos_sin_cache.data();
  params.cache_dtype = cos_sin_cache.dtype();
  params.cache_stride = cos_sin_cache.stride(0);
  return internal::dispatch(params.operator_name, rope_targets, query.device(), params, stream);
}

}  // namespace sgl_kernel
