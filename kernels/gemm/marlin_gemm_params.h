// What the targets of gptq_marlin_gemm take: checked.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/gemm/mixed_mm_splits.h"

namespace sgl_kernel {

enum class MarlinType : uint8_t { kU4, kU4B8, kU8, kU8B128, kE4M3, kE2M1 };

constexpr int marlin_bits(MarlinType type) {
  return type == MarlinType::kU4 || type == MarlinType::kU4B8 || type == MarlinType::kE2M1 ? 4 : 8;
}

// What upstream's kernel leaves out when it turns the bits of an 8-bit or a 4-bit float into those of a 16-bit one, the
// difference of the exponents' biases: the scales of a checkpoint make up for it.
constexpr int marlin_exponent_shift(MarlinType type, DType dtype) {
  if (type == MarlinType::kE4M3) return dtype == DType::kF16 ? 15 - 7 : 127 - 7;
  if (type == MarlinType::kE2M1) return dtype == DType::kF16 ? 15 - 1 : 127 - 1;
  return 0;
}

inline constexpr int kFp4Group = 16;

// The byte of a float4_e2m1f weight's scale in b_scales, from the group and the column's place.
constexpr int64_t marlin_fp4_scale_byte(int64_t n, int64_t group, int64_t place) {
  const int64_t within = place % 8, quad = within % 4;
  const int64_t swapped = quad == 1 ? 2 : quad == 2 ? 1 : quad;
  return group / 2 * 2 * n + place / 8 * 16 + group % 2 * 8 + within / 4 * 4 + swapped;
}

struct MarlinGemmParams {
  void* result;  // [m, n]
  const void* a;
  int64_t a_stride;
  DType dtype;
  MarlinType type;
  const uint32_t* weight;
  const void* scales;
  const void* zeros;         // null: those of the type
  const void* global_scale;  // null: 1
  const int32_t* columns;    // [k] of a, or null
  const int32_t* groups;     // [k]; null: groups of group_size
  int64_t m, n, k, num_groups, group_size;
  bool many_groups;  // the order of the scales, see marlin_scale_place()
  bool zeros_are_float;
  // Of a GPU's workspace.
  void* gathered;   // [m, k]: a in the order of `columns`; null without
  float* partials;  // f32 [num_splits, m, n]; null with one split
  int num_splits;
};

Status multiply_marlin(const MarlinGemmParams& params, Stream stream);

}  // namespace sgl_kernel
