// A consumer of the Hopper prefill kernel: the scores, the softmax and the output of 64 query rows.
#pragma once

#include "kernels/attention/flash_attention_prefill_tiles_sm90a.cuh"
#include "kernels/attention/flash_attention_rows.cuh"

namespace sgl_kernel::SGL_TARGET::prefill {

__device__ __forceinline__ float tanh_approximate(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over the four lanes that hold one row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a consumer thread knows of its rows: r = 0 and 1 are row lane / 4 and that plus 8 of its warp's 16.
struct RowState {
  float max[2];  // of the unscaled scores, the one that exponents refer to; the same in the four lanes of a row
  float sum[2];  // of the exponentials, this lane's part
};

template <int kTileN>
__device__ __forceinline__ void apply_softcap(float (&s)[kTileN / 2], float softcap_scale) {
#pragma unroll
  for (int i = 0; i < kTileN / 2; ++i) s[i] = tanh_approximate(s[i] * softcap_scale);
}

// Columns outside [begin, end) of their row get -inf; counted from the first column of this thread.
template <int kTileN>
__device__ __forceinline__ void apply_mask(float (&s)[kTileN / 2], const KeyRange (&visible)[2]) {
#pragma unroll
  for (int i = 0; i < kTileN / 2; ++i) {
    const int column = i / 4 * 8 + i % 2, r = i / 2 % 2;
    if (column < visible[r].begin || column >= visible[r].end) s[i] = -INFINITY;
  }
}

// Turns scores into exponentials against the running maximum; `rescale` gets the factors for O. Returns whether any of
// this warp's factors is not 1.
template <class C>
__device__ __forceinline__ bool softmax_step(float (&s)[C::kTileN / 2], float scale_log2, RowState& rows,
                                             float (&rescale)[2]) {
  // A maximum may lag behind by 2^8 before O follows: the exponentials still fit f16, and the error is relative.
  constexpr float kLag = 8.0f;
  bool changed = false;
  float offset[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float even = s[2 * r], odd = s[2 * r + 1];
#pragma unroll
    for (int j = 1; j < C::kTileN / 8; ++j) {
      even = fmaxf(even, s[4 * j + 2 * r]);
      odd = fmaxf(odd, s[4 * j + 2 * r + 1]);
    }
    const float tile_max = quad_max(fmaxf(even, odd));
    rescale[r] = 1.0f;
    // Not true while both are -inf: their difference is NaN.
    if ((tile_max - rows.max[r]) * scale_log2 > kLag) {
      rescale[r] = exp2_approx((rows.max[r] - tile_max) * scale_log2);
      rows.max[r] = tile_max;
      changed = true;
    }
    offset[r] = rows.max[r] == -INFINITY ? 0.0f : rows.max[r] * scale_log2;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int j = 0; j < C::kTileN / 8; ++j) {
      float& a = s[4 * j + 2 * r];
      float& b = s[4 * j + 2 * r + 1];
      a = exp2_approx(fmaf(a, scale_log2, -offset[r]));
      b = exp2_approx(fmaf(b, scale_log2, -offset[r]));
      even += a;
      odd += b;
    }
    rows.sum[r] = rows.sum[r] * rescale[r] + (even + odd);
  }
  return __any_sync(~0u, changed);
}

// The scores' columns become A's: two groups of 8 columns a k-step.
template <class C>
__device__ __forceinline__ void pack_probabilities(const float (&s)[C::kTileN / 2], uint32_t (&p)[C::kTileN / 16][4]) {
#pragma unroll
  for (int i = 0; i < C::kTileN / 4; ++i) {
    p[i / 4][i % 4] = pack<typename C::Element>(s[2 * i], s[2 * i + 1]);
  }
}

// The widest wgmma that O uses; a wider O is two of them side by side.
template <class C>
inline constexpr int kOutN = C::kHeadDimV < 128 ? C::kHeadDimV : 128;
template <class C>
inline constexpr int kOutParts = C::kHeadDimV / kOutN<C>;

// Four neighbouring lanes hold two columns each of four groups of 8; afterwards lane q holds all of group q.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const bool upper = lane & bit;
      const uint32_t received = __shfl_xor_sync(~0u, upper ? w[i] : w[i | bit], bit);
      (upper ? w[i] : w[i | bit]) = received;
    }
  }
}

