// Rows cut at a threshold: values below it are dropped, values at or above it stay. All values equal to the threshold
// stay, so that the result is a function of the values alone, not of their places.
//
//   probs, renorm_probs, logits, mask_logits  [num_rows, vocab]  f32; rows may be strided, the last dimension is dense
//   maybe_top_k_arr [num_rows]  i32 | i64, maybe_top_p_arr [num_rows] f32: a threshold for each row; without one the
//                               scalar beside it serves all
// top_k <= 0 or >= vocab, and top_p >= 1 (or NaN in an array), drop nothing; top_p <= 0 keeps the highest value (and
// its equals). Thresholds are exact, sums are of integers (mass.h): results do not depend on the batch or the target,
// but for the last bit of a renormalized value. The output may be the input itself; else they do not overlap. An empty
// tensor is a no-op. No scratch memory. Wrong dtypes, shapes, strides, devices and a NaN scalar are InvalidArgument.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// renorm_probs[i] = probs[i] / sum(probs[j] >= t) where probs[i] >= t, else 0; t is the k-th highest value of the row.
// NaN and negative values count as 0, infinity as the largest finite float. A row with nothing above 2^-96 becomes 0.
Status top_k_renorm_probs(TensorView probs, TensorView renorm_probs, const std::optional<TensorView>& maybe_top_k_arr,
                          int64_t top_k_val, Stream stream);

// The same; t is the highest value for which sum(probs[j] >= t) is at least top_p times the row's sum.
Status top_p_renorm_probs(TensorView probs, TensorView renorm_probs, const std::optional<TensorView>& maybe_top_p_arr,
                          double top_p_val, Stream stream);

// mask_logits[i] = logits[i] where logits[i] >= t, else -infinity; t is the k-th highest logit of the row. NaN counts
// as -infinity.
Status top_k_mask_logits(TensorView logits, TensorView mask_logits, const std::optional<TensorView>& maybe_top_k_arr,
                         int64_t top_k_val, Stream stream);

}  // namespace sgl_kernel
