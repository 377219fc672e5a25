#include "kernels/kvcacheio/store_kv_cache.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_kvcacheio, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&store_kv_cache>(
      "store_kv_cache(Tensor! k_cache, Tensor! v_cache, Tensor out_loc, Tensor k, Tensor v) -> ()");
}
