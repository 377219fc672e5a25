// Which of the built targets serves which GPU.
#include "kernels/base/dispatch.h"

#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

constexpr Target kAll[] = {Target::kCpu,   Target::kSm80,   Target::kSm89,
                           Target::kSm90a, Target::kSm100a, Target::kSm120a};

template <size_t kCount>
Target best(const Target (&built)[kCount], int sm) {
  const size_t index = internal::best_target(built, kCount, sm);
  return index < kCount ? built[index] : Target::kCpu;  // the CPU's stands for none
}

void test_best_target() {
  EXPECT(best(kAll, 80) == Target::kSm80);
  EXPECT(best(kAll, 86) == Target::kSm80);  // sm_80 code runs there, sm_89 code does not
  EXPECT(best(kAll, 89) == Target::kSm89);
  EXPECT(best(kAll, 90) == Target::kSm90a);
  EXPECT(best(kAll, 100) == Target::kSm100a);
  EXPECT(best(kAll, 103) == Target::kSm89);  // sm_100a code runs on 10.0 alone: the highest PTX below
  EXPECT(best(kAll, 120) == Target::kSm120a);
  EXPECT(best(kAll, 121) == Target::kSm89);
  EXPECT(best(kAll, 75) == Target::kCpu);
  EXPECT(best(kAll, 0) == Target::kCpu);
  constexpr Target kHopperOnly[] = {Target::kCpu, Target::kSm90a};
  EXPECT(best(kHopperOnly, 90) == Target::kSm90a);
  EXPECT(best(kHopperOnly, 100) == Target::kCpu);
  constexpr Target kPortable[] = {Target::kCpu, Target::kSm80};
  EXPECT(best(kPortable, 90) == Target::kSm80);
}

void test_pick_target() {
  size_t index = 99;
  EXPECT(internal::pick_target("op", kAll, 6, Device(), &index).ok());
  EXPECT_EQ(index, 0);
  constexpr Target kNone[] = {Target::kCpu};
  const Status status = internal::pick_target("op", kNone, 1, {Device::Kind::kCuda, 3}, &index);
  EXPECT(status.code() == StatusCode::kUnsupported);
  const std::string text = status.message();
  EXPECT(text.find("op: device cuda:3 is ") == 0);
  EXPECT(text.find("(built: cpu)") != std::string::npos);
}

void test_unserved() {
  constexpr Target kHopperOnly[] = {Target::kCpu, Target::kSm90a};
  const Device device = {Device::Kind::kCuda, 1};
  const Status status = internal::unserved("rmsnorm", kHopperOnly, 2, device, 89);
  EXPECT(status.code() == StatusCode::kUnsupported);
  EXPECT_EQ(std::string(status.message()),
            "rmsnorm: device cuda:1 has compute capability 8.9, expected one that a built target serves (built: cpu, "
            "sm_90a)");
  EXPECT_EQ(std::string(internal::unserved("rmsnorm", kHopperOnly, 2, device, 0).message()),
            "rmsnorm: device cuda:1 is not known to the CUDA runtime of this build, expected one that a built target "
            "serves (built: cpu, sm_90a)");
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  sgl_kernel::test_best_target();
  sgl_kernel::test_pick_target();
  sgl_kernel::test_unserved();
  return sgl_kernel::test::result();
}
