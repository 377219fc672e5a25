// One row of values, searched by a group of blocks: where a prefix of its highest values ends, and which token lies at
// a position of its kept mass. Exact, and the same for every size of the group.
//
// Each rank of the group (one block, or the blocks of a Hopper cluster) has a contiguous slice of the row, and walks
// over it in strides of 2048 values, four a thread. The first strides stay in shared memory, as many as fit (all of
// them where a cluster is large enough); the others are read again in each pass, backwards, for the last ones are still
// in the L2.
//
// load() finds the peak and, of one value in eight, a histogram. That says between which two keys the prefix most
// likely ends (band.cuh). gather() then adds up what lies above that band and lists the values in it;
// each rank gets the whole list, so that search() needs no barrier of the group. Where the band was wrong, or too full
// (many equal values), search() makes its histograms of the row itself: at most four passes.
//
// All sums are of integers (mass.h), so that their order does not matter.
#pragma once

#include <cstdint>

#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sampling/draw.h"
#include "kernels/sampling/row_layout.cuh"

namespace sgl_kernel::SGL_TARGET {

// Keys lo … hi - 1.
struct Range {
  uint32_t lo, hi;
};

template <class Group, class Key>
class Row {
 public:
  using Values = Vec<float, 4>;

  __device__ Row(const float* row, int64_t vocab, const RowShape& shape, unsigned char* dynamic)
      : shared_(*reinterpret_cast<RowShared*>(dynamic)), vocab_(static_cast<uint32_t>(vocab)) {
    group_.arrive();
    begin_ = group_.rank() * shape.strides * kStride;
    values_ = row + begin_;
    const int64_t left = max(vocab - static_cast<int64_t>(begin_), int64_t{0});
    strides_ = static_cast<int>(min((left + kStride - 1) / kStride, int64_t{shape.strides}));
    const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(Values) == 0;
    full_strides_ = aligned ? static_cast<int>(min(left / kStride, int64_t{shape.strides})) : 0;
    cached_ = min(shape.cached, strides_);
    while (all_strides() / sample_every_ * kThreads > kLargestSample / 2) sample_every_ *= 2;
    histogram_ = reinterpret_cast<uint32_t*>(dynamic + sizeof(RowShared));
    list_ = reinterpret_cast<Entry*>(dynamic + sizeof(RowShared) + kHistogramBytes);
    part_size_ = kListSize / shape.ranks;
    cache_ = reinterpret_cast<float*>(list_ + kListSize);
  }

