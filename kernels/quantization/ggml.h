// Matrices in the block formats of ggml, as GGUF files hold them: decode one to floats, multiply by one, or by an
// expert's.
//
// W is uint8, the file's bytes: [row, bytes_per_row], contiguous, at an even address. Row r holds k elements in blocks
// of block_size (32 or 256) that take block_bytes each, so bytes_per_row = k / block_size * block_bytes. `type` is
// ggml's number, for every operator one of:
//   2 Q4_0   3 Q4_1   6 Q5_0   7 Q5_1   8 Q8_0   10 Q2_K   11 Q3_K   12 Q4_K   13 Q5_K   14 Q6_K   16 IQ2_XXS
//   17 IQ2_XS   18 IQ3_XXS   19 IQ1_S   20 IQ4_NL   21 IQ3_S   22 IQ2_S   23 IQ4_XS   29 IQ1_M
// (the public package's ggml_mul_mat_a8 leaves its result unwritten for the IQ types). ggml_blocks.h has the layouts.
//
// Errors: InvalidArgument for an unknown type, a k that is not a multiple of block_size or, in a product, above 2^30, W
// of another size, and what else the shapes and dtypes below exclude. A scale in W that is infinite or NaN makes the
// elements that it scales, and the products that they enter, infinite or NaN. Source: the ggml library (llama.cpp) and
// its Python package `gguf`.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// result[i, j] = element j of row i of W
//   result  [m, n]  f32 | f16 | bf16, contiguous
//   W       uint8, contiguous, any shape of m * bytes_per_row(n) bytes
// An f32 result equals gguf.quants.dequantize() bit for bit (NaNs may differ in their payload); a narrower one is that
// value rounded to nearest even. m == 0 or n == 0 is a no-op.
Status ggml_dequantize(TensorView result, TensorView W, int64_t type, int64_t m, int64_t n, Stream stream);

// result[t, r] = sum_j X8[t, j] * W[r, j]      sums in f32, over exact int32 sums of 16 or 32 products
//   result     [num_tokens, row]   dtype of X; rows may be strided, the last dimension is dense
//   workspace  [bytes] uint8       at least ggml_workspace_size() bytes, at a multiple of 64
//   W          [row, bytes_per_row(k)]
//   X          [num_tokens, k]     f32 | f16 | bf16; rows may be strided, the last dimension is dense
//
// X8 is X quantized to 8 bits ("a8"), a scale for each 32 neighbours x[0..31] of a row, in f32 arithmetic:
//   amax = max_j |x[j]|
//   d = amax / 127,  q[j] = rint(x[j] * (127 / amax))      rint: to nearest, ties to even;  |q| <= 127
//   X8[j] = d * q[j]
// both divisions being IEEE divisions of f32, and two exceptions: amax < 2^-100 gives d = 0, q = 0 (127 / amax could
// overflow), and an infinite or NaN x[j] gives d = NaN, q = 0, so that the token's whole result is NaN.
// (ggml itself rounds d to f16, and ties away from zero.)
//
// |X8[j] - x[j]| <= amax / 254 * (1 + 2^-22). A token's result does not depend on the other tokens. num_tokens == 0 or
// row == 0 is a no-op; k == 0 gives zeros.
//
// The two operators compute the same, but may add in another order; ggml_mul_mat_vec_a8 is meant for few tokens,
// ggml_mul_mat_a8 for many. A token's result has the same bits whatever the number of tokens, on the same machine.
//
// ggml_mul_mat_a8 on Hopper differs in both where num_tokens * row * k is at least 2^28: it multiplies in f16, with
// sums in f32 whose order depends on num_tokens. In place of X8 and W it takes
//   X16[j] = x[j] rounded to f16 when a power of two has brought the token's largest |x| to [2^14, 2^15)
//   W16[j] = scale * quant + offset, rounded to f16, of the format's scale and offset times 32, rounded to f16
// and divides again. They are nearer to X and W than X8 alone to X; but where an element of W is beyond 2047, its row's
// results are infinite or NaN. Tiny, infinite and NaN x[j] are as above, by the token in place of the 32 neighbours.
Status ggml_mul_mat_vec_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type,
                           int64_t row, Stream stream);
Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream);

