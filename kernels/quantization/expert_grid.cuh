// The grid of a kernel over the rows of several experts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/launch.h"
#include "kernels/device/row_grid.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int64_t kMaskedBlocksPerSm = 64;  // four times as many as run at once: experts differ in their rows

// Puts experts along the grid's z. With a mask an expert has few of its rows: then no more blocks than share out
// kMaskedBlocksPerSm, which stride over the rows that there are.
inline void spread_experts(RowGrid& shape, int64_t num_experts, bool masked) {
  // The kernel loops over what lies beyond kMostGridZ.
  shape.grid.z = static_cast<unsigned>(std::min(num_experts, kMostGridZ));
  if (!masked) return;
  const int64_t share = num_sms() * kMaskedBlocksPerSm / (int64_t{shape.grid.x} * shape.grid.z);
  shape.grid.y = static_cast<unsigned>(std::min<int64_t>(shape.grid.y, std::max<int64_t>(1, share)));
}

}  // namespace sgl_kernel::SGL_TARGET
