// One row of values, searched by a group of blocks: where a prefix of its highest values ends, and which token lies at
// a position of its kept mass. Exact, and the same for every size of the group.
//
// Each rank of the group (one block, or the blocks of a Hopper cluster) has a contiguous slice of the row, and walks
// over it in strides of 2048 values, four a thread, which pass through a ring of shared memory.
//
// sample() makes a histogram of one value in 32, of more in small batches. That says between which two keys the prefix
// most likely ends (band.cuh). gather() then reads the row: it adds up what lies above that band and lists the values
// in it. What limits it is the number of instructions, so a warp puts the vectors that reach the band in a queue, and
// looks at 32 of them at once. Each rank gets the whole list, so that search() and draw() need no barrier of the group.
// Where the band was wrong, or too full (many equal values), search() makes its histograms of the row itself: at most
// four passes.
//
// All sums are of integers (mass.h), so that their order does not matter.
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sampling/draw.h"
#include "kernels/sampling/row_layout.cuh"

namespace sgl_kernel::SGL_TARGET {

// By how much the sum of a row's probabilities may differ from what a band was estimated for.
inline constexpr float kSumError = 1.0f / 64;

// Keys lo … hi - 1.
struct Range {
  uint32_t lo, hi;
};

template <class Group, class Key>
class Row {
 public:
  using Values = Vec<float, 4>;
  struct Pair {
    Values values[2];  // of two strides
  };

  __device__ Row(const float* row, int64_t vocab, const RowShape& shape, unsigned char* dynamic)
      : shared_(*reinterpret_cast<RowShared*>(dynamic)), vocab_(static_cast<uint32_t>(vocab)) {
    group_.arrive();
    begin_ = group_.rank() * shape.strides * kStride;
    values_ = row + begin_;
    const int64_t left = max(vocab - static_cast<int64_t>(begin_), int64_t{0});
    strides_ = static_cast<int>(min((left + kStride - 1) / kStride, int64_t{shape.strides}));
    const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(Values) == 0;
    full_strides_ = aligned ? static_cast<int>(min(left / kStride, int64_t{shape.strides})) : 0;
    list_size_ = shape.list_size;
    part_size_ = shape.part_size;
    histogram_ = reinterpret_cast<uint32_t*>(dynamic + sizeof(RowShared));
    list_ = reinterpret_cast<Entry*>(dynamic + sizeof(RowShared) + kHistogramBytes);
    ring_ = reinterpret_cast<float*>(list_ + list_size_) + 4 * thread();
    rank_lanes_shift_ = kWarpBits - shape.rank_bits;
    if (Key::kHasMass) scale_ = mass_scale(kUsualPeak, vocab);
    lists_all_ = shape.lists_all;
    sample_every_ = shape.sample_every;
  }

  // To be called before gather_all(): the first copies are on their way.
  __device__ void start() { start_copies(/*step=*/1); }

  // Reads the sample, and starts. Afterwards sampled_peak() is known.
  __device__ void sample();

  // At most the row's peak.
  __device__ float sampled_peak() const { return sampled_peak_; }
  // After gather().
  __device__ float peak() const { return peak_; }
  __device__ float scale() const { return scale_; }

  // The keys between which lies the prefix of `count` values or the share `top_p` of the mass, whichever is shorter, of
  // a row that sums to `sum`, more or less; Goal::kNoCount and 1 are no bounds. See band.cuh.
  __device__ Range estimate_band(uint32_t count, float top_p, float sum);

