// Rows cut at a threshold, portable: a block of 512 threads for each row keeps what fits of it in shared memory, reads
// the rest two or three times (the L2 cache serves the later ones), and writes it once. Bound by memory at large
// batches, by one multiprocessor's share of it at small ones.
#include "kernels/sampling/block_group.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  return run_apply_threshold<BlockGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