// Bytes of workspace that a product needs on a device of this kind; 0 where nothing is to be computed.
int64_t ggml_workspace_size(int64_t num_tokens, int64_t k, Device::Kind kind);

// ggml_mul_mat_vec_a8 of what a decode step has just before it, made on the way: one kernel fewer for few rows, in all
// the tokens. What is multiplied is rounded to the dtype of X first, as if it had been written to memory. k comes from
// W.
//
//   silu_and_mul:  Y[t, j] = g / (1 + exp(-g)) * X[t, k + j],  g = X[t, j]
//   add_rmsnorm:   residual_sum[t, j] = X[t, j] + residual[t, j]                         rounded to the dtype of X
//                  Y[t, j] = residual_sum[t, j] / sqrt(mean_j(residual_sum[t, :]^2) + eps) * norm_weight[j]
//   result[t, r] = sum_j Y8[t, j] * W[r, j]
//
//   X             [num_tokens, 2k] of silu_and_mul, [num_tokens, k] of add_rmsnorm
//   residual      [num_tokens, k]   dtype of X; rows may be strided, the last dimension is dense
//   residual_sum  [num_tokens, k]   likewise, apart from every other tensor: all of the GPU reads the residual
//   norm_weight   [k]               dtype of X, contiguous
//   workspace     at least ggml_mul_mat_vec_workspace_size() bytes, at a multiple of 64
// result, W, type and row are ggml_mul_mat_vec_a8's. k is at most 65536 of silu_and_mul, 16384 of add_rmsnorm: one
// block keeps it.
Status silu_and_mul_ggml_mul_mat_vec_a8(TensorView result, TensorView workspace, TensorView W, TensorView X,
                                        int64_t type, int64_t row, Stream stream);
Status add_rmsnorm_ggml_mul_mat_vec_a8(TensorView result, TensorView residual_sum, TensorView workspace, TensorView W,
                                       TensorView X, TensorView residual, TensorView norm_weight, double eps,
                                       int64_t type, int64_t row, Stream stream);

// Bytes of workspace that these two need.
int64_t ggml_mul_mat_vec_workspace_size(int64_t num_tokens, int64_t k, Device::Kind kind);

// The products of a mixture of experts: one for each pair of a token and an expert. Pair p is token p / top_k with the
// expert that it chose as number p % top_k.
//
//   result[p, r] = sum_j X8[p / top_k, j] * W[expert(p), r, j]          zeros if W has no such expert
//
//   result     [num_tokens * top_k, row]   dtype of X; rows may be strided, the last dimension is dense
//   workspace  [bytes] uint8               at least ggml_workspace_size() bytes, at a multiple of 64
//   X          [num_tokens, k]             f32 | f16 | bf16; rows may be strided, the last dimension is dense
//   W          [num_experts, row, bytes_per_row(k)]
// X8 and sums are ggml_mul_mat_vec_a8's; a pair's result does not depend on the other pairs. The two operators may add
// in another order. `tokens` is num_tokens.
//
// ggml_moe_a8_vec: topk_ids, int32, contiguous, holds expert(p) for each pair.
// ggml_moe_a8: the pairs are sorted by expert, in blocks of kGgmlMoeBlock. All of these are int32 and contiguous:
//   sorted_token_ids        [S]  pairs; any other number fills up a block
//   expert_ids              [B]  the expert of each block; B is at least S / kGgmlMoeBlock, rounded up
//   num_tokens_post_padded  [1]  how many of sorted_token_ids count; what is behind is not read
// Each pair should be there once: the result of one that is not there is not written. No index leads out of a tensor.
inline constexpr int kGgmlMoeBlock = 4;
Status ggml_moe_a8(TensorView result, TensorView workspace, TensorView X, TensorView W, TensorView sorted_token_ids,
                   TensorView expert_ids, TensorView num_tokens_post_padded, int64_t type, int64_t row, int64_t top_k,
                   int64_t tokens, Stream stream);
Status ggml_moe_a8_vec(TensorView result, TensorView workspace, TensorView X, TensorView W, TensorView topk_ids,
                       int64_t top_k, int64_t type, int64_t row, int64_t tokens, Stream stream);

// kGgmlMoeBlock, or 0 for an unknown type.
int64_t ggml_moe_get_block_size(int64_t type);

}  // namespace sgl_kernel