  // After sample(): counts the row and lists the values of the keys band(sum), where `sum` is assumed to be the row's.
  // By body(stride, lists) the caller sees, of each two strides, the lanes that have values of those keys or above.
  // Where the sum was assumed wrongly, all is done anew: the scale of an unusual row, and its sum if the band
  // `needs_sum`.
  template <class Band, class Body>
  __device__ void gather(bool needs_sum, Band band, Body body) {
    float sum = 1.0f;
    while (true) {
      gather_once(band(sum), needs_sum, body);
      if (!Key::kHasMass || peak_ < kLowestPeak) return;
      const float assumed = scale_;
      scale_ = mass_scale(peak_, vocab_);
      if (!needs_sum && (scale_ == assumed || lists_peak())) {
        if (scale_ != assumed) split_ = Key::kEnd, above_ = Tally();  // all that counts is listed
        return;
      }
      if (scale_ == assumed) {
        const float found = static_cast<float>(total_mass_) / scale_;
        if (band_.hi == 0 || !(fabsf(found - sum) > kSumError * sum)) return;  // infinite sums are all equal
        sum = found;
      }
      if (peak_ >= kHighestFloat) full_strides_ = 0;  // may be infinite: not all of gather_once() looks for that
      group_.sync();                                  // all have read what was gathered
      start_copies(/*step=*/1);
    }
  }

  // Without a sample: the whole row lies above.
  __device__ void gather_all() {
    split_ = Key::kFirst;
    gather(true, [](float) { return Range{0, 0}; }, [](int, const auto&) {});
  }

  // Of the whole row, after gather() that needed the sum or gather_all().
  __device__ uint64_t total_mass() const { return total_mass_; }
  // Whether no value lies above the band.
  __device__ bool lists_peak() const { return band_.hi >= Key::kEnd; }
  // Whether that is so, and the values in the band are expected to be few.
  __device__ bool lists_few() const { return lists_peak() && few_; }
  // Whether the list holds all values from that key up.
  __device__ bool lists_from(uint32_t key) const { return fits_ && key >= band_.lo && lists_peak(); }

  // After gather(). Exact whatever the band was. `lowest`: the prefix surely ends at that key or above.
  __device__ Cut search(const Goal& goal, uint32_t lowest = Key::kFirst) {
    Range range = {Key::kFirst, Key::key(peak_) + 1};
    Tally above = above_;
    bool listed = fits_;
    if (goal.reached(above_)) {
      range.lo = split_;
      above = Tally();
      listed = fits_ && lists_peak();
    } else if (fits_) {
      range = {max(band_.lo, lowest), min(split_, range.hi)};
    } else {
      range.hi = min(split_, range.hi);
    }
    while (true) {
      const Cut cut = select(listed, range, above, goal, SearchKey());
      if (cut.found || !listed || band_.lo <= Key::kFirst) return cut;
      range = {Key::kFirst, band_.lo};
      above = cut.above;
      listed = false;
    }
  }

  // The tokens of the prefix: among equals, those of the lowest places.
  __device__ Kept kept(const Cut& cut, const Goal& goal) {
    if (!cut.found) return {cut.key};
    const uint32_t equals = cut.kept_equals(goal);
    if (equals == cut.equal.count) return {cut.key};
    // A search for the count of equals among keys that fall with the place.
    const Range places = {SearchKey::kFirstPlace - (vocab_ - 1), SearchKey::kFirstPlace + 1};
    const Cut last = select(is_listed(cut.key), places, Tally(), {equals}, SearchKey{true, cut.key});
    return {cut.key, SearchKey::kFirstPlace - last.key};
  }

