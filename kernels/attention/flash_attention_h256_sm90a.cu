// The Hopper prefill kernels for head_dim up to 256 and head_dim_v up to 256.
#include "kernels/attention/flash_attention_prefill_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status prefill_h256(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream) {
  return prefill::launch_head_dim<256, 256>(params, schedule, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
