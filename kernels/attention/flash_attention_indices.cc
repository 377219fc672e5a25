// fwd()'s index tensors are copied to the host, where sequence_of() says the same as in a kernel.
#include "kernels/attention/flash_attention_indices.h"

#include <string>

#include "kernels/base/check.h"

namespace sgl_kernel {
namespace {

std::string element(const char* name, const std::string& i) { return std::string(name) + "[" + i + "]"; }

// The index tensors on the host: params() has pointers to these.
class HostIndices {
 public:
  Status take(const AttentionParams& params, int64_t cache_batch, Device device, Stream stream) {
    params_ = params;
    const int64_t batch = params.batch;
    const struct {
      const int32_t** indices;
      HostCopy* copy;
      int64_t extent;
    } vectors[] = {{&params_.cu_seqlens_q, &cu_seqlens_q_, batch + 1},
                   {&params_.cu_seqlens_k, &cu_seqlens_k_, batch + 1},
                   {&params_.cu_seqlens_k_new, &cu_seqlens_k_new_, batch + 1},
                   {&params_.seqused_q, &seqused_q_, batch},
                   {&params_.seqused_k, &seqused_k_, batch},
                   {&params_.leftpad_k, &leftpad_k_, batch},
                   {&params_.kv_batch_idx, &kv_batch_idx_, batch}};
    for (const auto& vector : vectors) {
      const int64_t dense = 1;
      SGL_RETURN_IF_ERROR(take(vector.indices, 1, &vector.extent, &dense, device, stream, vector.copy));
    }
    const int64_t shape[] = {cache_batch, params.page_table == nullptr ? 0 : params.seqlen_k / params.page_size};
    const int64_t strides[] = {params.page_table_stride, 1};
    return take(&params_.page_table, 2, shape, strides, device, stream, &page_table_);
  }

  const AttentionParams& params() const { return params_; }

 private:
  static Status take(const int32_t** indices, int rank, const int64_t* shape, const int64_t* strides, Device device,
                     Stream stream, HostCopy* copy) {
    if (*indices == nullptr) return OkStatus();
    const TensorView tensor(const_cast<int32_t*>(*indices), DType::kI32, rank, shape, strides, device);
    SGL_RETURN_IF_ERROR(copy->take("fwd", tensor, stream));
    *indices = copy->view().data<const int32_t>();
    return OkStatus();
  }

  AttentionParams params_;
  HostCopy cu_seqlens_q_, cu_seqlens_k_, cu_seqlens_k_new_, seqused_q_, seqused_k_, leftpad_k_, kv_batch_idx_;
  HostCopy page_table_;
};

// From 0 to `total`, each at least the one before it.
void check_starts(Check& check, const char* name, const int32_t* starts, int64_t batch, int64_t total) {
  if (starts == nullptr) return;
  for (int64_t i = 0; i <= batch && check.ok(); ++i) {
    const int64_t least = i > 0 ? starts[i - 1] : 0;
    if (starts[i] >= least && starts[i] <= total) continue;
    const std::string expected = "from " + std::to_string(least) + (i > 0 ? " (the one before it)" : "") + " to " +
                                 std::to_string(total) + " (the rows that there are)";
    check.that(false, element(name, std::to_string(i)).c_str(), starts[i], expected.c_str());
  }
}

void check_at_most(Check& check, const char* name, int64_t i, int64_t value, int64_t most, const char* what) {
  if (!check.ok() || (value >= 0 && value <= most)) return;
  const std::string expected = "from 0 to " + std::to_string(most) + " (" + what + ")";
  check.that(false, element(name, std::to_string(i)).c_str(), value, expected.c_str());
}

// The pages of a sequence's keys. What the table holds behind them is not looked at.
void check_pages(Check& check, const AttentionParams& params, const AttentionSequence& sequence) {
  for (int64_t key = 0; key < sequence.k_len && check.ok();) {
    const int64_t column = (sequence.k_start + key) / params.page_size;
    const int64_t page = params.page_table[sequence.kv_batch * params.page_table_stride + column];
    if (page < 0 || page >= params.k_extent) {
      const std::string name = element("page_table", std::to_string(sequence.kv_batch) + ", " + std::to_string(column));
      const std::string expected = "at least 0 and less than " + std::to_string(params.k_extent) + " (= k.shape[0])";
      check.that(false, name.c_str(), page, expected.c_str());
    }
    key = (column + 1) * params.page_size - sequence.k_start;
  }
}

void check_sequence(Check& check, const AttentionParams& params, int batch, int64_t cache_batch) {
  if (params.kv_batch_idx != nullptr) {
    check_at_most(check, "kv_batch_idx", batch, params.kv_batch_idx[batch], cache_batch - 1, "the cache's rows - 1");
  }
  if (params.leftpad_k != nullptr) {
    check_at_most(check, "leftpad_k", batch, params.leftpad_k[batch], params.seqlen_k, "the keys that fit");
  }
  if (!check.ok()) return;
  const AttentionSequence sequence = sequence_of(params, batch);
  if (params.cu_seqlens_q != nullptr && params.seqused_q != nullptr) {
    check_at_most(check, "seqused_q", batch, params.seqused_q[batch],
                  params.cu_seqlens_q[batch + 1] - params.cu_seqlens_q[batch], "the sequence's rows");
  }
  if (params.cu_seqlens_k != nullptr && params.seqused_k != nullptr) {
    check_at_most(check, "seqused_k", batch, params.seqused_k[batch],
                  params.cu_seqlens_k[batch + 1] - params.cu_seqlens_k[batch], "the sequence's rows");
  }
  if (params.k_new != nullptr) {
    const int64_t new_keys = params.cu_seqlens_k_new != nullptr
                                 ? params.cu_seqlens_k_new[batch + 1] - params.cu_seqlens_k_new[batch]
                                 : params.seqlen_k_new;
    check_at_most(check, "seqused_k", batch, params.seqused_k[batch], params.seqlen_k - new_keys,
                  "what leaves room for the new keys");
  }
  if (params.page_table != nullptr) check_pages(check, params, sequence);
}

}  // namespace

Status check_attention_indices(const AttentionParams& params, int64_t cache_batch, Device device, Stream stream) {
  if (!checks_values(device, stream)) return OkStatus();
  HostIndices indices;
  SGL_RETURN_IF_ERROR(indices.take(params, cache_batch, device, stream));
  const AttentionParams& on_host = indices.params();
  Check check("fwd");
  check_starts(check, "cu_seqlens_q", on_host.cu_seqlens_q, params.batch, params.total_q);
  check_starts(check, "cu_seqlens_k", on_host.cu_seqlens_k, params.batch, params.k_extent);
  check_starts(check, "cu_seqlens_k_new", on_host.cu_seqlens_k_new, params.batch, params.seqlen_k_new);
  for (int batch = 0; batch < params.batch && check.ok(); ++batch) check_sequence(check, on_host, batch, cache_batch);
  return check.status();
}

}  // namespace sgl_kernel