  // Has one thread of the group call found(place) with the kept token of that draw.
  template <class Found>
  __device__ void draw(const Kept& kept, uint64_t random, Found found) {
    const bool known = tells(kept);
    if (known) {
      // What lies above the band is all kept.
      const int rank = rank_of_lane();
      uint64_t mine = 0;
      for_each_entry([&](const Entry& entry) {
        if (kept.has(entry.key, entry.place)) mine += mass_of(Key::value(entry.key));
      });
      for (int offset = rank_lanes() / 2; offset > 0; offset /= 2) mine += __shfl_xor_sync(kAllLanes, mine, offset);
      if (lane_in_rank() == 0)
        shared_.class_masses[rank][warp()] = mine + (lists_peak() ? 0 : shared_.gathered[rank][warp()].above.mass);
      __syncthreads();
    } else {
      uint64_t mine = 0;
      for_each([&](int stride, const Pair& pair) {
        for (int u = 0; u < 2; ++u) mine += kept_mass(kept, stride + u, pair.values[u]);
      });
      mine = warp_sum(mine);
      if (lane() < group_.size()) group_.remote(&shared_, lane())->class_masses[group_.rank()][warp()] = mine;
      group_.sync();
    }

    // Lane c has class c; all warps do the same.
    uint64_t all_ranks = 0;
#pragma unroll
    for (int rank = 0; rank < Group::kMaxSize; ++rank)
      all_ranks += rank >= group_.size() ? 0 : of_warps(shared_.class_masses[rank]);
    const uint64_t through = warp_scan(all_ranks);
    uint64_t position = scale_to(random, __shfl_sync(kAllLanes, through, kWarpSize - 1));
    const int the_class = __ffs(__ballot_sync(kAllLanes, position < through)) - 1;
    position -= __shfl_sync(kAllLanes, through - all_ranks, the_class);
    for (int rank = 0; rank < group_.size(); ++rank) {
      const uint64_t part = shared_.class_masses[rank][the_class];
      if (position < part) {
        if (rank != group_.rank()) return;
        if (known && (lists_peak() || shared_.gathered[rank][the_class].above.count == 0)) {
          if (warp() == the_class) find_in_list(kept, position, found);
        } else {
          find_in_class(kept, the_class, position, found);
        }
        return;
      }
      position -= part;
    }
  }

  // write.cuh. Writes transform(key, value) to `to`, the row of the output.
  template <class Transform>
  __device__ void write(float* to, Transform transform);
  // In gather()'s body, by whole warps: writes the lowest to the sectors of the output in which no value is listed.
  __device__ void write_unlisted(float* to, int stride, uint32_t lists) const;
  // The other sectors: transform(value) for the listed values of that key and above.
  template <class Transform>
  __device__ void write_listed(float* to, uint32_t lowest, Transform transform) const;
  // Both at once.
  template <class Transform>
  __device__ void write_from_list(float* to, uint32_t lowest, Transform transform) const;

  // To be called before the end.
  __device__ void finish() { wait_for_group(); }

 private:
  static constexpr uint32_t kNoKey = ~0u;
  static constexpr int kSampleShift = Key::kBits - kSampleBits;
  static constexpr int kWarpBits = 5;

  static __device__ int thread() { return threadIdx.x; }
  static __device__ int lane() { return threadIdx.x % kWarpSize; }
  static __device__ int warp() { return threadIdx.x / kWarpSize; }
  // Lane w gets what warp w has left, lanes behind the last warp 0.
  template <class T>
  static __device__ T of_warps(const T (&values)[kClasses]) {
    return lane() < kClasses ? values[lane()] : T();
  }
  static __device__ uint32_t offset(int stride) { return stride * kStride + 4 * thread(); }
  __device__ uint32_t place(int stride, int j) const { return begin_ + offset(stride) + j; }
  __device__ uint64_t mass_of(float value) const { return Key::kHasMass ? mass(value, scale_) : 0; }
  __device__ bool is_listed(uint32_t key) const { return fits_ && key >= band_.lo && key < band_.hi; }
  // Whether what was gathered says which values are kept.
  __device__ bool tells(const Kept& kept) const {
    return is_listed(kept.key) || (fits_ && kept.key == band_.hi && kept.last == Kept().last);
  }
  // Of the list: a rank's values of a class, by place.
  __device__ Entry* part_of(int rank, int the_class) const {
    return list_ + (the_class * group_.size() + rank) * part_size_;
  }

