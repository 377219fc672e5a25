// Attention on the CPU: an online softmax in f32 over blocks of 32 keys.
//
// A piece of work is a tile of query rows that share a KV head (rows are numbered token * group + head). Each block of
// keys and values is converted to f32 once for the tile and stays in the L1 and L2 caches. Blocks begin at multiples of
// 32 keys and masked keys add exactly 0, so a row's bits depend on its own sequence alone. num_splits is not used.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/flash_attention_params.h"
#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/dispatch.h"
#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int kTileRows = 16;   // query rows that share a conversion
constexpr int kBlockKeys = 32;  // 32 keys of 256 dimensions are 32 KiB of f32
constexpr int kMaxHeadDim = 256;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// One block of keys and values, and the rows of one tile. Columns behind head_dim are not used.
struct Workspace {
  alignas(32) float keys[kBlockKeys][kMaxHeadDim];
  alignas(32) float values[kBlockKeys][kMaxHeadDim];
  alignas(32) float queries[kTileRows][kMaxHeadDim];
  alignas(32) float output[kTileRows][kMaxHeadDim];
  alignas(32) float scores[kBlockKeys];
  float max[kTileRows], sum[kTileRows];
};

// The inner loops, twice: dimensions are multiples of 8.
struct PlainLoops {
  template <class T>
  static void to_float(float* target, const T* source, int n) {
    for (int i = 0; i < n; ++i) target[i] = static_cast<float>(source[i]);
  }

  template <class T>
  static void from_float(T* target, const float* source, float factor, int n) {
    for (int i = 0; i < n; ++i) target[i] = static_cast<T>(source[i] * factor);
  }

  // scores[j] = scale * query · keys[j]
  static void scores(Workspace& work, int row, float scale, int dim) {
    for (int j = 0; j < kBlockKeys; ++j) {
      float sum = 0.0f;
      for (int d = 0; d < dim; ++d) sum += work.queries[row][d] * work.keys[j][d];
      work.scores[j] = sum * scale;
    }
  }

  // The largest score, or `max` if that is larger; a NaN is none.
  static float largest(const Workspace& work, float max) {
    for (const float score : work.scores) max = score > max ? score : max;
    return max;
  }

  // Turns scores into exp(score - max); returns their sum.
  static float exponentials(Workspace& work, float max) {
    float sum = 0.0f;
    for (float& score : work.scores) sum += score = std::exp(score - max);
    return sum;
  }

  // output = output * correction + sum_j probabilities[j] values[j]
  static void accumulate(Workspace& work, int row, float correction, int dim) {
    float* output = work.output[row];
    for (int d = 0; d < dim; ++d) output[d] *= correction;
    for (int j = 0; j < kBlockKeys; ++j) {
      for (int d = 0; d < dim; ++d) output[d] += work.scores[j] * work.values[j][d];
    }
  }
};

#if defined(__x86_64__)
struct Avx2Loops {
  template <class T>
  SGL_AVX2 static void to_float(float* target, const T* source, int n) {
    for (int i = 0; i < n; i += 8) store8(target + i, load8(source + i));
  }

  template <class T>
  SGL_AVX2 static void from_float(T* target, const float* source, float factor, int n) {
    for (int i = 0; i < n; i += 8) store8(target + i, _mm256_mul_ps(load8(source + i), _mm256_set1_ps(factor)));
  }

  // Eight keys at a time: as many sums as hide the latency of a multiply-add.
  SGL_AVX2 static void scores(Workspace& work, int row, float scale, int dim) {
    const float* query = work.queries[row];
    for (int j = 0; j < kBlockKeys; j += 8) {
      __m256 sums[8];
      for (__m256& sum : sums) sum = _mm256_setzero_ps();
      for (int d = 0; d < dim; d += 8) {
        const __m256 q = load8(query + d);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sums[i] = _mm256_fmadd_ps(q, load8(work.keys[j + i] + d), sums[i]);
      }
      // The sums of the eight vectors: pairs, then fours, then the two halves.
      const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
      const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
      const __m256 products =
          _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
      store8(work.scores + j, _mm256_mul_ps(products, _mm256_set1_ps(scale)));
    }
  }

