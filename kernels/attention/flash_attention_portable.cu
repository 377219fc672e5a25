// The portable kernels, one after another.
#include "kernels/attention/flash_attention_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status flash_attention_portable(const AttentionParams& given, Stream stream) {
  if (given.k_new != nullptr) SGL_RETURN_IF_ERROR(append_new_keys(given, stream));
  const AttentionParams params = with_rotated_queries(given);
  SGL_RETURN_IF_ERROR(has_wide_values(params)   ? attend_wide_values(params, stream)
                      : few_packed_rows(params) ? attend_grouped_heads(params, stream)
                                                : attend_query_tiles(params, stream));
  return params.num_partials > 1 ? combine_splits(params, stream) : OkStatus();
}

}  // namespace sgl_kernel::SGL_TARGET
