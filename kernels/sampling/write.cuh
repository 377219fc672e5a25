// What writes a row.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kSectorVectors = 2;  // 32 bytes: what is written in parts is read by the memory, too

template <class Group, class Key>
template <class Transform>
__device__ void Row<Group, Key>::write(float* to, Transform transform) {
  // Backwards: the last strides are still in the L2.
  constexpr int kBackwards = -1;
  for_each(
      [&](int stride, const Pair& pair) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          Values values;
#pragma unroll
          for (int j = 0; j < 4; ++j) values[j] = transform(Key::key(pair.values[u][j]), pair.values[u][j]);
          store(to, stride + u, values);
        }
      },
      kBackwards);
}

template <class Group, class Key>
__device__ void Row<Group, Key>::store(float* to, int stride, const Values& values) const {
  const bool is_aligned = reinterpret_cast<uintptr_t>(to) % sizeof(Values) == 0;
  if (stride < full_strides_ && is_aligned) {
    __stcs(reinterpret_cast<float4*>(to + begin_ + offset(stride)),
           make_float4(values[0], values[1], values[2], values[3]));
  } else if (stride < strides_) {
    store_at(to, place(stride, 0), values);
  }
}

template <class Group, class Key>
__device__ void Row<Group, Key>::store_at(float* to, uint32_t first, const Values& values) const {
  float* const pointer = to + first;
  if (first + 4 <= vocab_ && reinterpret_cast<uintptr_t>(to) % sizeof(Values) == 0) {
    __stcs(reinterpret_cast<float4*>(pointer), make_float4(values[0], values[1], values[2], values[3]));
    return;
  }
  for (int j = 0; j < 4 && first + j < vocab_; ++j) pointer[j] = values[j];
}

template <class Group, class Key>
__device__ void Row<Group, Key>::write_unlisted(float* to, int stride, uint32_t lists) const {
  const uint32_t sector = ((1u << kSectorVectors) - 1) << lane() / kSectorVectors * kSectorVectors;
  if ((lists & sector) == 0) store(to, stride, {Key::kLowest, Key::kLowest, Key::kLowest, Key::kLowest});
}

template <class Group, class Key>
template <class Transform>
__device__ void Row<Group, Key>::write_listed(float* to, uint32_t lowest, Transform transform) const {
  constexpr uint32_t kSector = 4 * kSectorVectors;
  const Entry* const part = part_of(group_.rank(), warp());
  const uint32_t listed = shared_.gathered[group_.rank()][warp()].listed;
  for (uint32_t i = lane(); i < listed; i += kWarpSize) {
    const uint32_t sector = part[i].place / kSector;
    if (i > 0 && part[i - 1].place / kSector == sector) continue;
    float values[kSector];
#pragma unroll
    for (float& value : values) value = Key::kLowest;
    for (uint32_t of_sector = i; of_sector < listed && part[of_sector].place / kSector == sector; ++of_sector) {
      const Entry& entry = part[of_sector];
      const float value = entry.key >= lowest ? transform(Key::value(entry.key)) : Key::kLowest;
#pragma unroll
      for (int j = 0; j < kSector; ++j) values[j] = entry.place % kSector == j ? value : values[j];
    }
#pragma unroll
    for (int j = 0; j < kSector; j += 4) {
      store_at(to, kSector * sector + j, {values[j], values[j + 1], values[j + 2], values[j + 3]});
    }
  }
}

// Each warp puts its values where it will read them as they lie in the row: in the ring, some strides at once.
template <class Group, class Key>
template <class Transform>
__device__ void Row<Group, Key>::write_from_list(float* to, uint32_t lowest, Transform transform) const {
  constexpr int kStrides = 2 * Group::kCopies;
  const Entry* const part = part_of(group_.rank(), warp());
  const uint32_t listed = shared_.gathered[group_.rank()][warp()].listed;
  float* const ring = ring_ - 4 * thread();
  uint32_t written = 0;
  for (int first = 0; first < strides_; first += kStrides) {
#pragma unroll
    for (int u = 0; u < kStrides; ++u) {
      Values({Key::kLowest, Key::kLowest, Key::kLowest, Key::kLowest}).store(ring_ + u * kStride);
    }
    __syncwarp();
    uint32_t some = kWarpSize;
    while (some == kWarpSize) {
      const uint32_t i = written + lane();
      const Entry entry = i < listed ? part[i] : Entry{0, ~0u};
      const uint32_t at = entry.place - (begin_ + first * kStride);
      const bool is_here = at < kStrides * kStride;
      if (is_here && entry.key >= lowest) ring[at] = transform(Key::value(entry.key));
      some = __popc(__ballot_sync(kAllLanes, is_here));
      written += some;
    }
    __syncwarp();
    Values values[kStrides];
#pragma unroll
    for (int u = 0; u < kStrides; ++u) values[u] = Values::load(ring_ + u * kStride);
#pragma unroll
    for (int u = 0; u < kStrides; ++u) store(to, first + u, values[u]);
    __syncwarp();
  }
}

}  // namespace sgl_kernel::SGL_TARGET
