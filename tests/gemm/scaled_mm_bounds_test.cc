// Products of 8-bit matrices on the CPU, each operand and the output in memory of its own that ends or starts where a
// page begins that nobody may touch: a read or write beyond is a fault, masked loads and tiles included, which a
// sanitizer does not see. Once with each kind of loops that the processor has.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/gemm/scaled_mm.h"
#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

enum class Side { kEnd, kStart };

class GuardedBytes {
 public:
  GuardedBytes(int64_t size, Side side) : page_(sysconf(_SC_PAGESIZE)) {
    inside_ = (size + page_ - 1) / page_ * page_;
    start_ = static_cast<uint8_t*>(
        mmap(nullptr, inside_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, /*offset=*/0));
    if (start_ == MAP_FAILED || mprotect(start_ + page_, inside_, PROT_READ | PROT_WRITE) != 0) std::abort();
    data_ = start_ + page_ + (side == Side::kEnd ? inside_ - size : 0);
  }
  GuardedBytes(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(start_, inside_ + 2 * page_); }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  int64_t page_, inside_;
  uint8_t* start_;
  uint8_t* data_;
};

enum class Scheme { kFp8, kInt8, kBlocks, kBatches };

struct Shape {
  int64_t m, n, k, padding;  // elements between two rows of each operand
};

double number(uint8_t bits, DType dtype) {
  if (dtype == DType::kI8) return static_cast<int8_t>(bits);
  if (dtype == DType::kF8E5M2) {
    Half value;
    value.bits = static_cast<uint16_t>(bits << 8);
    return static_cast<float>(value);
  }
  Float8E4M3 value;
  value.bits = bits;
  return static_cast<float>(value);
}

// [batches * rows, k]; the last row has no padding behind it.
struct Matrix {
  Matrix(int64_t rows, const Shape& shape, DType dtype, Side side, std::mt19937* random)
      : k(shape.k), stride(shape.k + shape.padding), bytes((rows - 1) * stride + k, side), numbers(rows * k) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t l = 0; l < k; ++l) {
        uint8_t value = static_cast<uint8_t>((*random)());
        if (dtype != DType::kI8) value &= dtype == DType::kF8E5M2 ? 0xcf : 0xdf;  // finite, and not too large
        bytes.data<uint8_t>()[row * stride + l] = value;
        numbers[row * k + l] = number(value, dtype);
      }
    }
  }
  const double* row(int64_t row) const { return numbers.data() + row * k; }

  int64_t k, stride;
  GuardedBytes bytes;
  std::vector<double> numbers;
};

// A product of each scheme with all that it reads and writes.
class Product {
 public:
  Product(Scheme scheme, const Shape& shape, DType a_dtype, DType b_dtype, Side side, std::mt19937* random)
      : scheme_(scheme),
        shape_(shape),
        batches_(scheme == Scheme::kBatches ? 3 : 1),
        k_blocks_((shape.k + kBlock - 1) / kBlock),
        n_blocks_((shape.n + kBlock - 1) / kBlock),
        output_stride_(shape.n + shape.padding),
        a_dtype_(a_dtype),
        b_dtype_(b_dtype),
        a_(batches_ * shape.m, shape, a_dtype, side, random),
        b_(batches_ * shape.n, shape, b_dtype, side, random),
        a_scales_(4 * num_scales(shape.m, shape.m * k_blocks_), side),
        b_scales_(4 * num_scales(shape.n, n_blocks_ * k_blocks_), side),
        bias_(2 * shape.n, side),
        output_(2 * ((batches_ * shape.m - 1) * output_stride_ + shape.n), side) {
    std::uniform_real_distribution<float> draw(0.5f, 2.0f);
    for (int64_t i = 0; i < num_scales(shape.m, shape.m * k_blocks_); ++i) a_scales_.data<float>()[i] = draw(*random);
    for (int64_t i = 0; i < num_scales(shape.n, n_blocks_ * k_blocks_); ++i) b_scales_.data<float>()[i] = draw(*random);
    for (int64_t j = 0; j < shape.n; ++j) bias_.data<BFloat16>()[j] = BFloat16(draw(*random));
  }

  Status run() const {
    const auto [m, n, k, padding] = shape_;
    const int64_t a_shape[] = {batches_, m, k}, a_strides[] = {m * a_.stride, a_.stride, 1};
    const int64_t b_shape[] = {batches_, k, n}, b_strides[] = {n * b_.stride, 1, b_.stride};
    const int64_t shape[] = {batches_, m, n}, strides[] = {m * output_stride_, output_stride_, 1};
    const int first = scheme_ == Scheme::kBatches ? 0 : 1, rank = 3 - first;
    const TensorView a(a_.bytes.data<void>(), a_dtype_, rank, a_shape + first, a_strides + first, Device());
    const TensorView b(b_.bytes.data<void>(), b_dtype_, rank, b_shape + first, b_strides + first, Device());
    const TensorView output(output_.data<void>(), DType::kBF16, rank, shape + first, strides + first, Device());
    void *const a_scales = a_scales_.data<void>(), *const b_scales = b_scales_.data<void>();
    if (scheme_ == Scheme::kBatches) {
      const TensorView a_scale(a_scales, DType::kF32, {1}), b_scale(b_scales, DType::kF32, {1});
      return bmm_fp8(a, b, output, a_scale, b_scale, /*workspace_buffer=*/a_scale, /*cublas_handle=*/0, Stream());
    }
    if (scheme_ == Scheme::kBlocks) {
      return fp8_blockwise_scaled_mm(output, a, b, TensorView(a_scales, DType::kF32, {m, k_blocks_}),
                                     TensorView(b_scales, DType::kF32, {k_blocks_, n_blocks_}), Stream());
    }
    const auto multiply = scheme_ == Scheme::kInt8 ? int8_scaled_mm : fp8_scaled_mm;
    return multiply(output, a, b, TensorView(a_scales, DType::kF32, {m}), TensorView(b_scales, DType::kF32, {n}),
                    TensorView(bias_.data<void>(), DType::kBF16, {n}), Stream());
  }

