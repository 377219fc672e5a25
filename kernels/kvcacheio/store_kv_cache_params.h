// What the targets of store_kv_cache take: checked, and reduced to rows of heads of bytes.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Row t of `from` goes to row out_loc[t] of `to`. A row is num_heads runs of head_bytes. Everything is in bytes.
struct RowCopy {
  char* to;
  const char* from;
  int64_t num_heads;
  int64_t head_bytes;
  int64_t to_stride, to_head_stride;
  int64_t from_stride, from_head_stride;
};

struct StoreKvCacheParams {
  RowCopy k, v;
  const void* out_loc;
  bool loc_is_64;
  int64_t num_tokens;
};

Status copy_rows_to_slots(const StoreKvCacheParams& params, Stream stream);

}  // namespace sgl_kernel
