#include "kernels/base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace sgl_kernel {
namespace {

// A decode step is some hundred parallel regions of 10 to 100 µs, microseconds apart: workers spin for about that gap
// before they sleep, because waking a sleeper costs as much as a region.
constexpr int kSpins = 20000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

thread_local bool in_parallel_region = false;

class Pool {
 public:
  explicit Pool(int workers) : workers_(workers) {
    for (int worker = 0; worker < workers; ++worker) std::thread([this, worker] { work(worker + 1); }).detach();
  }

  // Runs the ranges on `parts` threads, this one included. `parts` is at most workers + 1.
  void run(int64_t count, int parts, internal::RangeFunction function, void* context) {
    count_ = count;
    parts_ = parts;
    function_ = function;
    context_ = context;
    pending_.store(workers_, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    run_part(0);
    // A worker that is late has most likely lost its processor: after a while, offer it this one.
    for (int spin = 0; pending_.load(std::memory_order_acquire) > 0; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  void run_part(int part) {
    if (part >= parts_) return;
    in_parallel_region = true;
    const int64_t begin = count_ * part / parts_, end = count_ * (part + 1) / parts_;
    if (begin < end) function_(context_, begin, end);
    in_parallel_region = false;
  }

  void work(int part) {
    uint64_t seen = 0;
    while (true) {
      seen = next_generation(seen);
      run_part(part);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  uint64_t next_generation(uint64_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      const uint64_t generation = generation_.load(std::memory_order_acquire);
      if (generation != seen) return generation;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return generation_.load(std::memory_order_acquire);
  }

  const int workers_;
  // The region in progress; written before generation_, read after it.
  int64_t count_ = 0;
  int parts_ = 0;
  internal::RangeFunction function_ = nullptr;
  void* context_ = nullptr;

  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> pending_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

std::mutex region_mutex;  // held by the thread whose region the pool runs
Pool* pool = nullptr;     // guarded by region_mutex; never deleted: its threads outlive main()

// A child of fork() has none of the parent's threads: it makes its own pool, and leaks the parent's.
void forget_pool_after_fork() {
  pool = nullptr;
  new (&region_mutex) std::mutex;
}

int detect_threads() {
  if (const char* text = std::getenv("SGL_KERNEL_NUM_THREADS")) {
    const int wanted = std::atoi(text);
    if (wanted > 0) return std::min(wanted, 1024);
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

int num_threads() {
  static const int threads = detect_threads();
  return threads;
}

namespace internal {

void parallel_for(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  const int64_t most = (count + grain - 1) / std::max<int64_t>(grain, 1);
  const int parts = static_cast<int>(std::min<int64_t>(most, num_threads()));
  std::unique_lock<std::mutex> lock(region_mutex, std::defer_lock);
  if (parts <= 1 || in_parallel_region || !lock.try_lock()) {
    function(context, 0, count);
    return;
  }
  if (pool == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_after_fork);
    (void)registered;
    pool = new Pool(num_threads() - 1);
  }
  pool->run(count, parts, function, context);
}

}  // namespace internal
}  // namespace sgl_kernel