template <class C>
struct Consumer {
  using T = typename C::Element;
  static constexpr int kTileN = C::kTileN;

  const PrefillCall& call;
  SharedMemory<C>& shared;
  const int consumer, lane, warp;  // warp of the warpgroup
  const uint64_t q_descriptor, k_descriptor, v_descriptor;
  RingPosition<kStages> k_at, v_at;
  uint32_t q_parity = 0;

  __device__ __forceinline__ Consumer(const PrefillCall& call, SharedMemory<C>& shared, int consumer)
      : call(call),
        shared(shared),
        consumer(consumer),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32 % 4),
        q_descriptor(make_descriptor(shared_address(shared.q) + consumer * kRowsPerConsumer * kSwizzleBytes, 0)),
        k_descriptor(make_descriptor(shared_address(shared.k), 0)),
        v_descriptor(make_descriptor(shared_address(shared.v), C::kPanelBytes)) {}

  // The barriers of two consumers taking turns: 1 and 2.
  __device__ __forceinline__ void wait_for_turn() const { named_barrier_sync(1 + consumer, kConsumers * kWarpgroup); }
  __device__ __forceinline__ void pass_turn() const {
    named_barrier_arrive(1 + (consumer ^ 1), kConsumers * kWarpgroup);
  }

  // A warp at a time: wait_wgmma() waits for the own warp's part only.
  __device__ __forceinline__ void release(Barrier& empty) const {
    if (lane == 0) empty.arrive();
  }

  __device__ __forceinline__ void issue_scores(float (&s)[kTileN / 2]) const {
    const uint64_t k = k_descriptor + k_at.index * descriptor_offset(C::kKBytes);
    pin_registers(s);
    open_wgmma();
#pragma unroll
    for (int step = 0; step < C::kHeadDim / 16; ++step) {
      const int panel = step / 4, inside = step % 4 * 32;  // a k-step is 32 of a panel row's 128 bytes
      wgmma_shared<T, kTileN>(s, q_descriptor + descriptor_offset(panel * C::kQPanelBytes + inside),
                              k + descriptor_offset(panel * C::kPanelBytes + inside), step != 0);
    }
    commit_wgmma();
    pin_registers(s);
  }

  __device__ __forceinline__ void pin(float (&o)[kOutParts<C>][kOutN<C> / 2]) const {
#pragma unroll
    for (int part = 0; part < kOutParts<C>; ++part) pin_registers(o[part]);
  }
  __device__ __forceinline__ void pin(uint32_t (&p)[kTileN / 16][4]) const {
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) pin_registers(p[step]);
  }

  __device__ __forceinline__ void issue_values(float (&o)[kOutParts<C>][kOutN<C> / 2],
                                               uint32_t (&p)[kTileN / 16][4]) const {
    const uint64_t v = v_descriptor + v_at.index * descriptor_offset(C::kVBytes);
    pin(o);
    pin(p);
    open_wgmma();
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) {
#pragma unroll
      for (int part = 0; part < kOutParts<C>; ++part) {
        constexpr int kPartBytes = kOutN<C> / kPanel * C::kPanelBytes;
        wgmma_registers<T, kOutN<C>>(o[part], p[step],
                                     v + descriptor_offset(part * kPartBytes + step * 16 * kSwizzleBytes));
      }
    }
    commit_wgmma();
    pin(o);
  }

  __device__ __forceinline__ KeyRange keys_of_row(const Tile& tile, int row) const {
    return visible_keys(call.params, tile.sequence.q_len, tile.sequence.k_len, row / call.schedule.pack);
  }

  // The keys that all rows of this consumer see, and those that this thread's rows see.
  struct Visible {
    KeyRange by_all, by_row[2];
  };

  __device__ __forceinline__ Visible find_visible(const Tile& tile, const KeyRange& seen_by_all) const {
    Visible visible = {.by_all = seen_by_all};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      visible.by_row[r] =
          keys_of_row(tile, tile.first_row + consumer * kRowsPerConsumer + warp * 16 + r * 8 + lane / 4);
    }
    return visible;
  }

  // Softcap and mask of key tile n.
  __device__ __forceinline__ void adjust_scores(float (&s)[kTileN / 2], int n, const Visible& visible) const {
    if (call.softcap_scale != 0.0f) apply_softcap<kTileN>(s, call.softcap_scale);
    if (n * kTileN >= visible.by_all.begin && n * kTileN + kTileN <= visible.by_all.end) return;
    const int column = n * kTileN + lane % 4 * 2;
    KeyRange columns[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) columns[r] = {visible.by_row[r].begin - column, visible.by_row[r].end - column};
    apply_mask<kTileN>(s, columns);
  }

  // The rows of V that no query of the sequence sees, behind its last key and before the first one that a window
  // leaves, may hold anything, NaN too, and 0 * NaN is NaN. Clears rows [begin, end) of the tile. Both consumers write
  // the same zeros; each waits for its own.
  __device__ __forceinline__ void clear_values(int begin, int end) const {
    shared.v_full[v_at.index].wait(v_at.parity);
    constexpr int kChunks = kSwizzleBytes / 16;
    uint8_t* v = shared.v[v_at.index];
#pragma unroll 1
    for (int panel = 0; panel < C::kHeadDimV / kPanel; ++panel) {
#pragma unroll 1
      for (int i = begin * kChunks + warp * 32 + lane; i < end * kChunks; i += kWarpgroup) {
        *reinterpret_cast<uint4*>(v + panel * C::kPanelBytes + i * 16) = uint4{0, 0, 0, 0};
      }
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(3 + consumer, kWarpgroup);
  }

  __device__ __forceinline__ void store(const Tile& tile, float (&o)[kOutParts<C>][kOutN<C> / 2],
                                        const RowState& rows) const {
    const AttentionParams& params = call.params;
    const bool partial = params.num_splits > 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = tile.first_row + consumer * kRowsPerConsumer + warp * 16 + r * 8 + lane / 4;
      const PackedRow packed = unpack_row(row, call.schedule.pack, tile.group);
      const bool inside = packed.token < tile.sequence.q_len;
      const float sink = partial || !inside ? negative_infinity() : sink_of(params, packed.head);
      const RowEnd end = end_row(rows.max[r], quad_sum(rows.sum[r]), call.scale_log2, sink);
      if (inside && lane % 4 == 0) {
        if (partial) {
          params.lse_accum[lse_accum_index(params, tile.sequence, tile.batch, tile.split, packed)] = end.lse;
        } else {
          params.lse[lse_index(params, tile.sequence, tile.batch, packed)] = end.lse;
        }
      }
      const int64_t at = partial ? out_accum_index(params, tile.sequence, tile.batch, tile.split, packed)
                                 : out_index(params, tile.sequence, tile.batch, packed);
      if (partial) {
        store_partial_row(params.out_accum + at, o, r, end.factor, inside);
      } else {
        store_row(static_cast<T*>(params.out) + at, o, r, end.factor, inside);
      }
    }
  }

  __device__ __forceinline__ void store_row(T* out, const float (&o)[kOutParts<C>][kOutN<C> / 2], int r, float factor,
                                            bool inside) const {
#pragma unroll
    for (int group = 0; group < C::kHeadDimV / 32; ++group) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = group * 4 + i, part = j / (kOutN<C> / 8), at = j % (kOutN<C> / 8) * 4 + 2 * r;
        words[i] = pack<T>(o[part][at] * factor, o[part][at + 1] * factor);
      }
      transpose_quad(words, lane);
      const int column = group * 32 + lane % 4 * 8;
      if (inside && column < call.params.head_dim_v) {
        *reinterpret_cast<uint4*>(out + column) = uint4{words[0], words[1], words[2], words[3]};
      }
    }
  }

  __device__ __forceinline__ void store_partial_row(float* out, const float (&o)[kOutParts<C>][kOutN<C> / 2], int r,
                                                    float factor, bool inside) const {
#pragma unroll
    for (int j = 0; j < C::kHeadDimV / 8; ++j) {
      const int part = j / (kOutN<C> / 8), at = j % (kOutN<C> / 8) * 4 + 2 * r;
      const int column = j * 8 + lane % 4 * 2;
      if (inside && column < call.params.head_dim_v) {
        *reinterpret_cast<float2*>(out + column) = float2{o[part][at] * factor, o[part][at + 1] * factor};
      }
    }
  }

  // Takes tiles from the producer until there are no more.
  __device__ __forceinline__ void run() {
    if (consumer == 1) pass_turn();  // the first consumer begins
    while (true) {
      shared.q_full.wait(q_parity);
      q_parity ^= 1;
      const Tile tile = shared.tile;
      const KeyRange seen_by_all = shared.tile.seen_by_all[consumer];
      if (tile.batch < 0) return;
      compute(tile, seen_by_all);
    }
  }

  __device__ __forceinline__ void compute(const Tile& tile, const KeyRange& seen_by_all) {
    float o[kOutParts<C>][kOutN<C> / 2];
#pragma unroll
    for (int part = 0; part < kOutParts<C>; ++part) {
#pragma unroll
      for (int i = 0; i < kOutN<C> / 2; ++i) o[part][i] = 0.0f;
    }
    RowState rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    if (tile.begin < tile.end) {
      attend(tile, seen_by_all, o, rows);
    } else {
      shared.q_empty.arrive();
    }
    store(tile, o, rows);
  }

  // The key tiles of a tile, the last one first: o and rows become those of its rows.
  __device__ __forceinline__ void attend(const Tile& tile, const KeyRange& seen_by_all,
                                         float (&o)[kOutParts<C>][kOutN<C> / 2], RowState& rows) {
    float s[kTileN / 2];
    uint32_t p[kTileN / 16][4];
    float rescale[2];
    shared.k_full[k_at.index].wait(k_at.parity);
    issue_scores(s);
    const Visible visible = find_visible(tile, seen_by_all);
    wait_wgmma<0>();
    pin_registers(s);
    release(shared.k_empty[k_at.index]);
    k_at.advance();
    if (tile.end - 1 == tile.begin) shared.q_empty.arrive();
    adjust_scores(s, tile.end - 1, visible);
    softmax_step<C>(s, call.scale_log2, rows, rescale);
    pack_probabilities<C>(s, p);
    if (tile.end * kTileN > tile.sequence.k_len) {
      clear_values(tile.sequence.k_len - (tile.end - 1) * kTileN, kTileN);
    }

#pragma unroll 1
    for (int n = tile.end - 2; n >= tile.begin; --n) {
      shared.k_full[k_at.index].wait(k_at.parity);
      wait_for_turn();
      issue_scores(s);
      shared.v_full[v_at.index].wait(v_at.parity);
      issue_values(o, p);
      pass_turn();
      wait_wgmma<1>();
      pin_registers(s);
      release(shared.k_empty[k_at.index]);
      k_at.advance();
      if (n == tile.begin) shared.q_empty.arrive();
      adjust_scores(s, n, visible);
      const bool changed = softmax_step<C>(s, call.scale_log2, rows, rescale);
      wait_wgmma<0>();
      pin(o);
      pin(p);
      release(shared.v_empty[v_at.index]);
      v_at.advance();
      pack_probabilities<C>(s, p);
      if (changed) {
#pragma unroll
        for (int part = 0; part < kOutParts<C>; ++part) {
#pragma unroll
          for (int i = 0; i < kOutN<C> / 2; ++i) o[part][i] *= rescale[i / 2 % 2];
        }
      }
    }
    if (tile.begin * kTileN < tile.first_key) clear_values(0, tile.first_key - tile.begin * kTileN);
    shared.v_full[v_at.index].wait(v_at.parity);
    issue_values(o, p);
    wait_wgmma<0>();
    pin(o);
    release(shared.v_empty[v_at.index]);
    v_at.advance();
  }
};

}  // namespace sgl_kernel::SGL_TARGET::prefill
