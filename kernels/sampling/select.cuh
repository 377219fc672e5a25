// The search by histograms.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Group, class Key>
__device__ Cut Row<Group, Key>::select(bool listed, Range range, Tally above, const Goal& goal,
                                       const SearchKey& search_key) {
  clear_bin();
  if (thread() == 0) shared_.num_candidates = 0;
  __syncthreads();
  while (range.lo < range.hi) {
    const int shift = max(0, 32 - kBinBits - __clz(static_cast<int>(range.hi - 1 - range.lo)));
    listed ? add_list(range, shift, search_key) : add_row(range, shift, search_key);
    listed ? __syncthreads() : group_.sync();
    // From the highest bin down.
    const uint32_t bin = kBins - 1 - thread();
    Tally mine = tally_of(histogram_, bin);
    if (!listed) {
      for (int rank = 0; rank < group_.size(); ++rank) {
        if (rank != group_.rank()) mine = mine + tally_of(group_.remote(histogram_, rank), bin);
      }
      group_.sync();
    }
    histogram_[bin] = histogram_[kBins + bin] = histogram_[2 * kBins + bin] = 0;
    const Tally through = warp_scan(mine);
    if (lane() == kWarpSize - 1) shared_.warp_tallies[warp()] = through;
    __syncthreads();
    const Tally warps_through = warp_scan(of_warps(shared_.warp_tallies));
    const Tally all = above + shuffle(warps_through, kWarpSize - 1);
    if (!goal.reached(all)) return {false, Key::kFirst, all, Tally()};
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
    if (listed && cut.equal.count <= kWarpSize) return select_candidate(range, cut, goal, search_key);
  }
  return {false, Key::kFirst, above, Tally()};
}

template <class Group, class Key>
__device__ Cut Row<Group, Key>::select_candidate(const Range& range, const Cut& cut, const Goal& goal,
                                                 const SearchKey& search_key) {
  for_each_entry([&](const Entry& entry) {
    const uint32_t key = search_key.of(entry.key, entry.place);
    if (key >= range.lo && key < range.hi) shared_.candidates[atomicAdd(&shared_.num_candidates, 1)] = key;
  });
  __syncthreads();
  // A lane for each, all warps do the same.
  const int count = static_cast<int>(cut.equal.count);
  const uint32_t key = lane() < count ? shared_.candidates[lane()] : 0;
  const uint64_t its_mass = search_key.by_place ? 0 : mass_of(Key::value(key));
  Tally before = cut.above, equal;
  for (int i = 0; i < count; ++i) {
    const uint32_t other = __shfl_sync(kAllLanes, key, i);
    const Tally one = {1, __shfl_sync(kAllLanes, its_mass, i)};
    if (other > key) before = before + one;
    if (other == key) equal = equal + one;
  }
  const bool is_it = lane() < count && !goal.reached(before) && goal.reached(before + equal);
  const int it = __ffs(__ballot_sync(kAllLanes, is_it)) - 1;
  return {true, __shfl_sync(kAllLanes, key, it), shuffle(before, it), shuffle(equal, it)};
}

}  // namespace sgl_kernel::SGL_TARGET
