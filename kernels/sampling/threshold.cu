// Rows cut at a threshold, portable: a block of 512 threads for each row reads a sample of it, then the row, and writes
// it in the same pass where few values are kept; else it reads the row again. Bound by memory at large batches, by one
// multiprocessor's share of it at small ones.
#include "kernels/sampling/block_group.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  return run_apply_threshold<BlockGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
