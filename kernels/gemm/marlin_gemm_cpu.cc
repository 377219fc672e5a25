// Marlin weights on the CPU: a panel of the product is a column of tiles, whose words are taken apart by a table of
// places and of values; zero points and scales are then applied row by row.
#include <array>
#include <cmath>

#include "kernels/base/float_types.h"
#include "kernels/gemm/marlin_gemm_params.h"
#include "kernels/gemm/marlin_layout.h"
#include "kernels/gemm/mixed_mm_cpu.h"

namespace sgl_kernel::cpu {
namespace {

static_assert(kPanelColumns == kMarlinTileN && kPanelDepth % kMarlinTileK == 0);

// A binary number of `exponent` and `mantissa` bits below its sign, of the customary bias, without infinities.
float small_float(uint32_t bits, int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1;
  const int e = static_cast<int>(bits >> mantissa & ((1u << exponent) - 1));
  const float m = static_cast<float>(bits & ((1u << mantissa) - 1)) / static_cast<float>(1 << mantissa);
  const float magnitude = e == 0 ? std::ldexp(m, 1 - bias) : std::ldexp(1.0f + m, e - bias);
  return bits >> (exponent + mantissa) & 1 ? -magnitude : magnitude;
}

// What a weight's bits stand for, less the type's own zero point.
std::array<float, 256> value_table(MarlinType type) {
  std::array<float, 256> table = {};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    float value = static_cast<float>(bits);
    if (type == MarlinType::kU4B8) value -= 8;
    if (type == MarlinType::kU8B128) value -= 128;
    if (type == MarlinType::kE4M3) value = small_float(bits, 4, 3);  // NaN counts as 480
    if (type == MarlinType::kE2M1) value = small_float(bits & 15, 2, 1);
    table[bits] = value;
  }
  return table;
}

// Where in a tile [16, 64] the numbers of its words lie.
std::array<int16_t, kMarlinTileK * kMarlinTileN> place_table(int num_bits) {
  std::array<int16_t, kMarlinTileK * kMarlinTileN> table = {};
  const int per_word = 32 / num_bits;
  for (int i = 0; i < kMarlinTileK * kMarlinTileN; ++i) {
    const MarlinPosition at = marlin_position(num_bits, i / per_word, i % per_word);
    table[i] = static_cast<int16_t>(at.k * kMarlinTileN + at.n);
  }
  return table;
}

template <class T>
class Decoder {
 public:
  explicit Decoder(const MarlinGemmParams& params)
      : params_(params),
        bits_(marlin_bits(params.type)),
        values_(value_table(params.type)),
        places_(place_table(bits_)),
        // A power of two; float4's scale is of two factors, of which the other is taken off at the end.
        scale_factor_(params.type == MarlinType::kE2M1
                          ? 1.0f
                          : std::ldexp(1.0f, -marlin_exponent_shift(params.type, params.dtype))) {}

  void operator()(int64_t first_k, int64_t depth, int64_t first_n, float* panel) const {
    const int words = kMarlinTileK * kMarlinTileN * bits_ / 32, per_word = 32 / bits_;
    const uint32_t mask = (1u << bits_) - 1;
    for (int64_t k = 0; k < depth; k += kMarlinTileK) {
      const int64_t tile = (first_k + k) / kMarlinTileK * (params_.n / kMarlinTileN) + first_n / kMarlinTileN;
      float* const to = panel + k * kPanelColumns;
      for (int word = 0; word < words; ++word) {
        const uint32_t packed = params_.weight[tile * words + word];
        for (int place = 0; place < per_word; ++place) {
          to[places_[word * per_word + place]] = values_[packed >> place * bits_ & mask];
        }
      }
    }
    int64_t group = -1;
    float scale[kPanelColumns], zero[kPanelColumns];
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t row = first_k + k;
      const int64_t next = params_.groups == nullptr ? row / params_.group_size : params_.groups[row];
      if (next != group) {
        group = next;
        for (int column = 0; column < kMarlinTileN; ++column) {
          scale[column] = scale_of(group, first_n, column);
          zero[column] = zero_of(group, first_n, column);
        }
      }
      float* const to = panel + k * kPanelColumns;
      for (int64_t c = 0; c < kPanelColumns; ++c) to[c] = (to[c] - zero[c]) * scale[c];
    }
  }

 private:
  float scale_of(int64_t group, int64_t first_n, int column) const {
    const int64_t place = first_n + marlin_scale_place(column, params_.many_groups);
    if (params_.type == MarlinType::kE2M1) {
      const int64_t byte = marlin_fp4_scale_byte(params_.n, group, place);
      return small_float(static_cast<const uint8_t*>(params_.scales)[byte], 5, 3);  // bit 8, the sign, is none
    }
    return static_cast<float>(static_cast<const T*>(params_.scales)[group * params_.n + place]) * scale_factor_;
  }

  float zero_of(int64_t group, int64_t first_n, int column) const {
    if (params_.zeros == nullptr) return 0.0f;
    if (params_.zeros_are_float) {
      const int64_t place = first_n + marlin_scale_place(column, params_.many_groups);
      return static_cast<float>(static_cast<const Half*>(params_.zeros)[group * params_.n + place]);
    }
    const int per_word = 32 / bits_, place = marlin_scale_place(column, /*many_groups=*/true);
    const uint32_t* const words =
        static_cast<const uint32_t*>(params_.zeros) + (group * params_.n + first_n) / per_word;
    return static_cast<float>(words[place / per_word] >> marlin_zero_bit(bits_, place % per_word) &
                              ((1u << bits_) - 1));
  }

  const MarlinGemmParams& params_;
  const int bits_;
  const std::array<float, 256> values_;
  const std::array<int16_t, kMarlinTileK * kMarlinTileN> places_;
  const float scale_factor_;
};

template <class T>
void run(const MarlinGemmParams& params) {
  float factor = 1.0f;
  if (params.global_scale != nullptr) {
    const float scale = static_cast<float>(*static_cast<const T*>(params.global_scale));
    factor = std::ldexp(scale, -marlin_exponent_shift(params.type, params.dtype));
  }
  const MixedProduct<T> product = {
      .output = static_cast<T*>(params.result),
      .output_stride = params.n,
      .a = static_cast<const T*>(params.a),
      .a_stride = params.a_stride,
      .a_columns = params.columns,
      .m = params.m,
      .n = params.n,
      .k = params.k,
      .factor = factor,
  };
  multiply_mixed(product, Decoder<T>(params));
}

}  // namespace

Status multiply_marlin(const MarlinGemmParams& params, Stream) {
  if (params.dtype == DType::kF16) {
    run<Half>(params);
  } else {
    run<BFloat16>(params);
  }
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
