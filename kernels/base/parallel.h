// The CPU targets' threads: one pool for the process, made at the first use.
//
//   parallel_for(num_rows, /*grain=*/16, [&](int64_t begin, int64_t end) { for (int64_t row = begin; …) … });
//
// Work is split into contiguous ranges of at least `grain`, a few for each of num_threads() threads; which thread takes
// which range is left to chance. What is computed for an index must not depend on the range it is in. The caller takes
// part, and takes all ranges that no other thread begins. A call from within a worker, or while another thread is in a
// parallel_for, runs serially on the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace sgl_kernel {

// SGL_KERNEL_NUM_THREADS if set, else the processors this process may run on.
int num_threads();

// The threads behind parallel_for(). Shared libraries that hold a copy of this code each would have threads each, whose
// waiting takes the processors from the others' work: a process makes all of them use the threads of the first. Before
// the first parallel_for() of the calling copy, and with copies of one build.
struct Threads;
Threads* threads();
void use_threads(Threads* threads);

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
