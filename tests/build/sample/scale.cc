#include "tests/build/sample/scale.h"

#include "tests/build/sample/scale_kernels.h"

namespace sample {

const char* scale(float* values, int n, float factor, bool on_gpu) {
  if (!on_gpu) return cpu::scale(values, n, factor);
#if defined(SGL_HAS_SM_90A)
  return sm_90a::scale(values, n, factor);
#elif defined(SGL_HAS_SM_80)
  return sm_80::scale(values, n, factor);
#else
  return "none";
#endif
}

}  // namespace sample
