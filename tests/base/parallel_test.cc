// parallel_for: every index once, ranges of at least the grain, nested and concurrent calls.
#include "kernels/base/parallel.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

void test_covers_every_index_once() {
  for (int64_t count : {0, 1, 2, 7, 64, 1000, 100003}) {
    for (int64_t grain : {1, 3, 64, 1000000}) {
      std::vector<std::atomic<int>> seen(count);
      std::mutex mutex;
      std::vector<int64_t> sizes;
      parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) seen[i].fetch_add(1);
        const std::lock_guard<std::mutex> lock(mutex);
        sizes.push_back(end - begin);
      });
      for (auto& times : seen) EXPECT_EQ(times.load(), 1);
      // Ranges differ by at most 1 in size, and with ceil(count / grain) of them that may go just below the grain.
      EXPECT(static_cast<int64_t>(sizes.size()) <= (count + grain - 1) / grain);
      if (count == 0) EXPECT(sizes.empty());
    }
  }
}

void test_nested() {
  std::atomic<int64_t> sum{0};
  parallel_for(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      parallel_for(100, 1, [&](int64_t inner_begin, int64_t inner_end) { sum.fetch_add(inner_end - inner_begin); });
    }
  });
  EXPECT_EQ(sum.load(), 800);
}

void test_concurrent_callers() {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        parallel_for(64, 1, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 4 * 200 * 64);
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  setenv("SGL_KERNEL_NUM_THREADS", "3", /*overwrite=*/1);  // more than one also where there is one processor
  EXPECT_EQ(sgl_kernel::num_threads(), 3);
  sgl_kernel::test_covers_every_index_once();
  sgl_kernel::test_nested();
  sgl_kernel::test_concurrent_callers();
  return sgl_kernel::test::result();
}
