// The Hopper prefill kernels for head_dim up to 128 and head_dim_v up to 128.
#include "kernels/attention/flash_attention_prefill_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status prefill_h128(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream) {
  return prefill::launch_head_dim<128, 128>(params, schedule, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
