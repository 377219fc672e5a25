// The search by histograms.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Group, class Key>
__device__ Cut Row<Group, Key>::select(bool listed, Range range, Tally above, const Goal& goal,
                                       const SearchKey& search_key) {
  clear_bin();
  __syncthreads();
  while (range.lo < range.hi) {
    const int shift = max(0, 32 - kBinBits - __clz(static_cast<int>(range.hi - 1 - range.lo)));
    listed ? add_list(range, shift, search_key) : add_row(range, shift, search_key);
    listed ? __syncthreads() : group_.sync();
    // From the highest bin down.
    const uint32_t bin = kBins - 1 - thread();
    Tally mine = tally_of(bin, listed ? group_.rank() : 0);
    if (!listed) {
      for (int rank = 1; rank < group_.size(); ++rank) mine = mine + tally_of(bin, rank);
      group_.sync();
    }
    histogram_[bin] = histogram_[kBins + bin] = histogram_[2 * kBins + bin] = 0;
    const Tally through = warp_scan(mine);
    if (lane() == kWarpSize - 1) shared_.warp_tallies[warp()] = through;
    __syncthreads();
    const Tally warps_through = warp_scan(of_warps(shared_.warp_tallies));
    const Tally all = above + shuffle(warps_through, kWarpSize - 1);
    if (!goal.reached(all)) {
      __syncthreads();  // all have read the warps' tallies: the caller may write there next
      return {false, Key::kFirst, all, Tally()};
    }
    const Tally before = above + (shuffle(warps_through, warp()) - shared_.warp_tallies[warp()]) + (through - mine);
    if (!goal.reached(before) && goal.reached(before + mine)) shared_.cut = {true, bin, before, mine};
    __syncthreads();
    Cut cut = shared_.cut;
    above = cut.above;
    range.lo += cut.key << shift;
    if (shift == 0) {
      cut.key = range.lo;
      return cut;
    }
    range.hi = range.lo + min(range.hi - range.lo, 1u << shift);  // of infinite logits, lo + 2^shift would be 2^32
    if (listed && cut.equal.count == 1) {                         // no further histogram
      for_each_listed(search_key, [&](uint32_t key, uint64_t) {
        if (key - range.lo < range.hi - range.lo) shared_.only_key = key;
      });
      __syncthreads();
      cut.key = shared_.only_key;
      return cut;
    }
  }
  return {false, Key::kFirst, above, Tally()};
}

}  // namespace sgl_kernel::SGL_TARGET