  // The parts of a warp's class, one for each rank, are shared among its lanes.
  __device__ int rank_lanes() const { return 1 << rank_lanes_shift_; }
  __device__ int rank_of_lane() const { return lane() >> rank_lanes_shift_; }
  __device__ int lane_in_rank() const { return lane() & (rank_lanes() - 1); }

  __device__ void wait_for_group() {
    if (!group_started_) group_.wait();
    group_started_ = true;
  }

  // One pass over the row.
  template <class Body>
  __device__ void gather_once(const Range& band, bool needs_sum, Body body);

  // What is searched for: a key, or a place among the values of one key.
  struct SearchKey {
    static constexpr uint32_t kFirstPlace = 0x7fffffff;
    bool by_place = false;
    uint32_t key = 0;

    __device__ uint32_t of(uint32_t a_key, uint32_t place) const {
      if (!by_place) return a_key;
      return a_key == key ? kFirstPlace - place : kNoKey;
    }
  };

  // This thread's values of a stride, from memory; beyond the row, the lowest.
  __device__ Values load(int stride) const {
    Values values;
    if (stride < full_strides_) {
      const float4 loaded = __ldcg(reinterpret_cast<const float4*>(values_ + offset(stride)));
      values = {loaded.x, loaded.y, loaded.z, loaded.w};
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values[j] =
            stride < strides_ && place(stride, j) < vocab_ ? __ldcg(values_ + offset(stride) + j) : Key::kLowest;
      }
    }
    return values;
  }

  static __device__ Values clean(const Values& values) {
    return {Key::clean(values[0]), Key::clean(values[1]), Key::clean(values[2]), Key::clean(values[3])};
  }

  __device__ int pairs() const { return (strides_ + 1) / 2; }

  // Writes this thread's values of a stride, or the vector at a place, to the row of the output.
  __device__ void store(float* to, int stride, const Values& values) const;
  __device__ void store_at(float* to, uint32_t first, const Values& values) const;

  // Each thread copies, and reads, its own values.
  __device__ void start_copy(int pair, int slot) const {
    float* const to = ring_ + 2 * kStride * slot;
    if (2 * pair + 1 < full_strides_ && pair >= 0) {
      const float* const from = values_ + offset(2 * pair);
      copy_async_16(to, from);
      copy_async_16(to + kStride, from + kStride);
    } else if (static_cast<unsigned>(pair) < pairs()) {
#pragma unroll 1
      for (int u = 0; u < 2; ++u) clean(load(2 * pair + u)).store(to + u * kStride);
    }
    commit_copies();
  }

  // The first copies of a for_each() with that step.
  __device__ void start_copies(int step) const {
    const int first = step > 0 ? 0 : pairs() - 1;
#pragma unroll 1
    for (int slot = 0; slot < Group::kCopies; ++slot) start_copy(first + slot * step, slot);
  }

  // By whole warps, after start_copies(step): body(stride, pair) for all strides by twos, upwards (`step` 1) or
  // downwards (-1). What lies beyond the row is the lowest. The values are not clean.
  template <class Body>
  __device__ void for_each_started(int step, Body body) const {
    int slot = 0;
#pragma unroll 1
    for (int at = step > 0 ? 0 : pairs() - 1; static_cast<unsigned>(at) < pairs(); at += step) {
      wait_for_copies<Group::kCopies - 1>();
      const float* const from = ring_ + 2 * kStride * slot;
      const Pair pair = {{Values::load(from), Values::load(from + kStride)}};
      start_copy(at + Group::kCopies * step, slot);
      slot = slot == Group::kCopies - 1 ? 0 : slot + 1;
      body(2 * at, pair);
    }
  }
  // The same from the start, and the values are clean.
  template <class Body>
  __device__ void for_each(Body body, int step = 1) const {
    start_copies(step);
    for_each_started(step, [&](int stride, const Pair& pair) {
      body(stride, Pair{{clean(pair.values[0]), clean(pair.values[1])}});
    });
  }

