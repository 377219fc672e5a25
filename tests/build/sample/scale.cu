#include "tests/build/sample/scale_kernels.h"

namespace sample::SGL_TARGET {

// Compiled for every target, next to either of the other two.
int threads() { return 256; }

}  // namespace sample::SGL_TARGET
