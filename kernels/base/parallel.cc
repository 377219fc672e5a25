#include "kernels/base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace sgl_kernel {
namespace {

// A decode step is some hundred parallel regions of 10 to 100 µs, microseconds apart: workers spin for about that gap
// before they sleep, because waking a sleeper costs as much as a region.
constexpr int kSpins = 20000;

// More ranges than threads: one that is held up takes fewer of them.
constexpr int64_t kRangesPerThread = 4;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

thread_local bool in_parallel_region = false;

class Pool {
 public:
  // With fewer workers than asked for where the system has no more threads: the caller runs what nobody claims.
  explicit Pool(int workers) {
    try {
      for (int worker = 0; worker < workers; ++worker) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  // Runs the ranges, on this thread and on those workers that come in time: one that has lost its processor, or sleeps,
  // holds nobody up.
  void run(int64_t count, int parts, internal::RangeFunction function, void* context) {
    count_ = count;
    parts_ = parts;
    function_ = function;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    const uint64_t region = (unclaimed_.load(std::memory_order_relaxed) >> kRegionShift) + 1;
    unclaimed_.store(region << kRegionShift | static_cast<uint64_t>(parts), std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    while (run_part()) {
    }
    for (int spin = 0; finished_.load(std::memory_order_acquire) < parts; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        sched_yield();  // to the worker, which may wait for this processor
      }
    }
  }

 private:
  static constexpr int kRegionShift = 16;
  static constexpr uint64_t kPartsMask = (1 << kRegionShift) - 1;

  bool any_unclaimed() const { return (unclaimed_.load(std::memory_order_seq_cst) & kPartsMask) != 0; }

  // Claims a part and runs it; false if there is none. The claim keeps the region, and what describes it, in place.
  bool run_part() {
    uint64_t unclaimed = unclaimed_.load(std::memory_order_acquire);
    do {
      if ((unclaimed & kPartsMask) == 0) return false;
    } while (!unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel,
                                               std::memory_order_acquire));
    const int64_t part = parts_ - static_cast<int64_t>(unclaimed & kPartsMask);
    const int64_t begin = count_ * part / parts_, end = count_ * (part + 1) / parts_;
    in_parallel_region = true;
    if (begin < end) function_(context_, begin, end);
    in_parallel_region = false;
    finished_.fetch_add(1, std::memory_order_release);
    return true;
  }

  void work() {
    while (true) {
      wait_for_parts();
      run_part();
    }
  }

  void wait_for_parts() {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (any_unclaimed()) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return any_unclaimed(); });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  // The region in progress. Written before unclaimed_, while no part is claimed; read by those who have claimed one.
  int64_t count_ = 0;
  int parts_ = 0;
  internal::RangeFunction function_ = nullptr;
  void* context_ = nullptr;

  // The number of the region, above the number of its parts that nobody has claimed.
  alignas(64) std::atomic<uint64_t> unclaimed_{0};
  alignas(64) std::atomic<int> finished_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace

struct Threads {
  std::mutex region_mutex;  // held by the thread whose region the pool runs
  Pool* pool = nullptr;     // guarded by region_mutex; never deleted: its threads outlive main()
};

namespace {

Threads own_threads;
Threads* shared_threads = &own_threads;

// A child of fork() has none of the parent's threads: it makes its own pool, and leaks the parent's.
void forget_pool_after_fork() {
  shared_threads->pool = nullptr;
  new (&shared_threads->region_mutex) std::mutex;
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

Threads* threads() { return shared_threads; }

void use_threads(Threads* threads) { shared_threads = threads; }

namespace internal {

void parallel_for(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  const int64_t most = (count + grain - 1) / std::max<int64_t>(grain, 1), num = num_threads();
  // As many for each thread as for the others.
  const int64_t parts = most < num ? most : num == 1 ? 1 : std::min(most / num, kRangesPerThread) * num;
  std::unique_lock<std::mutex> lock(shared_threads->region_mutex, std::defer_lock);
  if (parts <= 1 || in_parallel_region || !lock.try_lock()) {
    function(context, 0, count);
    return;
  }
  Pool*& pool = shared_threads->pool;
  if (pool == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_after_fork);
    (void)registered;
    pool = new Pool(static_cast<int>(num) - 1);
  }
  pool->run(count, static_cast<int>(parts), function, context);
}

}  // namespace internal
}  // namespace sgl_kernel
