// Token sampling: one token id for each sample, drawn from a row of probabilities that is filtered first.
//
//   probs      [num_rows, vocab]  f32; rows may be strided, the last dimension is dense. Rows need not sum to 1: the
//                                 mass of a token is its share of its row's sum
//   output     [num_samples]      i32, the sampled ids, in 0 … vocab - 1
//   maybe_indices [num_samples]   i32 | i64: sample s draws from row maybe_indices[s]; without it num_samples is
//                                 num_rows and sample s draws from row s
//   maybe_top_k_arr [num_samples] i32 | i64, maybe_top_p_arr, maybe_min_p_arr [num_samples] f32: a threshold for each
//                                 sample; without one the scalar beside it serves all
//   seed       [2]                i64: (seed, offset) of Philox4x32-10. The draw of sample s is a function of the seed,
//                                 the offset, s and its row alone: not of the batch, the device or the target
//   deterministic                 is there for the API: every result is
//
// Filters keep a prefix of the row's tokens in the order (probability descending, id ascending):
//   top-k   the first k. k <= 0 or k >= vocab keeps all; k == 1 is argmax, the lowest id among equals
//   top-p   the shortest prefix whose mass is at least p. p >= 1 (or NaN in an array) keeps all, p <= 0 the first token
//   min-p   the tokens of at least min_p times the highest probability. min_p <= 0 (or NaN in an array) keeps all,
//           min_p >= 1 those equal to the highest
// A kept token is drawn with probability mass / (mass of all kept).
//
// Arithmetic: a probability counts as an integer number of units (mass.h), so that sums are exact in any order. A unit
// is 2^-44 where the row's highest probability is from 2^-20 to below 2, elsewhere 2^-44 of its power of two; beyond
// 2^18 tokens it doubles with each doubling of the vocabulary. What is less than half a unit is never drawn. Thresholds
// are exact. NaN and negative probabilities count as 0, infinity as the largest finite float. A row with nothing above
// 2^-96 counts as all zero, and its sample is token 0. An index outside 0 … num_rows - 1 is refused before
// anything is written; on a GPU only if checks_values() (SGL_KERNEL_CHECK=1), otherwise it gives -1 and reads nothing.
//
// No scratch memory. Zero samples are a no-op. Wrong dtypes, shapes, strides, devices, a NaN scalar, and vocab == 0 are
// InvalidArgument. Source: the joint filter of FlashInfer's sampling, with ties broken by id.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Top-k and top-p, both of the row as given: the kept tokens are the shorter of the two prefixes. top_k_val is a double
// because upstream's schema says so.
Status top_k_top_p_sampling_from_probs(TensorView probs, TensorView output,
                                       const std::optional<TensorView>& maybe_indices,
                                       const std::optional<TensorView>& maybe_top_k_arr, double top_k_val,
                                       const std::optional<TensorView>& maybe_top_p_arr, double top_p_val,
                                       bool deterministic, TensorView seed, Stream stream);

// Top-k, renormalization, then top-p: p is a share of the mass of the first k tokens. What upstream's Python calls
// filter_apply_order="top_k_first", in one kernel.
Status top_k_renorm_top_p_sampling_from_probs(TensorView probs, TensorView output,
                                              const std::optional<TensorView>& maybe_indices,
                                              const std::optional<TensorView>& maybe_top_k_arr, int64_t top_k_val,
                                              const std::optional<TensorView>& maybe_top_p_arr, double top_p_val,
                                              bool deterministic, TensorView seed, Stream stream);

// Top-p alone.
Status top_p_sampling_from_probs(TensorView probs, TensorView output, const std::optional<TensorView>& maybe_indices,
                                 const std::optional<TensorView>& maybe_top_p_arr, double top_p_val, bool deterministic,
                                 TensorView seed, Stream stream);

// Min-p alone.
Status min_p_sampling_from_probs(TensorView probs, TensorView output, const std::optional<TensorView>& maybe_indices,
                                 const std::optional<TensorView>& maybe_min_p_arr, double min_p_val, bool deterministic,
                                 TensorView seed, Stream stream);

}  // namespace sgl_kernel