  __device__ uint64_t kept_mass(const Kept& kept, int stride, const Values& values) const {
    uint64_t sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (kept.has(Key::key(values[j]), place(stride, j))) sum += mass_of(values[j]);
    }
    return sum;
  }

  // A 64-bit atomic addition to shared memory is a loop; so a mass is in two words.
  static __device__ void add_words(uint32_t* low, int high_offset, uint64_t mass) {
    if (mass == 0) return;
    const uint32_t units = static_cast<uint32_t>(mass), before = atomicAdd(low, units);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + units < before);
    if (high > 0) atomicAdd(low + high_offset, high);
  }

  // To a search's histogram: counts, low and high words of the masses.
  __device__ void add(uint32_t bin, const Tally& tally) {
    atomicAdd(&histogram_[bin], tally.count);
    add_words(&histogram_[kBins + bin], kBins, tally.mass);
  }

  // By whole warps: the values of a vector whose keys are in the range. A warp's values of one bin are one addition,
  // for rows of few different values.
  __device__ void add_values(const uint32_t (&keys)[4], const Values& values, const Range& range, int shift) {
    Tally mine;
    uint32_t bin = kNoKey;
    bool same = true;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (keys[j] - range.lo >= range.hi - range.lo) continue;
      const uint32_t other = (keys[j] - range.lo) >> shift;
      same = same && (mine.count == 0 || other == bin);
      bin = other;
      mine = mine + Tally{1, mass_of(values[j])};
    }
    const uint32_t lanes = __ballot_sync(kAllLanes, mine.count > 0);
    if (lanes == 0) return;
    const uint32_t one = __shfl_sync(kAllLanes, bin, __ffs(lanes) - 1);
    if (__all_sync(kAllLanes, mine.count == 0 || (same && bin == one))) {
      mine = warp_sum(mine);
      if (lane() == 0) add(one, mine);
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (keys[j] - range.lo < range.hi - range.lo) add((keys[j] - range.lo) >> shift, {1, mass_of(values[j])});
    }
  }

  __device__ void clear_bin() {
    for (int i = 0; i < 3; ++i) histogram_[i * kBins + thread()] = 0;
  }

  static __device__ Tally tally_of(const uint32_t* histogram, int bin) {
    return {histogram[bin], histogram[kBins + bin] | static_cast<uint64_t>(histogram[2 * kBins + bin]) << 32};
  }

  // Finds the highest key in the range with which `above` and the tallies from the range's end down reach the goal:
  // histograms of the range, then of the bin that was found, until that is one key. `listed`: of the list, which every
  // rank has; else of the row, and the ranks' histograms are parts of one.
  __device__ Cut select(bool listed, Range range, Tally above, const Goal& goal, const SearchKey& search_key);
  // The same, where `cut` is what is known of a range with a few listed values.
  __device__ Cut select_candidate(const Range& range, const Cut& cut, const Goal& goal, const SearchKey& search_key);

  // body(entry) for what is listed.
  template <class Body>
  __device__ void for_each_entry(Body body) {
    constexpr int kLoads = 4;  // entries that a thread loads before it uses the first
    const int rank = rank_of_lane(), step = rank_lanes();
    const Entry* const part = part_of(rank, warp());
    const uint32_t listed = shared_.gathered[rank][warp()].listed;
    for (uint32_t first = lane_in_rank(); first < listed; first += kLoads * step) {
      Entry entries[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u) entries[u] = part[min(first + u * step, listed - 1)];
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        if (first + u * step < listed) body(entries[u]);
      }
    }
  }

  __device__ void add_list(const Range& range, int shift, const SearchKey& search_key) {
    for_each_entry([&](const Entry& entry) {
      const uint32_t key = search_key.of(entry.key, entry.place);
      if (key >= range.lo && key < range.hi) add((key - range.lo) >> shift, {1, mass_of(Key::value(entry.key))});
    });
  }

  __device__ void add_row(const Range& range, int shift, const SearchKey& search_key) {
    for_each([&](int stride, const Pair& pair) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const Values& values = pair.values[u];
        uint32_t keys[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) keys[j] = search_key.of(Key::key(values[j]), place(stride + u, j));
        add_values(keys, values, range, shift);
      }
    });
  }

  // By one warp: the value that covers a position of the kept mass in its part of the list.
  template <class Found>
  __device__ void find_in_list(const Kept& kept, uint64_t position, Found found) {
    const Entry* const part = part_of(group_.rank(), warp());
    const uint32_t listed = shared_.gathered[group_.rank()][warp()].listed;
    for (uint32_t start = 0; start < listed; start += kWarpSize) {
      const uint32_t i = start + lane();
      const bool is_kept = i < listed && kept.has(part[i].key, part[i].place);
      const uint64_t mine = is_kept ? mass_of(Key::value(part[i].key)) : 0, through = warp_scan(mine);
      const uint64_t all = __shfl_sync(kAllLanes, through, kWarpSize - 1);
      if (position < all) {
        if (position < through && position >= through - mine) found(part[i].place);
        return;
      }
      position -= all;
    }
  }

  // The value that covers a position of the class's kept mass in this rank's slice.
  template <class Found>
  __device__ void find_in_class(const Kept& kept, int the_class, uint64_t position, Found found) {
    const uint32_t in_stride = the_class * kRun + 4 * lane();  // warp w takes stride w, w + kClasses, …
    for (int start = 0; start < strides_; start += kClasses) {
      const int stride = start + warp();
      float values[4];
      uint64_t masses[4], mine = 0;
      const uint32_t first = stride * kStride + in_stride;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t i = first + j;
        const bool inside = stride < strides_ && begin_ + i < vocab_;
        values[j] = !inside ? Key::kLowest : Key::clean(__ldcg(values_ + i));
        const bool is_kept = inside && kept.has(Key::key(values[j]), begin_ + i);
        masses[j] = is_kept ? mass_of(values[j]) : 0;
        mine += masses[j];
      }
      const uint64_t through = warp_scan(mine);
      if (lane() == kWarpSize - 1) shared_.warp_masses[warp()] = through;
      __syncthreads();
      const uint64_t strides_through = warp_scan(of_warps(shared_.warp_masses));
      const uint64_t all = __shfl_sync(kAllLanes, strides_through, kWarpSize - 1);
      if (position < all) {
        uint64_t before = __shfl_sync(kAllLanes, strides_through, warp()) - shared_.warp_masses[warp()];
        before += through - mine;
        for (int j = 0; j < 4; ++j) {
          if (position >= before && position - before < masses[j]) found(begin_ + first + j);
          before += masses[j];
        }
        return;
      }
      position -= all;
      __syncthreads();
    }
  }

  Group group_;
  bool group_started_ = false;
  RowShared& shared_;
  uint32_t vocab_, begin_;  // the first place of this rank
  const float* values_;
  int strides_, full_strides_;
  bool lists_all_;
  int sample_every_;  // a power of 2, in strides
  uint32_t* histogram_;
  Entry* list_;
  uint32_t list_size_, part_size_;
  int rank_lanes_shift_;
  float* ring_;  // this thread's first place
  float sampled_peak_ = 0.0f, peak_ = 0.0f, scale_ = 0.0f;
  Range band_ = {0, 0};
  uint32_t split_ = Key::kEnd;  // the band's end, or where that would be if it did not reach to the peak
  bool few_ = false, fits_ = false;
  Tally above_;  // from the split up
  uint64_t total_mass_ = 0;
};

}  // namespace sgl_kernel::SGL_TARGET

#include "kernels/sampling/band.cuh"
#include "kernels/sampling/gather.cuh"
#include "kernels/sampling/select.cuh"
#include "kernels/sampling/write.cuh"
