// The CPU targets' threads: one pool for the process, made at the first use.
//
//   parallel_for(num_rows, /*grain=*/16, [&](int64_t begin, int64_t end) { for (int64_t row = begin; …) … });
//
// Work is split into at most num_threads() contiguous ranges of at least `grain`, by the sizes alone, so that results
// depend on nothing else; which thread takes which range is left to chance. The caller takes part, and takes all ranges
// that no other thread begins. A call from within a worker, or while another thread is in a parallel_for, runs serially
// on the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace sgl_kernel {

// SGL_KERNEL_NUM_THREADS if set, else the processors this process may run on.
int num_threads();

namespace internal {
using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, RangeFunction function, void* context);
}  // namespace internal

template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  using Stored = std::remove_reference_t<Body>;
  internal::parallel_for(
      count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Stored*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace sgl_kernel
