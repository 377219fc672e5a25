// Scattered rows: memory-bound, each byte read once and written once. A thread copies a word of one row (of four, at
// many tokens), see device/row_grid.cuh; blockIdx.z picks k or v. The word is the widest that every address allows.
//
// H200, 2026-11-23, 1024 bytes a row of k and of v: 0.9 and 1.6 µs for 1 and 128 tokens, 3.93 TB/s for 65536.
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/kvcacheio/store_kv_cache_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <class Word, int kRows>
__global__ void __launch_bounds__(kRowGridThreads)
    store_kv_cache_kernel(const __grid_constant__ StoreKvCacheParams params) {
  wait_for_predecessor();
  release_successors();
  const RowCopy& copy = blockIdx.z == 0 ? params.k : params.v;
  const unsigned words_per_head = static_cast<unsigned>(copy.head_bytes / sizeof(Word));
  const unsigned column = static_cast<unsigned>(row_vec());
  if (column >= words_per_head * copy.num_heads) return;
  const int64_t head = column / words_per_head, offset = (column % words_per_head) * sizeof(Word);
  const char* const from = copy.from + head * copy.from_head_stride + offset;
  char* const to = copy.to + head * copy.to_head_stride + offset;
  for (RowRange<kRows> rows(params.num_tokens); rows.more(); rows.advance()) {
    Word words[kRows];
    int64_t slots[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t token = rows.at(i);
      if (token >= params.num_tokens) continue;
      slots[i] = params.loc_is_64 ? __ldg(static_cast<const int64_t*>(params.out_loc) + token)
                                  : __ldg(static_cast<const int32_t*>(params.out_loc) + token);
      words[i] = __ldg(reinterpret_cast<const Word*>(from + token * copy.from_stride));
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (rows.at(i) >= params.num_tokens) continue;
      *reinterpret_cast<Word*>(to + slots[i] * copy.to_stride) = words[i];
    }
  }
}

template <class Word>
Status run(const StoreKvCacheParams& params, Stream stream) {
  const int64_t k_words = params.k.num_heads * params.k.head_bytes / sizeof(Word);
  const int64_t v_words = params.v.num_heads * params.v.head_bytes / sizeof(Word);
  const int64_t words = std::max(k_words, v_words);
  const bool many = params.num_tokens * words >= kManyVecs;
  RowGrid shape = row_grid(words, params.num_tokens, many ? 4 : 1);
  shape.grid.z = 2;
  const LaunchShape launch_shape = {.grid = shape.grid, .block = shape.block, .pdl = true};
  return many ? launch("store_kv_cache", store_kv_cache_kernel<Word, 4>, launch_shape, stream, params)
              : launch("store_kv_cache", store_kv_cache_kernel<Word, 1>, launch_shape, stream, params);
}

// A number whose lowest set bit is the widest power of two that divides every address and size.
uint64_t alignment(const RowCopy& copy) {
  uint64_t bits = reinterpret_cast<uintptr_t>(copy.to) | reinterpret_cast<uintptr_t>(copy.from);
  for (int64_t bytes :
       {copy.head_bytes, copy.to_stride, copy.to_head_stride, copy.from_stride, copy.from_head_stride}) {
    bits |= static_cast<uint64_t>(bytes);
  }
  return bits;
}

}  // namespace

Status copy_rows_to_slots(const StoreKvCacheParams& params, Stream stream) {
  const uint64_t bits = alignment(params.k) | alignment(params.v);
  if (bits % 16 == 0) return run<uint4>(params, stream);
  if (bits % 8 == 0) return run<uint2>(params, stream);
  if (bits % 4 == 0) return run<uint32_t>(params, stream);
  if (bits % 2 == 0) return run<uint16_t>(params, stream);
  return run<uint8_t>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
