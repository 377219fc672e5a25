// The checks of arguments: what passes, and the text of what does not.
#include "kernels/base/check.h"

#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

float memory[64];

TensorView strided(std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides, int64_t offset = 0) {
  return TensorView(memory + offset, DType::kF32, static_cast<int>(shape.size()), shape.begin(), strides.begin(), {});
}

void test_text() {
  const TensorView x(memory, DType::kF32, {2, 4}), y(memory + 8, DType::kF16, {3});
  const auto message = [](Check& check) { return std::string(check.status().message()); };
  EXPECT_EQ(message(Check("op").dtype("x", x, {DType::kF16, DType::kBF16})),
            "op: x has dtype float32, expected float16 or bfloat16");
  EXPECT_EQ(message(Check("op").same_dtype("y", y, "x", x)), "op: y has dtype float16, expected float32 (= x.dtype)");
  EXPECT_EQ(message(Check("op").rank("x", x, 3)), "op: x has 2 dimensions, expected 3");
  EXPECT_EQ(message(Check("op").rank("y", y, 2, 3)), "op: y has 1 dimensions, expected 2 to 3");
  EXPECT_EQ(message(Check("op").shape("y", y, {4}, "x.shape[-1]")),
            "op: y has shape [3], expected [4] (= x.shape[-1])");
  EXPECT_EQ(message(Check("op").shape("x", x, {Check::kAny, 5})), "op: x has shape [2, 4], expected [*, 5]");
  EXPECT_EQ(message(Check("op").same_shape("y", y, "x", x)), "op: y has shape [3], expected [2, 4] (= x.shape)");
  EXPECT_EQ(message(Check("op").that(false, "eps", -1e-12, "at least 0")), "op: eps is -1e-12, expected at least 0");
  EXPECT_EQ(message(Check("op").that(false, "type", 7, "a type")), "op: type is 7, expected a type");
  const TensorView far(memory, DType::kF32, {2, 4}, {Device::Kind::kCuda, 1});
  EXPECT_EQ(message(Check("op").same_device({{"x", x}, {"far", far}})),
            "op: far is on cuda:1, expected cpu (= x.device)");
}

void test_first_failure_wins() {
  const TensorView x(memory, DType::kF32, {2, 4});
  Check check("op");
  check.rank("x", x, 3).dtype("x", x, {DType::kI32});
  EXPECT(!check.ok());
  const Status status = check.status();
  EXPECT(status.code() == StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), "op: x has 2 dimensions, expected 3");
  EXPECT(Check("op").rank("x", x, 2).contiguous("x", x).status().ok());
}

void test_layouts() {
  const TensorView rows = strided({2, 4}, {6, 1}), gaps = strided({2, 4}, {8, 2}), expanded = strided({2, 4}, {0, 1});
  EXPECT(!Check("op").contiguous("x", rows).ok());
  EXPECT(Check("op").dense_last_dim("x", rows).ok());
  EXPECT(!Check("op").dense_last_dim("x", gaps).ok());
  EXPECT(!Check("op").no_internal_overlap("x", expanded).ok());
  EXPECT(Check("op").no_internal_overlap("x", rows).ok());
  int64_t stride = 0;
  EXPECT(Check("op").uniform_rows("x", strided({2, 3, 4}, {18, 6, 1}), &stride).ok());
  EXPECT_EQ(stride, 6);
  EXPECT(!Check("op").uniform_rows("x", strided({2, 3, 4}, {20, 6, 1}), &stride).ok());
  EXPECT(Check("op").aligned("x", strided({4}, {1}, 0), 4).ok());
  EXPECT(!Check("op").aligned("x", strided({2, 4}, {5, 1}), 8).ok());
}

void test_in_range() {
  int64_t slots[] = {3, 0, 7, 4};
  int32_t positions[] = {0, 5, 2, -1, 1, 3};
  const TensorView i64(slots, DType::kI64, {4}), i32(positions, DType::kI32, {2, 3});
  const auto message = [](const char* name, const TensorView& tensor, int64_t end) {
    return std::string(Check("op").in_range(name, tensor, end, "cache.shape[0]", Stream()).status().message());
  };
  EXPECT_EQ(message("slots", i64, 8), "");
  EXPECT_EQ(message("slots", i64, 7), "op: slots[2] is 7, expected at least 0 and less than 7 (= cache.shape[0])");
  EXPECT_EQ(message("positions", i32, 9),
            "op: positions[1, 0] is -1, expected at least 0 and less than 9 (= cache.shape[0])");
  // Every second one.
  const int64_t shape[] = {2}, strides[] = {2};
  const TensorView sparse(slots, DType::kI64, 1, shape, strides, {});
  EXPECT_EQ(message("slots", sparse, 7), "op: slots[1] is 7, expected at least 0 and less than 7 (= cache.shape[0])");
  EXPECT_EQ(message("slots", TensorView(slots, DType::kI64, {0}), 0), "");
}

void test_overlap() {
  const TensorView x(memory, DType::kF32, {2, 4}), next(memory + 8, DType::kF32, {4}),
      shifted(memory + 7, DType::kF32, {4});
  EXPECT(Check("op").no_overlap("y", next, "x", x).ok());
  EXPECT(!Check("op").no_overlap("y", shifted, "x", x).ok());
  EXPECT(!Check("op").no_overlap("x", x, "x", x).ok());
  // Columns 0 to 2 and 3 to 5 of rows of 6.
  EXPECT(Check("op").no_overlap("y", strided({4, 3}, {6, 1}, 3), "x", strided({4, 3}, {6, 1})).ok());
  EXPECT(!Check("op").no_overlap("y", strided({4, 4}, {6, 1}, 3), "x", strided({4, 4}, {6, 1})).ok());
  // What is empty lies nowhere.
  EXPECT(Check("op").no_overlap("y", TensorView(memory, DType::kF32, {0, 4}), "x", x).ok());
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  sgl_kernel::test_text();
  sgl_kernel::test_first_failure_wins();
  sgl_kernel::test_layouts();
  sgl_kernel::test_in_range();
  sgl_kernel::test_overlap();
  return sgl_kernel::test::result();
}
