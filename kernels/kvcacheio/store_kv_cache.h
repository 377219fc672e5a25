// Moving keys and values of new tokens into a cache.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Writes the keys and values of new tokens to their slots of a cache.
//   k_cache[out_loc[t]] = k[t]        v_cache[out_loc[t]] = v[t]
//   k_cache  [S, ...]   any dtype
//   v_cache  [S, ...]   dtype of k_cache; its rows may have another size
//   out_loc  [T]        i32 | i64, contiguous, 0 <= out_loc < S
//   k, v     [T, ...]   dtype of k_cache; as many elements a row as k_cache and v_cache have
// Rows may be strided, and so may the heads of a row: [S, H, D] with any strides of S and H. 16-byte aligned rows are
// the fastest. The inputs do not overlap the caches. Slots out of range are refused before anything is written, on
// a GPU if checks_values() (SGL_KERNEL_CHECK=1), where they are the caller's duty otherwise. Of tokens that share a
// slot, which one stays is not defined. T == 0 is a no-op. Wrong dtypes, shapes, strides or devices are
// InvalidArgument.
Status store_kv_cache(TensorView k_cache, TensorView v_cache, TensorView out_loc, TensorView k, TensorView v,
                      Stream stream);

}  // namespace sgl_kernel
