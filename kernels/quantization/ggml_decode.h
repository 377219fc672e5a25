// Any block of ggml_blocks.h in one plain form, on the CPU:
//   value[i] = scale[i / 16] * q[i] + offset[i / 16]
#pragma once

#include <cstdint>

#include "kernels/quantization/ggml_blocks.h"

namespace sgl_kernel::ggml {

// Whether the format has an offset; kSize is its number of elements.
template <class Block>
struct Format {
  static constexpr int kSize = 256;
  static constexpr bool kHasOffset = false;
};

template <int kBlockSize, bool kOffset>
struct FormatOf {
  static constexpr int kSize = kBlockSize;
  static constexpr bool kHasOffset = kOffset;
};
template <>
struct Format<BlockQ4_0> : FormatOf<32, false> {};
template <>
struct Format<BlockQ4_1> : FormatOf<32, true> {};
template <>
struct Format<BlockQ5_0> : FormatOf<32, false> {};
template <>
struct Format<BlockQ5_1> : FormatOf<32, true> {};
template <>
struct Format<BlockQ8_0> : FormatOf<32, false> {};
template <>
struct Format<BlockIQ4_NL> : FormatOf<32, false> {};
template <>
struct Format<BlockQ2_K> : FormatOf<256, true> {};
template <>
struct Format<BlockQ4_K> : FormatOf<256, true> {};
template <>
struct Format<BlockQ5_K> : FormatOf<256, true> {};

// Calls body.operator()<Block>() for the block of a known type.
template <class Body>
void with_block(int64_t type, Body&& body) {
  switch (type) {
    case kQ4_0:
      return body.template operator()<BlockQ4_0>();
    case kQ4_1:
      return body.template operator()<BlockQ4_1>();
    case kQ5_0:
      return body.template operator()<BlockQ5_0>();
    case kQ5_1:
      return body.template operator()<BlockQ5_1>();
    case kQ8_0:
      return body.template operator()<BlockQ8_0>();
    case kIQ4_NL:
      return body.template operator()<BlockIQ4_NL>();
    case kQ2_K:
      return body.template operator()<BlockQ2_K>();
    case kQ3_K:
      return body.template operator()<BlockQ3_K>();
    case kQ4_K:
      return body.template operator()<BlockQ4_K>();
    case kQ5_K:
      return body.template operator()<BlockQ5_K>();
    case kQ6_K:
      return body.template operator()<BlockQ6_K>();
    case kIQ2_XXS:
      return body.template operator()<BlockIQ2_XXS>();
    case kIQ2_XS:
      return body.template operator()<BlockIQ2_XS>();
    case kIQ2_S:
      return body.template operator()<BlockIQ2_S>();
    case kIQ3_XXS:
      return body.template operator()<BlockIQ3_XXS>();
    case kIQ3_S:
      return body.template operator()<BlockIQ3_S>();
    case kIQ1_S:
      return body.template operator()<BlockIQ1_S>();
    case kIQ1_M:
      return body.template operator()<BlockIQ1_M>();
    case kIQ4_XS:
      return body.template operator()<BlockIQ4_XS>();
  }
}

// q [kSize], scale and offset [kSize / 16]; offset is not touched where the format has none.
void decode(const BlockQ4_0& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ4_1& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ5_0& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ5_1& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ8_0& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ4_NL& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ2_K& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ3_K& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ4_K& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ5_K& block, int8_t* q, float* scale, float* offset);
void decode(const BlockQ6_K& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ2_XXS& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ2_XS& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ2_S& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ3_XXS& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ3_S& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ1_S& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ1_M& block, int8_t* q, float* scale, float* offset);
void decode(const BlockIQ4_XS& block, int8_t* q, float* scale, float* offset);

}  // namespace sgl_kernel::ggml
