// What fwd()'s index tensors hold, checked by value.
#pragma once

#include "kernels/attention/flash_attention_params.h"

namespace sgl_kernel {

// InvalidArgument for an index that would lead out of a tensor or into another sequence, if checks_values(). `params`
// is what a target gets; `cache_batch` is how many rows page_table has, or without one the cache.
Status check_attention_indices(const AttentionParams& params, int64_t cache_batch, Device device, Stream stream);

}  // namespace sgl_kernel
