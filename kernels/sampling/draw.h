// How a sample is drawn: the same for every target, so that one seed gives the same tokens on each.
#pragma once

#include <cstdint>

#include "kernels/sampling/mass.h"

namespace sgl_kernel {

// Philox4x32-10 (Salmon et al. 2011), two 64-bit numbers for a counter.
struct Random {
  uint64_t first, second;
};

SGL_HOST_DEVICE Random philox4x32_10(uint64_t seed, uint64_t offset, uint64_t sample) {
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
  return {counter0 | static_cast<uint64_t>(counter1) << 32, counter2 | static_cast<uint64_t>(counter3) << 32};
}

// Uniform in 0 … limit - 1 (to within 2^-64 of each).
SGL_HOST_DEVICE uint64_t scale_to(uint64_t random, uint64_t limit) {
#ifdef __CUDA_ARCH__
  return __umul64hi(random, limit);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * limit >> 64);
#endif
}

// The filters of one sample. min-p is no part of them: its threshold is known from the start (row.total_mass() is then
// the mass of what it keeps).
struct Filters {
  uint64_t top_k = 0;  // 0 is off
  float top_p = 1.0f;  // 1 is off
  bool top_k_first = false;
};

// Draws a position in 0 … (mass of the kept tokens) - 1; the token is the one that covers it when the kept tokens are
// laid out in order. The kept tokens are a prefix, so the position is one of the whole row, too.
//
// The exact mass of the prefix costs a search within the bin where the prefix ends. So the position is first drawn from
// the prefix rounded up to that whole bin: below the bin it is good as it is; else the search is made, and a position
// beyond the prefix is rejected and drawn again from the exact mass.
//
// Row has total_mass(), find_by_count(k), find_by_mass(m): the leading bin in which the k-th value or the m-th unit
// lies; search_by_count(bin, k), search_by_mass(bin, m): the prefix that ends there.
template <class Row>
SGL_HOST_DEVICE uint64_t draw_position(Row& row, const Filters& filters, const Random& random) {
  Bin by_count, by_mass;
  uint64_t share = 0;
  if (filters.top_k > 0) by_count = row.find_by_count(filters.top_k);
  if (filters.top_p < 1.0f) {
    uint64_t base = row.total_mass();
    if (filters.top_k_first && by_count.found) {
      base = row.search_by_count(by_count, filters.top_k).mass;
      by_count.found = false;  // the share of it is the shorter prefix
    }
    share = mass_share(filters.top_p, base);
    by_mass = row.find_by_mass(share);
  }
  // The shorter prefix ends in the higher bin.
  if (by_count.found && by_mass.found) {
    if (by_count.index > by_mass.index) by_mass.found = false;
    if (by_count.index < by_mass.index) by_count.found = false;
  }
  if (!by_count.found && !by_mass.found) return scale_to(random.first, row.total_mass());

  const Bin& last = by_count.found ? by_count : by_mass;
  const uint64_t position = scale_to(random.first, last.mass_above + last.mass);
  if (position < last.mass_above) return position;
  uint64_t kept = last.mass_above + last.mass;
  if (by_count.found) kept = row.search_by_count(by_count, filters.top_k).mass;
  if (by_mass.found) {
    const uint64_t kept_by_mass = row.search_by_mass(by_mass, share).mass;
    if (kept_by_mass < kept) kept = kept_by_mass;
  }
  return position < kept ? position : scale_to(random.second, kept);
}

}  // namespace sgl_kernel