  SGL_AVX2 static float largest(const Workspace& work, float max) {
    __m256 largest = _mm256_set1_ps(max);
    // Of a NaN and a number, maxps gives its second operand.
    for (int j = 0; j < kBlockKeys; j += 8) largest = _mm256_max_ps(load8(work.scores + j), largest);
    alignas(32) float lanes[8];
    store8(lanes, largest);
    for (const float lane : lanes) max = lane > max ? lane : max;
    return max;
  }

  SGL_AVX2 static float exponentials(Workspace& work, float max) {
    __m256 sum = _mm256_setzero_ps();
    for (int j = 0; j < kBlockKeys; j += 8) {
      const __m256 power = exp8(_mm256_sub_ps(load8(work.scores + j), _mm256_set1_ps(max)));
      store8(work.scores + j, power);
      sum = _mm256_add_ps(sum, power);
    }
    alignas(32) float lanes[8];
    store8(lanes, sum);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
  }

  SGL_AVX2 static void accumulate(Workspace& work, int row, float correction, int dim) {
    int d = 0;
    for (; d + 64 <= dim; d += 64) accumulate_columns<8>(work, row, correction, d);
    for (; d < dim; d += 8) accumulate_columns<1>(work, row, correction, d);
  }

 private:
  // kVectors * 8 columns, which stay in registers.
  template <int kVectors>
  SGL_AVX2 static void accumulate_columns(Workspace& work, int row, float correction, int first) {
    float* output = work.output[row] + first;
    __m256 sums[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sums[i] = _mm256_mul_ps(load8(output + 8 * i), _mm256_set1_ps(correction));
    for (int j = 0; j < kBlockKeys; ++j) {
      const __m256 probability = _mm256_set1_ps(work.scores[j]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        sums[i] = _mm256_fmadd_ps(probability, load8(work.values[j] + first + 8 * i), sums[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) store8(output + 8 * i, sums[i]);
  }
};
#endif

float sink_of(const AttentionParams& params, int head) {
  if (params.sinks == nullptr) return kNegativeInfinity;
  SGL_CPU_SWITCH_FLOAT(params.sinks_dtype, T, return static_cast<float>(static_cast<const T*>(params.sinks)[head]));
}

// Where query row `token` of a head lies, for a tensor with these strides.
int64_t row_offset(const AttentionSequence& sequence, int batch, int token, int head, int64_t batch_stride,
                   int64_t row_stride, int64_t head_stride) {
  return batch * batch_stride + (sequence.q_start + token) * row_stride + head * head_stride;
}

// Rows [first_row, first_row + count) of KV head kv_head.
template <class T, class Loops>
void attend_tile(const AttentionParams& params, int batch, int kv_head, int first_row, int count, Workspace& work) {
  const AttentionSequence sequence = sequence_of(params, batch);
  const int group = params.group();
  count = std::min(count, sequence.q_len * group - first_row);
  if (count <= 0) return;
  const auto token_of = [&](int i) { return (first_row + i) / group; };
  const auto head_of = [&](int i) { return kv_head * group + (first_row + i) % group; };

  KeyRange visible[kTileRows];
  for (int i = 0; i < count; ++i) {
    visible[i] = visible_keys(params, sequence.q_len, sequence.k_len, token_of(i));
    Loops::to_float(
        work.queries[i],
        static_cast<const T*>(params.q) + row_offset(sequence, batch, token_of(i), head_of(i), params.q_batch_stride,
                                                     params.q_row_stride, params.q_head_stride),
        params.head_dim);
    std::fill_n(work.output[i], params.head_dim_v, 0.0f);
    work.max[i] = kNegativeInfinity;
    work.sum[i] = 0.0f;
  }

  const int begin = visible[0].begin, end = visible[count - 1].end;
  const T* keys = static_cast<const T*>(params.k) + kv_head * params.k_head_stride;
  const T* values = static_cast<const T*>(params.v) + kv_head * params.v_head_stride;
  for (int block = begin / kBlockKeys * kBlockKeys; block < end; block += kBlockKeys) {
    for (int j = 0; j < kBlockKeys; ++j) {
      const int key = block + j;
      if (key >= begin && key < end) {
        const KeySlot slot = key_slot(params, sequence, key);
        Loops::to_float(work.keys[j], keys + slot_offset(slot, params.k_batch_stride, params.k_row_stride),
                        params.head_dim);
        Loops::to_float(work.values[j], values + slot_offset(slot, params.v_batch_stride, params.v_row_stride),
                        params.head_dim_v);
      } else {  // nobody sees it: whatever the cache holds there must not turn 0 * value into NaN
        std::fill_n(work.keys[j], params.head_dim, 0.0f);
        std::fill_n(work.values[j], params.head_dim_v, 0.0f);
      }
    }
    for (int i = 0; i < count; ++i) {
      if (visible[i].begin >= block + kBlockKeys || visible[i].end <= block) continue;
      Loops::scores(work, i, params.softmax_scale, params.head_dim);
      if (params.softcap > 0.0f) {
        for (float& score : work.scores) score = params.softcap * std::tanh(score / params.softcap);
      }
      for (int j = 0; j < visible[i].begin - block; ++j) work.scores[j] = kNegativeInfinity;
      for (int j = std::max(visible[i].end - block, 0); j < kBlockKeys; ++j) work.scores[j] = kNegativeInfinity;
      const float max = Loops::largest(work, work.max[i]);
      const float shift = max == kNegativeInfinity ? 0.0f : max;
      const float correction = std::exp(work.max[i] - shift);
      work.max[i] = max;
      work.sum[i] = work.sum[i] * correction + Loops::exponentials(work, shift);
      Loops::accumulate(work, i, correction, params.head_dim_v);
    }
  }

  for (int i = 0; i < count; ++i) {
    const int token = token_of(i), head = head_of(i);
    const float sink = sink_of(params, head);
    const float top = std::max(work.max[i], sink);
    float factor = 0.0f, lse = kNegativeInfinity;
    if (top != kNegativeInfinity) {
      const float scaled = std::exp(work.max[i] - top);
      const float total = work.sum[i] * scaled + std::exp(sink - top);
      factor = scaled / total;
      lse = top + std::log(total);
    }
    params.lse[batch * params.lse_batch_stride + head * params.lse_head_stride + sequence.q_start + token] = lse;
    Loops::from_float(static_cast<T*>(params.out) + row_offset(sequence, batch, token, head, params.out_batch_stride,
                                                               params.out_row_stride, params.out_head_stride),
                      work.output[i], factor, params.head_dim_v);
  }
}

template <class T, class Loops>
void attend(const AttentionParams& params) {
  // Tiles small enough that every thread gets several: sequences differ in length.
  const int64_t rows = static_cast<int64_t>(params.seqlen_q) * params.group();
  const int64_t all_rows = rows * params.num_heads_k * params.batch;
  const int64_t wanted = (all_rows + 4 * num_threads() - 1) / (4 * num_threads());
  const int tile = static_cast<int>(std::clamp<int64_t>(wanted, 1, kTileRows));
  const int64_t tiles = (rows + tile - 1) / tile;
  parallel_for(tiles * params.num_heads_k * params.batch, /*grain=*/1, [&](int64_t begin, int64_t end) {
    Workspace work;
    for (int64_t i = begin; i < end; ++i) {
      // Tiles with the most keys are at the end of a causal sequence: the KV head and the sequence run fastest, so
      // that contiguous ranges of work see many keys and few.
      const int64_t heads = static_cast<int64_t>(params.num_heads_k) * params.batch;
      const int64_t place = i % heads;
      int64_t row_tile = i / heads;
      row_tile = row_tile % 2 == 0 ? row_tile / 2 : tiles - 1 - row_tile / 2;
      attend_tile<T, Loops>(params, static_cast<int>(place / params.num_heads_k),
                            static_cast<int>(place % params.num_heads_k), static_cast<int>(row_tile * tile), tile,
                            work);
    }
  });
}

// A row of `dim` elements, the first rotary_dim of them rotated by the angles of `position`.
//   interleaved: pairs (2 i, 2 i + 1), else (i, i + rotary_dim / 2), i < rotary_dim / 2
template <class T>
void rotate_row(T* target, const T* source, int dim, int64_t position, const AttentionParams& params) {
  const int pairs = params.rotary_dim / 2;
  const T* cosines = static_cast<const T*>(params.rotary_cos) + position * pairs;
  const T* sines = static_cast<const T*>(params.rotary_sin) + position * pairs;
  for (int i = 0; i < pairs; ++i) {
    const int first = params.rotary_interleaved ? 2 * i : i;
    const int second = params.rotary_interleaved ? 2 * i + 1 : i + pairs;
    const float x = source[first], y = source[second], cosine = cosines[i], sine = sines[i];
    target[first] = T(x * cosine - y * sine);
    target[second] = T(x * sine + y * cosine);
  }
  std::copy(source + params.rotary_dim, source + dim, target + params.rotary_dim);
}

template <class T>
void append_new_keys(const AttentionParams& params) {
  for (int batch = 0; batch < params.batch; ++batch) {
    const AttentionSequence sequence = sequence_of(params, batch);
    const int cached = sequence.k_len - sequence.k_new_len;
    const int64_t first_position = first_rotary_position(params, sequence, batch);
    for (int token = 0; token < sequence.k_new_len; ++token) {
      const KeySlot slot = key_slot(params, sequence, cached + token);
      for (int head = 0; head < params.num_heads_k; ++head) {
        const T* k_source = static_cast<const T*>(params.k_new) + batch * params.k_new_batch_stride +
                            (sequence.k_new_start + token) * params.k_new_row_stride + head * params.k_new_head_stride;
        const T* v_source = static_cast<const T*>(params.v_new) + batch * params.v_new_batch_stride +
                            (sequence.k_new_start + token) * params.v_new_row_stride + head * params.v_new_head_stride;
        T* k_target = static_cast<T*>(const_cast<void*>(params.k)) +
                      slot_offset(slot, params.k_batch_stride, params.k_row_stride) + head * params.k_head_stride;
        T* v_target = static_cast<T*>(const_cast<void*>(params.v)) +
                      slot_offset(slot, params.v_batch_stride, params.v_row_stride) + head * params.v_head_stride;
        rotate_row(k_target, k_source, params.head_dim, clamp_rotary_position(params, first_position + token), params);
        std::copy_n(v_source, params.head_dim_v, v_target);
      }
    }
    if (params.rotary_dim == 0) continue;
    const AttentionParams rotated = with_rotated_queries(params);
    for (int token = 0; token < sequence.q_len; ++token) {
      const int64_t position = first_position + (params.rotate_q_by_row ? token : 0);
      for (int head = 0; head < params.num_heads; ++head) {
        rotate_row(static_cast<T*>(params.rotated_q) + row_offset(sequence, batch, token, head, rotated.q_batch_stride,
                                                                  rotated.q_row_stride, rotated.q_head_stride),
                   static_cast<const T*>(params.q) + row_offset(sequence, batch, token, head, params.q_batch_stride,
                                                                params.q_row_stride, params.q_head_stride),
                   params.head_dim, clamp_rotary_position(params, position), params);
      }
    }
  }
}

template <class T>
void run(const AttentionParams& params) {
  if (params.k_new != nullptr) append_new_keys<T>(params);
  const AttentionParams attended = with_rotated_queries(params);
#if defined(__x86_64__)
  if (has_avx2()) return attend<T, Avx2Loops>(attended);
#endif
  attend<T, PlainLoops>(attended);
}

}  // namespace

Status flash_attention_most_merged_splits(int* most) {
  *most = 1;
  return OkStatus();
}

Status flash_attention_forward(const AttentionParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T>(params));
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
