#include <algorithm>
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/kvcacheio/store_kv_cache_params.h"

namespace sgl_kernel::cpu {
namespace {

int64_t slot_of(const StoreKvCacheParams& params, int64_t token) {
  return params.loc_is_64 ? static_cast<const int64_t*>(params.out_loc)[token]
                          : static_cast<const int32_t*>(params.out_loc)[token];
}

void copy_row(const RowCopy& copy, int64_t token, int64_t slot) {
  for (int64_t head = 0; head < copy.num_heads; ++head) {
    std::memcpy(copy.to + slot * copy.to_stride + head * copy.to_head_stride,
                copy.from + token * copy.from_stride + head * copy.from_head_stride,
                static_cast<size_t>(copy.head_bytes));
  }
}

}  // namespace

Status copy_rows_to_slots(const StoreKvCacheParams& params, Stream) {
  const int64_t token_bytes = params.k.num_heads * params.k.head_bytes + params.v.num_heads * params.v.head_bytes;
  constexpr int64_t kBytesPerThread = 64 << 10;  // some 10 µs
  parallel_for(params.num_tokens, std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, token_bytes)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t token = begin; token < end; ++token) {
                   const int64_t slot = slot_of(params, token);
                   copy_row(params.k, token, slot);
                   copy_row(params.v, token, slot);
                 }
               });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
