// The norms on the CPU: a thread takes whole rows; a row is read twice, the second time from the first-level cache.

#include <cmath>

#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/elementwise/norm_params.h"

namespace sgl_kernel::cpu {
namespace {

// Partial sums that the compiler keeps in vector registers: the order of additions is part of the result.
constexpr int kLanes = 16;

// A thread is worth waking for this many elements (some 10 µs of work).
constexpr int64_t kElementsPerThread = 16384;

template <class T>
float sum_of_squares(const T* row, int64_t size) {
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = static_cast<float>(row[d + lane]);
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; d < size; ++d, ++lane) {
    const float value = static_cast<float>(row[d]);
    lanes[lane] += value * value;
  }
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  return sum;
}

template <class T>
void norm_row(const NormParams& params, int64_t row) {
  const int64_t size = params.row_size;
  const T* input = static_cast<const T*>(params.input.data) + row * params.input.stride;
  T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
  if (params.residual.data != nullptr) {
    T* residual = static_cast<T*>(params.residual.data) + row * params.residual.stride;
    for (int64_t d = 0; d < size; ++d) {
      residual[d] = static_cast<T>(static_cast<float>(input[d]) + static_cast<float>(residual[d]));
    }
    input = residual;
  }
  const T* weight = static_cast<const T*>(params.weight);
  const float scale = 1.0f / std::sqrt(sum_of_squares(input, size) / static_cast<float>(size) + params.eps);
  for (int64_t d = 0; d < size; ++d) {
    const float factor = static_cast<float>(weight[d]) + params.weight_offset;
    output[d] = static_cast<T>(static_cast<float>(input[d]) * scale * factor);
  }
}

}  // namespace

Status norm_rows(const NormParams& params, Stream) {
  const int64_t grain = 1 + kElementsPerThread / params.row_size;
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, parallel_for(params.num_rows, grain, [&](int64_t begin, int64_t end) {
                         for (int64_t row = begin; row < end; ++row) norm_row<T>(params, row);
                       }));
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
