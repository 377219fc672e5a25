// The entry of the targets that have no attention kernels of their own.
#include "kernels/attention/flash_attention_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status flash_attention_most_merged_splits(int* most) {
  *most = 1;
  return OkStatus();
}

Status flash_attention_forward(const AttentionParams& params, Stream stream) {
  return flash_attention_portable(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
