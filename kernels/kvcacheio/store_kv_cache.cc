#include "kernels/kvcacheio/store_kv_cache.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/kvcacheio/store_kv_cache_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(copy_rows_to_slots);

namespace {

int64_t row_size(const TensorView& tensor) {
  int64_t size = 1;
  for (int dim = 1; dim < tensor.rank(); ++dim) size *= tensor.size(dim);
  return size;
}

// How many elements at the end of a row lie side by side.
int64_t dense_run(const TensorView& tensor) {
  int64_t run = 1;
  for (int dim = tensor.rank() - 1; dim >= 1; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != run) break;
    run *= tensor.size(dim);
  }
  return run;
}

// The stride between a row's runs of `run` elements. False if there is no single one.
bool run_stride(const TensorView& tensor, int64_t run, int64_t* stride) {
  *stride = run;
  const int64_t dense = dense_run(tensor);
  if (dense == row_size(tensor)) return true;  // any run that divides the row
  if (dense != run) return false;
  int64_t inside = 1;    // elements in the dimensions passed so far
  int64_t expected = 0;  // the stride of the next dimension out
  for (int dim = tensor.rank() - 1; dim >= 1; --dim) {
    if (inside >= run && tensor.size(dim) != 1) {
      if (inside == run) {
        *stride = tensor.stride(dim);
      } else if (tensor.stride(dim) != expected) {
        return false;
      }
      expected = tensor.stride(dim) * tensor.size(dim);
    }
    inside *= tensor.size(dim);
  }
  return true;
}

void check_pair(Check& check, const char* cache_name, const TensorView& cache, const char* name,
                const TensorView& tensor, int64_t num_tokens, RowCopy* copy) {
  check.rank(cache_name, cache, 2, TensorView::kMaxRank)
      .rank(name, tensor, 2, TensorView::kMaxRank)
      .same_dtype(name, tensor, cache_name, cache)
      .no_internal_overlap(cache_name, cache)
      .no_overlap(cache_name, cache, name, tensor);
  if (!check.ok()) return;
  const int64_t row = row_size(cache);
  if (tensor.size(0) != num_tokens || row_size(tensor) != row) {
    const std::string is = "has shape " + shape_string(tensor);
    const std::string expected = std::to_string(num_tokens) + " rows of " + std::to_string(row) +
                                 " elements (= out_loc.shape[0], " + cache_name + ".shape[1:])";
    check.that(false, name, is.c_str(), expected.c_str());
  }
  if (!check.ok() || row == 0) return;

  const int64_t run = std::min(dense_run(cache), dense_run(tensor));
  int64_t cache_stride = 0, tensor_stride = 0;
  check.that(run_stride(cache, run, &cache_stride), cache_name, "has rows of unevenly strided parts",
             "heads at one distance");
  check.that(run_stride(tensor, run, &tensor_stride), name, "has rows of unevenly strided parts",
             "heads at one distance");
  const int64_t bytes = size_of(cache.dtype());
  *copy = {cache.data<char>(),
           tensor.data<const char>(),
           row / run,
           run * bytes,
           cache.stride(0) * bytes,
           cache_stride * bytes,
           tensor.stride(0) * bytes,
           tensor_stride * bytes};
}

}  // namespace

Status store_kv_cache(TensorView k_cache, TensorView v_cache, TensorView out_loc, TensorView k, TensorView v,
                      Stream stream) {
  Check check("store_kv_cache");
  check.rank("out_loc", out_loc, 1)
      .dtype("out_loc", out_loc, {DType::kI32, DType::kI64})
      .contiguous("out_loc", out_loc)
      .same_device({{"k_cache", k_cache}, {"v_cache", v_cache}, {"out_loc", out_loc}, {"k", k}, {"v", v}})
      .same_dtype("v_cache", v_cache, "k_cache", k_cache);
  SGL_RETURN_IF_ERROR(check.status());
  StoreKvCacheParams params = {};
  check_pair(check, "k_cache", k_cache, "k", k, out_loc.size(0), &params.k);
  check_pair(check, "v_cache", v_cache, "v", v, out_loc.size(0), &params.v);
  if (check.ok())
    check.that(k_cache.size(0) == v_cache.size(0), "v_cache.shape[0]", v_cache.size(0), "k_cache.shape[0]");
  check.no_overlap("k_cache", k_cache, "v_cache", v_cache)
      .no_overlap("k_cache", k_cache, "v", v)
      .no_overlap("v_cache", v_cache, "k", k)
      .no_overlap("k_cache", k_cache, "out_loc", out_loc)
      .no_overlap("v_cache", v_cache, "out_loc", out_loc);
  SGL_RETURN_IF_ERROR(check.status());
  if (k.empty() && v.empty()) return OkStatus();
  SGL_RETURN_IF_ERROR(check.in_range("out_loc", out_loc, k_cache.size(0), "k_cache.shape[0]", stream).status());

  params.out_loc = out_loc.data();
  params.loc_is_64 = out_loc.dtype() == DType::kI64;
  params.num_tokens = out_loc.size(0);
  return internal::dispatch("store_kv_cache", copy_rows_to_slots_targets, k_cache.device(), params, stream);
}

}  // namespace sgl_kernel
