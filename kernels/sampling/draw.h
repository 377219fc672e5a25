// How a sample is drawn: the same for every target, so that one seed gives the same tokens on each.
#pragma once

#include <cstdint>

#include "kernels/sampling/mass.h"

namespace sgl_kernel {

// Philox4x32-10 (Salmon et al. 2011): of a counter's 128 bits the first 64.
SGL_HOST_DEVICE uint64_t philox4x32_10(uint64_t seed, uint64_t offset, uint64_t sample) {
  constexpr uint64_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t counter0 = static_cast<uint32_t>(offset), counter1 = static_cast<uint32_t>(offset >> 32);
  uint32_t counter2 = static_cast<uint32_t>(sample), counter3 = static_cast<uint32_t>(sample >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiply0 * counter0, product1 = kMultiply1 * counter2;
    counter0 = static_cast<uint32_t>(product1 >> 32) ^ counter1 ^ key0;
    counter1 = static_cast<uint32_t>(product1);
    counter2 = static_cast<uint32_t>(product0 >> 32) ^ counter3 ^ key1;
    counter3 = static_cast<uint32_t>(product0);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter0 | static_cast<uint64_t>(counter1) << 32;
}

struct Seed {
  uint64_t seed, offset;

  SGL_HOST_DEVICE uint64_t random(int64_t sample) const {
    return philox4x32_10(seed, offset, static_cast<uint64_t>(sample));
  }
};

// Uniform in 0 … limit - 1 (to within 2^-64 of each).
SGL_HOST_DEVICE uint64_t scale_to(uint64_t random, uint64_t limit) {
#ifdef __CUDA_ARCH__
  return __umul64hi(random, limit);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * limit >> 64);
#endif
}

// The filters of one sample. min-p is no part of them: its threshold is known from the row's peak.
struct Filters {
  uint32_t top_k = 0;  // 0 is off
  float top_p = 1.0f;  // 1 is off
  bool top_k_first = false;
};

// The token of a draw is the one that covers the position scale_to(random, mass of the kept tokens) when the kept
// tokens are laid out in this order: by class, in a class by place. A class is every 16th run of 128 places. So the
// warps of a block that walks over the row, 128 places each, hold the masses of the classes, whatever part of the row
// it has.
inline constexpr int kRun = 128;
inline constexpr int kClasses = 16;

}  // namespace sgl_kernel
