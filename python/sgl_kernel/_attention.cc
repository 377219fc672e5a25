#include "kernels/attention/merge_state.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_attention, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def("merge_state(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, Tensor! s_merged) -> ()",
          &merge_state);
  ops.def("merge_state_v2(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, Tensor! s_merged) -> ()",
          &merge_state_v2);
}