  bool is_right(int64_t batch, int64_t i, int64_t j) const {
    const double* const a = a_.row(batch * shape_.m + i);
    const double* const b = b_.row(batch * shape_.n + j);
    const float *const a_scales = a_scales_.data<float>(), *const b_scales = b_scales_.data<float>();
    double sum = 0, magnitude = 0;
    for (int64_t l = 0; l < shape_.k; ++l) {
      double term = a[l] * b[l];
      if (scheme_ == Scheme::kBlocks) {
        term *= a_scales[i * k_blocks_ + l / kBlock];
        term *= b_scales[l / kBlock * n_blocks_ + j / kBlock];
      }
      sum += term;
      magnitude += std::fabs(term);
    }
    if (scheme_ != Scheme::kBlocks) {
      const bool one = scheme_ == Scheme::kBatches;
      const double scale = double{a_scales[one ? 0 : i]} * b_scales[one ? 0 : j];
      const double added = one ? 0.0 : static_cast<float>(bias_.data<BFloat16>()[j]);
      sum = sum * scale + added;
      magnitude = magnitude * scale + added;
    }
    // bf16's rounding, and those of float32: see tiled_mm_cpu.h.
    const double bound = std::ldexp(std::fabs(sum), -8) + (26 + shape_.k / 128.0) * std::ldexp(magnitude, -24);
    const BFloat16 value = output_.data<BFloat16>()[(batch * shape_.m + i) * output_stride_ + j];
    return std::fabs(static_cast<float>(value) - sum) <= bound;
  }

  int64_t num_wrong() const {
    int64_t wrong = 0;
    for (int64_t batch = 0; batch < batches_; ++batch) {
      for (int64_t i = 0; i < shape_.m; ++i) {
        for (int64_t j = 0; j < shape_.n; ++j) wrong += !is_right(batch, i, j);
      }
    }
    return wrong;
  }

 private:
  static constexpr int64_t kBlock = 128;

  int64_t num_scales(int64_t of_rows, int64_t of_blocks) const {
    return scheme_ == Scheme::kBatches ? 1 : scheme_ == Scheme::kBlocks ? of_blocks : of_rows;
  }

  Scheme scheme_;
  Shape shape_;
  int64_t batches_, k_blocks_, n_blocks_, output_stride_;
  DType a_dtype_, b_dtype_;
  Matrix a_, b_;
  GuardedBytes a_scales_, b_scales_, bias_, output_;
};

void test_product(Scheme scheme, const Shape& shape, DType a_dtype, DType b_dtype, Side side, std::mt19937* random) {
  const Product product(scheme, shape, a_dtype, b_dtype, side, random);
  const bool ok = product.run().ok();
  const int64_t num_wrong = product.num_wrong();
  EXPECT(ok);
  EXPECT_EQ(num_wrong, int64_t{0});
  if (ok && num_wrong == 0) return;
  std::printf("scheme %d, %lld x %lld x %lld, padding %lld\n", static_cast<int>(scheme),
              static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
              static_cast<long long>(shape.padding));
}

void test_all_shapes() {
  // Beside the extents of tiles of each kind of loops.
  constexpr int64_t kM[] = {1, 2, 3, 4, 5, 15, 16, 17, 24, 25, 33, 64, 129, 140};
  constexpr int64_t kN[] = {1, 3, 15, 16, 17, 31, 33, 48, 49, 63, 64, 65, 129, 260};
  constexpr int64_t kK[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 700, 1040};
  constexpr DType kE4M3 = DType::kF8E4M3, kE5M2 = DType::kF8E5M2, kI8 = DType::kI8;
  // Each K with seven of the others. kN goes by fives, which do not divide its size, and one further each time that kM
  // is through.
  constexpr int kTurnsOfK = 7, kPadding = 7;
  std::mt19937 random(0);
  int turn = 0;
  for (const int64_t k : kK) {
    for (int i = 0; i < kTurnsOfK; ++i, ++turn) {
      const Shape shape = {kM[turn % std::size(kM)], kN[(turn * 5 + turn / std::size(kM)) % std::size(kN)], k,
                           turn % 3 == 0 ? kPadding : 0};
      const Side side = turn % 2 == 0 ? Side::kEnd : Side::kStart;
      test_product(Scheme::kFp8, shape, kE4M3, kE4M3, side, &random);
      test_product(Scheme::kInt8, shape, kI8, kI8, side, &random);
      test_product(Scheme::kBlocks, shape, kE4M3, kE4M3, side, &random);
      test_product(Scheme::kBatches, shape, turn % 4 < 2 ? kE4M3 : kE5M2, turn % 4 % 2 ? kE4M3 : kE5M2, side, &random);
    }
  }
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  int failed = 0;
  // Which loops serve is decided once in a process.
  for (const char* without : {"", "SGL_KERNEL_AMX", "SGL_KERNEL_AVX2"}) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      if (*without != '\0') setenv(without, "0", /*overwrite=*/1);
      sgl_kernel::test_all_shapes();
      std::fflush(stdout);
      _exit(sgl_kernel::test::result());
    }
    int status = 0;
    waitpid(child, &status, 0);
    std::printf("without '%s': status %d\n", without, status);
    failed += status != 0;
  }
  return failed == 0 ? 0 : 1;
}
