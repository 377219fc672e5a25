// The Hopper prefill kernels for head_dim up to 64 and head_dim_v up to 64.
#include "kernels/attention/flash_attention_prefill_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status prefill_h64(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream) {
  return prefill::launch_head_dim<64, 64>(params, schedule, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