  // Reads the row. Afterwards peak() is known. `sampled`: gather() will follow.
  __device__ void load(bool sampled) {
    if (sampled) {
      for (int i = thread(); i < kHistogramBytes / sizeof(uint32_t); i += kThreads) histogram_[i] = 0;
      __syncthreads();
    }
    const int first_stride = static_cast<int>(begin_ / kStride);
    float peak = Key::kLowest, sum = 0.0f;
    constexpr int kLoads = 2 * kLoadsInFlight;  // a small body
    for_each<true, kLoads>([&](int stride, Values& values) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        peak = fmaxf(peak, values[j]);
        if (Key::kHasMass) sum += values[j];
      }
      if (stride < cached_) values.store(cache_ + offset(stride));
      if (sampled && ((first_stride + stride) & (sample_every_ - 1)) == 0) {
        const uint32_t key = Key::key(values[0]), bin = key >> kSampleShift;
        if (key >= Key::kFirst) atomicAdd(&histogram_[bin / 2], 1u << bin % 2 * 16);
      }
    });
    peak = warp_reduce<Max>(fmaxf(peak, Max::kIdentity));
    sum = warp_reduce<Sum>(sum);
    if (lane() == 0) shared_.warp_floats[0][warp()] = peak, shared_.warp_floats[1][warp()] = sum;
    __syncthreads();
    peak = warp_reduce<Max>(shared_.warp_floats[0][lane() % kClasses]);
    sum = warp_reduce<Sum>(of_warps(shared_.warp_floats[1]));
    group_.wait();
    if (thread() < group_.size()) group_.remote(&shared_, thread())->summaries[group_.rank()] = {peak, sum};
    group_.sync();
    peak_ = Max::kIdentity;
    for (int rank = 0; rank < group_.size(); ++rank) {
      peak_ = fmaxf(peak_, shared_.summaries[rank].peak);
      sum_ += shared_.summaries[rank].sum;
    }
    if (Key::kHasMass && peak_ >= kLowestPeak) scale_ = mass_scale(peak_);
  }

  __device__ float peak() const { return peak_; }
  __device__ float scale() const { return scale_; }

  // The keys between which lies the prefix of `count` values or the share `top_p` of the mass, whichever is shorter;
  // Goal::kNoCount and 1 are no bounds. See band.cuh.
  __device__ Range estimate_band(uint32_t count, float top_p);

  // Counts the row and lists the values of those keys. body(stride, values) is called for all.
  template <class Body>
  __device__ void gather(const Range& band, Body body) {
    band_ = band;
    Tally above;
    uint64_t total = 0;
    if (thread() == 0) shared_.list_size = 0;
    if (thread() < 2 * kClasses) shared_.listed_masses[thread() / kClasses][thread() % kClasses] = 0;
    __syncthreads();
    for_each<false>([&](int stride, Values& values) {
      bool in_band[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t key = Key::key(values[j]), units = mass_of(values[j]);
        total += units;
        above.mass += key >= band.hi ? units : 0;
        above.count += key >= band.hi ? 1 : 0;
        in_band[j] = key - band.lo < band.hi - band.lo;
      }
      if (in_band[0] | in_band[1] | in_band[2] | in_band[3]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (in_band[j]) list(Key::key(values[j]), place(stride, j));
        }
      }
      body(stride, values);
    });
    thread_mass_above_ = above.mass;
    above = warp_sum(above);
    total = warp_sum(total);
    if (lane() == 0) shared_.warp_tallies[warp()] = above, shared_.warp_masses[warp()] = total;
    __syncthreads();
    if (warp() == 0) {
      above = warp_sum(of_warps(shared_.warp_tallies));
      total = warp_sum(of_warps(shared_.warp_masses));
      if (lane() < group_.size()) {
        group_.remote(&shared_, lane())->gathered[group_.rank()] = {above, total, shared_.list_size};
      }
    }
    // Each rank gets all parts of the list.
    Entry* const part = list_ + group_.rank() * part_size_;
    for (uint32_t i = thread(); i < min(shared_.list_size, part_size_); i += kThreads) {
      for (int rank = 0; rank < group_.size(); ++rank) {
        if (rank != group_.rank()) group_.remote(part, rank)[i] = part[i];
      }
    }
    group_.sync();
    total_mass_ = 0;
    fits_ = true;
    above_ = Tally();
    for (int rank = 0; rank < group_.size(); ++rank) {
      total_mass_ += shared_.gathered[rank].total;
      fits_ = fits_ && shared_.gathered[rank].listed <= part_size_;
      above_ = above_ + shared_.gathered[rank].above;
    }
  }
  __device__ void gather(const Range& band) {
    gather(band, [](int, Values&) {});
  }

  // Of the whole row, after gather().
  __device__ uint64_t total_mass() const { return total_mass_; }
  // Whether the list holds all values from that key up.
  __device__ bool lists_from(uint32_t key) const { return fits_ && key >= band_.lo && band_.hi > Key::key(peak_); }

  // After gather(). Exact whatever the band was.
  __device__ Cut search(const Goal& goal) {
    Range range = {Key::kFirst, Key::key(peak_) + 1};
    Tally above = above_;
    bool listed = false;
    if (goal.reached(above_)) {
      range.lo = band_.hi;
      above = Tally();
    } else if (fits_) {
      range = band_;
      listed = true;
    } else {
      range.hi = band_.hi;
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
    uint64_t mine = 0;
    if (is_listed(kept.key)) {
      const Entry* const part = list_ + group_.rank() * part_size_;
      for (uint32_t i = thread(); i < shared_.list_size; i += kThreads) {
        if (!kept.has(part[i].key, part[i].place)) continue;
        const int its_class = part[i].place / kRun % kClasses;
        add_words(&shared_.listed_masses[0][its_class], kClasses, mass_of(Key::value(part[i].key)));
      }
      __syncthreads();
      mine = thread_mass_above_;
      if (lane() < 2) mine += static_cast<uint64_t>(shared_.listed_masses[lane()][warp()]) << 32 * lane();
    } else {
      for_each<false>([&](int stride, Values& values) { mine += kept_mass(kept, stride, values); });
    }
    mine = warp_sum(mine);
    if (lane() < group_.size()) group_.remote(&shared_, lane())->class_masses[group_.rank()][warp()] = mine;
    group_.sync();

    // Lane c has class c; all warps do the same.
    uint64_t all_ranks = 0;
    for (int rank = 0; rank < group_.size(); ++rank) all_ranks += of_warps(shared_.class_masses[rank]);
    const uint64_t through = warp_scan(all_ranks);
    uint64_t position = scale_to(random, __shfl_sync(kAllLanes, through, kWarpSize - 1));
    const int the_class = __ffs(__ballot_sync(kAllLanes, position < through)) - 1;
    position -= __shfl_sync(kAllLanes, through - all_ranks, the_class);
    for (int rank = 0; rank < group_.size(); ++rank) {
      const uint64_t part = shared_.class_masses[rank][the_class];
      if (position < part) {
        if (rank == group_.rank()) find_in_class(kept, the_class, position, found);
        return;
      }
      position -= part;
    }
  }

  // Writes transform(key, value) to `to`, the row of the output.
  template <class Transform>
  __device__ void write(float* to, Transform transform) {
    for_each<false>([&](int stride, Values& values) {
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = transform(Key::key(values[j]), values[j]);
      store(to, stride, values);
    });
  }

  // Writes to the place of `values` in the row of the output.
  __device__ void store(float* to, int stride, const Values& values) const {
    const uint32_t first = place(stride, 0);
    float* const pointer = to + first;
    if (first + 4 <= vocab_ && reinterpret_cast<uintptr_t>(to) % sizeof(Values) == 0) {
      __stcs(reinterpret_cast<float4*>(pointer), make_float4(values[0], values[1], values[2], values[3]));
      return;
    }
    for (int j = 0; j < 4 && first + j < vocab_; ++j) pointer[j] = values[j];
  }

  // The same for the listed values of that key and above; after a __syncthreads().
  template <class Transform>
  __device__ void write_listed(float* to, uint32_t lowest, Transform transform) {
    const Entry* const part = list_ + group_.rank() * part_size_;
    for (uint32_t i = thread(); i < shared_.list_size; i += kThreads) {
      if (part[i].key >= lowest) to[part[i].place] = transform(Key::value(part[i].key));
    }
  }

  // To be called before the end, unless draw() was: others read this block's shared memory.
  __device__ void finish() { group_.sync(); }

 private:
  static constexpr uint32_t kNoKey = ~0u;
  static constexpr int kSampleShift = Key::kBits - kSampleBits;

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
  __device__ int all_strides() const { return static_cast<int>((vocab_ + (kStride - 1)) / kStride); }
  __device__ uint32_t mass_of(float value) const { return Key::kHasMass ? mass(value, scale_) : 0; }
  __device__ bool is_listed(uint32_t key) const { return fits_ && key >= band_.lo && key < band_.hi; }

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

  __device__ void list(uint32_t key, uint32_t place) {
    const uint32_t slot = atomicAdd(&shared_.list_size, 1u);
    if (slot < part_size_) list_[group_.rank() * part_size_ + slot] = {key, place};
  }

  // This thread's values of a stride, from memory; beyond the row, the lowest.
  __device__ Values load_partly(int stride) const {
    Values values;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      values[j] = place(stride, j) < vocab_ ? Key::clean(__ldcg(values_ + offset(stride) + j)) : Key::kLowest;
    }
    return values;
  }

  // body(stride, values) for all values of this rank, by whole warps, kLoads loads ahead.
  template <bool kFromMemory, int kLoads = kLoadsInFlight, class Body>
  __device__ void for_each(Body body) {
    const int first = kFromMemory ? 0 : cached_, last = max(first, full_strides_);
    // The strides that are cached, and those that are not wholly in the row or aligned.
#pragma unroll 1
    for (int stride = first > 0 ? 0 : last; stride < strides_; stride = stride == first - 1 ? last : stride + 1) {
      Values values = stride < first ? Values::load(cache_ + offset(stride)) : load_partly(stride);
      body(stride, values);
    }
    const int count = last - first, step = backwards_ ? -1 : 1, start = backwards_ ? last - 1 : first;
#pragma unroll 1
    for (int done = 0; done < count; done += kLoads) {
      float4 loaded[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int stride = start + step * (done + u);
        if (done + u < count) loaded[u] = __ldcg(reinterpret_cast<const float4*>(values_ + offset(stride)));
      }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        if (done + u >= count) break;
        Values values = {Key::clean(loaded[u].x), Key::clean(loaded[u].y), Key::clean(loaded[u].z),
                         Key::clean(loaded[u].w)};
        body(start + step * (done + u), values);
      }
    }
    backwards_ = !backwards_;
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

  __device__ Tally tally_of(int bin, int rank) {
    const uint32_t* histogram = group_.remote(histogram_, rank);
    return {histogram[bin], histogram[kBins + bin] | static_cast<uint64_t>(histogram[2 * kBins + bin]) << 32};
  }

  // Finds the highest key in the range with which `above` and the tallies from the range's end down reach the goal:
  // histograms of the range, then of the bin that was found, until that is one key. `listed`: of the list, which every
  // rank has; else of the row, and the ranks' histograms are parts of one.
  __device__ Cut select(bool listed, Range range, Tally above, const Goal& goal, const SearchKey& search_key) {
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
      range.hi = min(range.hi, range.lo + (1u << shift));
    }
    return {false, Key::kFirst, above, Tally()};
  }

  __device__ void add_list(const Range& range, int shift, const SearchKey& search_key) {
    const int each = kThreads / group_.size(), rank = thread() / each;  // threads for each part
    const Entry* const part = list_ + rank * part_size_;
    for (uint32_t i = thread() % each; i < shared_.gathered[rank].listed; i += each) {
      const uint32_t key = search_key.of(part[i].key, part[i].place);
      if (key - range.lo < range.hi - range.lo) add((key - range.lo) >> shift, {1, mass_of(Key::value(part[i].key))});
    }
  }

  __device__ void add_row(const Range& range, int shift, const SearchKey& search_key) {
    constexpr int kLoads = 1;  // a large body, rarely run: little code
    for_each<false, kLoads>([&](int stride, Values& values) {
      uint32_t keys[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) keys[j] = search_key.of(Key::key(values[j]), place(stride, j));
      add_values(keys, values, range, shift);
    });
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
        values[j] = !inside ? Key::kLowest : stride < cached_ ? cache_[i] : Key::clean(__ldcg(values_ + i));
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
  RowShared& shared_;
  uint32_t vocab_, begin_;  // the first place of this rank
  const float* values_;
  int strides_, full_strides_, cached_;
  int sample_every_ = 2;  // a power of 2, in strides
  uint32_t* histogram_;
  Entry* list_;
  uint32_t part_size_;  // of the list, for each rank
  float* cache_;
  bool backwards_ = false;
  float peak_ = 0.0f, sum_ = 0.0f, scale_ = 0.0f;
  Range band_ = {0, 0};
  bool fits_ = false;
  Tally above_;                     // of the band
  uint64_t thread_mass_above_ = 0;  // of this thread's values
  uint64_t total_mass_ = 0;
};

}  // namespace sgl_kernel::SGL_TARGET

#include "kernels/sampling/band.cuh"
