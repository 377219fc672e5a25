// The search in one row, by a group of blocks: the k-th highest value, the value at which a running mass is reached,
// the token that lies there. Exact, and the same for every size of the group.
//
// Each rank of the group (one block, or the blocks of a Hopper cluster) holds a contiguous slice of the row, in shared
// memory where kResident, else where it lies. A search is a radix selection over the bits of the floats: a histogram of
// the leading bits says in which bin the target lies, then digits of nine bits find the value in it. Histograms hold
// counts and integer masses, so their sums do not depend on the order of the additions. Each rank adds up its own; then
// rank r sums bins [r * width, (r + 1) * width) over all ranks, in place.
//
// A bin of the leading bits holds few of a row's values (of 152000 normal logits, 1900). They are gathered: every rank
// gets a list of them all, and searches it alone, without a barrier of the group. Where they do not fit (many equal
// values), the digits' histograms are summed over the ranks, too.
//
// Most of a row never matters to a short prefix. `floor_` is a key such that the prefix lies at or above it: found from
// the highest values of the threads, which are values of the row (k of them at or above a key mean that the k-th
// highest value is, too). Values below the floor are in no histogram; those above it, where they are few, are gathered
// in the same pass.
#pragma once

#include <cstdint>

#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sampling/draw.h"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kMaxRanks = 8;           // the largest cluster that every Hopper GPU can place
inline constexpr int kListCapacity = 2432;    // of all ranks together: an equal part for each
inline constexpr int kLoadsInFlight = 5;      // vectors that a thread loads before it uses the first
inline constexpr uint64_t kNoTarget = ~0ull;  // no histogram reaches it

struct Tally {
  uint64_t count, mass;
};

struct alignas(8) Candidate {
  uint32_t key, place;
};

// A block's view of its part of the row.
struct Slice {
  const float* values;  // the first one
  int size;
  bool vectors;  // 16-byte aligned
};

struct RowShared {
  Tally share_totals[2][kMaxRanks];  // of a histogram, by the rank that owns the bins
  uint64_t below_floor[kMaxRanks];   // mass
  float peaks[kMaxRanks], sums[kMaxRanks], sums_of_peaks[kMaxRanks];
  uint32_t equals[kMaxRanks];
  Tally warp_tallies[kWarpSize];
  float floats[kWarpSize];
  Bin found;
  uint32_t list_size;              // of this rank
  uint32_t list_sizes[kMaxRanks];  // of all
  Candidate list[kListCapacity];
};

// Dynamic shared memory: the slice (if resident), then two histograms, of the leading bits and of a digit.
template <class Key>
constexpr size_t histogram_bytes(bool with_count, bool with_mass) {
  return size_t{Key::kLeadingBins + kDigits} * ((with_count ? 4 : 0) + (with_mass ? 8 : 0));
}

// The size of a rank's slice in elements: a multiple of a vector.
inline int slice_size(int64_t vocab, int ranks) { return static_cast<int>(((vocab + ranks - 1) / ranks + 3) / 4 * 4); }

// kCount, kMass: what the histograms hold. With a list of counts to find, kCount; with a mass, kMass.
template <class Group, class Key, bool kResident, bool kCount, bool kMass, int kThreads>
class Row {
 public:
  __device__ Row(const float* row, int64_t vocab, int slice_size, unsigned char* dynamic, RowShared& shared)
      : shared_(shared), vocab_(vocab) {
    group_.arrive();
    begin_ = static_cast<int64_t>(group_.rank()) * slice_size;
    const int64_t left = vocab - begin_;
    source_.size = left <= 0 ? 0 : static_cast<int>(left < slice_size ? left : slice_size);
    source_.values = row + begin_;
    source_.vectors = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    slice_ = source_;
    if (kResident) {
      slice_.values = reinterpret_cast<float*>(dynamic);
      slice_.vectors = true;
      dynamic += slice_size * sizeof(float);
    }
    uint32_t* words = reinterpret_cast<uint32_t*>(dynamic);
    for (int which = 0; which < 2; ++which) {
      Histogram& histogram = which == 0 ? leading_ : digit_;
      histogram.which = which;
      histogram.bins = which == 0 ? Key::kLeadingBins : kDigits;
      if (kCount) histogram.count = words, words += histogram.bins;
      if (kMass) histogram.low = words, histogram.high = words + histogram.bins, words += 2 * histogram.bins;
    }
  }

  // Reads the row. Afterwards peak() is known.
  __device__ void load() {
    float peak = Key::kLowest, sum = 0.0f;
    for_each_vector<kResident>(source_, [&](int i, float value) {
      value = Key::clean(value);
      peak = fmaxf(peak, value);
      if (kMass) sum += value;
      return value;
    });
    thread_peak_ = peak;

    if (threadIdx.x == 0) shared_.list_size = 0;
    const float block_peak = block_reduce<Max>(fmaxf(peak, Max::kIdentity), shared_.floats);
    __syncthreads();
    const float block_sum = block_reduce<Sum>(sum, shared_.floats);
    __syncthreads();
    const float peaks = block_reduce<Sum>(kMass ? peak : 0.0f, shared_.floats);
    group_.wait();
    if (threadIdx.x < group_.size()) {
      RowShared* other = group_.remote(&shared_, threadIdx.x);
      other->peaks[group_.rank()] = block_peak;
      other->sums[group_.rank()] = block_sum;
      other->sums_of_peaks[group_.rank()] = peaks;
    }
    group_.sync();
    peak_ = Max::kIdentity;
    for (int rank = 0; rank < group_.size(); ++rank) {
      peak_ = fmaxf(peak_, shared_.peaks[rank]);
      sum_ += shared_.sums[rank];
      sum_of_peaks_ += shared_.sums_of_peaks[rank];
    }
    bins_ = LeadingBins<Key>::of(Key::key(kMass ? peak_ : 0.0f));
    if (kMass && peak_ >= kLowestPeak) scale_ = mass_scale(peak_);
  }

  __device__ float peak() const { return peak_; }
  __device__ float scale() const { return scale_; }

  // Counts the values at or above `lowest`, and forgets the others.
  __device__ void tally_above(float lowest) {
    floor_ = Key::key(lowest);
    forget_below_floor_ = true;
    tally(/*make_list=*/floor_ > 0);
  }

  // Counts the row. Later searches go no further than a prefix that holds `count` values (0 is no bound) or, if that is
  // shorter, one of the share `top_p` of the mass (1 is no bound).
  __device__ void tally(uint64_t count, float top_p) {
    // The share may be over-, not underestimated: by more than the rounding of sum_, and by half a unit a value.
    constexpr float kSlack = 1.0f + 1e-3f;
    constexpr int64_t kLongestSum = int64_t{1} << 22;  // values, for which that slack is enough
    const float bound = top_p * sum_ * kSlack;
    const bool by_count = kCount && count > 0 && count <= static_cast<uint64_t>(kThreads) * group_.size();
    const bool by_mass =
        kMass && top_p < 1.0f && sum_of_peaks_ > bound && bound < kHighestFloat && vocab_ <= kLongestSum;
    counting_ = kCount && count > 0;
    if (!by_count && !by_mass) return tally(/*make_list=*/false);

    clear(leading_);
    __syncthreads();
    add(leading_, bins_.bin(Key::key(thread_peak_)), thread_peak_);  // without values: the lowest key
    merge(leading_);
    Bin lowest;
    if (by_count) lowest = find(leading_, count, kNoTarget);
    if (by_mass) {
      const uint64_t mass_bound =
          static_cast<uint64_t>(static_cast<double>(bound) * static_cast<double>(scale_)) + vocab_;
      const Bin bin = find(leading_, kNoTarget, mass_bound);
      if (bin.found && (!lowest.found || bin.index > lowest.index)) lowest = bin;
    }
    if (lowest.found) floor_ = bins_.lowest_key(lowest.index);
    group_.sync();  // nobody reads the histogram any more
    tally(/*make_list=*/floor_ > 0);
  }

  // Of the whole row (after tally_above(): of what it counts).
  __device__ uint64_t total_mass() const { return total_mass_; }

  __device__ Bin find_by_count(uint64_t count) { return find(leading_, count, kNoTarget); }
  __device__ Bin find_by_mass(uint64_t mass) { return find(leading_, kNoTarget, mass); }
  __device__ Prefix search_by_count(const Bin& bin, uint64_t count) { return search(bin, count, kNoTarget); }
  __device__ Prefix search_by_mass(const Bin& bin, uint64_t mass) { return search(bin, kNoTarget, mass); }

  // Has one thread of the group call found(index) with the place in the row of the prefix's last value: among equals,
  // the prefix holds those of the lowest places.
  template <class Found>
  __device__ void with_last_of(const Prefix& prefix, Found found) {
    const uint32_t nth = static_cast<uint32_t>(prefix.equals - 1);
    if (fits_) {
      if (group_.rank() != 0) return;
      for_each_candidate([&](const Candidate& candidate) {
        if (candidate.key != prefix.key) return;
        uint32_t lower = 0;
        for (int rank = 0; !prefix.alone && rank < group_.size(); ++rank) {
          for (uint32_t j = 0; j < shared_.list_sizes[rank]; ++j) {
            const Candidate& other = shared_.list[rank * list_capacity() + j];
            lower += other.key == prefix.key && other.place < candidate.place;
          }
        }
        if (lower == nth) found(candidate.place);
      });
      return;
    }
    if (prefix.alone) {
      for_each([&](int i, float value) {
        if (Key::key(value) == prefix.key) found(begin_ + i);
      });
      return;
    }
    uint32_t mine = 0;
    for_each([&](int, float value) { mine += Key::key(value) == prefix.key; });
    mine = static_cast<uint32_t>(sum_over_block({0, mine}).mass);
    if (threadIdx.x < group_.size()) group_.remote(&shared_, threadIdx.x)->equals[group_.rank()] = mine;
    group_.sync();
    uint32_t before = 0;
    for (int rank = 0; rank < group_.rank(); ++rank) before += shared_.equals[rank];
    if (nth < before || nth >= before + mine) return;
    for (int start = 0; start < slice_.size; start += kThreads) {
      const int i = start + threadIdx.x;
      const bool equal = i < slice_.size && Key::key(at(i)) == prefix.key;
      const uint32_t here = __syncthreads_count(equal);
      if (nth < before + here) {
        const Tally lower = sum_of_lower_threads({0, equal});
        if (equal && before + lower.mass == nth) found(begin_ + i);
        return;
      }
      before += here;
    }
  }

  // Writes transform(value) to `to`, the row of the output.
  template <class Transform>
  __device__ void write(float* to, Transform transform) {
    to += begin_;
    const bool vectors = slice_.vectors && reinterpret_cast<uintptr_t>(to) % 16 == 0;
    const int num_vectors = vectors ? slice_.size / 4 : 0;
#pragma unroll 2
    for (int v = threadIdx.x; v < num_vectors; v += kThreads) {
      Vec<float, 4> values = Vec<float, 4>::load(slice_.values + 4 * v);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = transform(kResident ? values[j] : Key::clean(values[j]));
      values.store(to + 4 * v);
    }
    for (int i = 4 * num_vectors + threadIdx.x; i < slice_.size; i += kThreads) to[i] = transform(at(i));
  }

  // To be called before the end: others read this block's shared memory.
  __device__ void finish() { group_.sync(); }

 private:
  static constexpr uint32_t kNoBin = ~0u, kAllBins = kNoBin - 1;

  struct Histogram {
    uint32_t* count = nullptr;
    uint32_t* low = nullptr;   // of the mass
    uint32_t* high = nullptr;  // "
    int bins = 0;
    int which = 0;  // in share_totals
  };

  __device__ float at(int i) const { return kResident ? slice_.values[i] : Key::clean(slice_.values[i]); }

  // body(i, value) for the values of `from`, several loads ahead; with kStore what it returns goes to slice_.
  template <bool kStore, class Body>
  __device__ void for_each_vector(const Slice& from, Body body) {
    const int num_vectors = from.vectors ? from.size / 4 : 0;
    float* to = const_cast<float*>(slice_.values);
    for (int first = threadIdx.x; first < num_vectors; first += kLoadsInFlight * kThreads) {
      Vec<float, 4> values[kLoadsInFlight];
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
        const int v = first + u * kThreads;
        if (v < num_vectors) values[u] = Vec<float, 4>::load(from.values + 4 * v);
      }
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
        const int v = first + u * kThreads;
        if (v >= num_vectors) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) values[u][j] = body(4 * v + j, values[u][j]);
        if (kStore) values[u].store(to + 4 * v);
      }
    }
    for (int i = 4 * num_vectors + threadIdx.x; i < from.size; i += kThreads) {
      const float value = body(i, from.values[i]);
      if (kStore) to[i] = value;
    }
  }

  // body(i, value) for the values of this rank, in any order.
  template <class Body>
  __device__ void for_each(Body body) {
    const int num_vectors = slice_.vectors ? slice_.size / 4 : 0;
#pragma unroll 2
    for (int v = threadIdx.x; v < num_vectors; v += kThreads) {
      const Vec<float, 4> values = Vec<float, 4>::load(slice_.values + 4 * v);
#pragma unroll
      for (int j = 0; j < 4; ++j) body(4 * v + j, kResident ? values[j] : Key::clean(values[j]));
    }
    for (int i = 4 * num_vectors + threadIdx.x; i < slice_.size; i += kThreads) body(i, at(i));
  }

  __device__ void clear(const Histogram& histogram) {
    for (int bin = threadIdx.x; bin < histogram.bins; bin += kThreads) {
      if (kCount) histogram.count[bin] = 0;
      if (kMass) histogram.low[bin] = histogram.high[bin] = 0;
    }
  }

  __device__ void add(const Histogram& histogram, uint32_t bin, float value) {
    if (kCount && counting_) atomicAdd(&histogram.count[bin], 1u);
    if (kMass) add_mass(histogram, bin, mass(value, scale_));
  }

  // A 64-bit atomic addition to shared memory is a loop; this is one instruction, and rarely two.
  __device__ void add_mass(const Histogram& histogram, uint32_t bin, uint32_t units) {
    if (units == 0) return;
    const uint32_t before = atomicAdd(&histogram.low[bin], units);
    if (before + units < before) atomicAdd(&histogram.high[bin], 1u);
  }

  __device__ Tally read(const Histogram& histogram, int bin, int rank) {
    Tally tally = {0, 0};
    if (kCount) tally.count = *group_.remote(&histogram.count[bin], rank);
    if (kMass) {
      tally.mass = *group_.remote(&histogram.low[bin], rank) |
                   static_cast<uint64_t>(*group_.remote(&histogram.high[bin], rank)) << 32;
    }
    return tally;
  }

  // From each rank's own histogram to the group's, which find() reads.
  __device__ void merge(const Histogram& histogram) {
    group_.sync();  // all ranks have added
    const int width = histogram.bins / group_.size();
    Tally share = {0, 0};
    for (int i = threadIdx.x; i < width; i += kThreads) {
      const int bin = group_.rank() * width + i;
      Tally sum = {0, 0};
#pragma unroll
      for (int rank = 0; rank < Group::kMaxSize; ++rank) {
        if (rank >= group_.size()) break;
        const Tally part = read(histogram, bin, rank);
        accumulate(sum, part);
      }
      // In place: nobody but this thread reads this rank's copy of its own bins before the next sync().
      if (kCount) histogram.count[bin] = static_cast<uint32_t>(sum.count);
      if (kMass) {
        histogram.low[bin] = static_cast<uint32_t>(sum.mass);
        histogram.high[bin] = static_cast<uint32_t>(sum.mass >> 32);
      }
      accumulate(share, sum);
    }
    share = sum_over_block(share);
    if (threadIdx.x < group_.size()) {
      group_.remote(&shared_, threadIdx.x)->share_totals[histogram.which][group_.rank()] = share;
    }
    group_.sync();
  }

  // The bin, from the highest down, in which the count or the mass reaches its target (of which one is kNoTarget).
  // kLocal: this rank's histogram alone, in which it does.
  template <bool kLocal = false>
  __device__ Bin find(const Histogram& histogram, uint64_t count, uint64_t mass) {
    Tally above = {0, 0};
    int owner = kLocal ? 0 : group_.size() - 1;
    for (; !kLocal && owner >= 0; --owner) {
      const Tally share = shared_.share_totals[histogram.which][owner];
      if (above.count + share.count >= count || above.mass + share.mass >= mass) break;
      accumulate(above, share);
    }
    if (owner < 0) return Bin();

    // Thread t takes the t-th `each` bins from the top of the owner's.
    const int width = kLocal ? histogram.bins : histogram.bins / group_.size();
    const int holder = kLocal ? group_.rank() : owner;
    const int each = (width + kThreads - 1) / kThreads;
    const int top = (owner + 1) * width - 1 - static_cast<int>(threadIdx.x) * each;
    const int bottom = max(top - each, owner * width - 1);
    Tally mine = {0, 0};
    for (int bin = top; bin > bottom; --bin) {
      const Tally part = read(histogram, bin, holder);
      accumulate(mine, part);
    }
    accumulate(above, sum_of_lower_threads(mine));
    for (int bin = top; bin > bottom && above.count < count && above.mass < mass; --bin) {
      const Tally part = read(histogram, bin, holder);
      if (above.count + part.count >= count || above.mass + part.mass >= mass) {
        shared_.found = Bin{true, static_cast<uint32_t>(bin), above.count, above.mass, part.mass};
      }
      accumulate(above, part);
    }
    __syncthreads();
    return shared_.found;  // overwritten only after another __syncthreads()
  }

  __device__ int list_capacity() const { return kListCapacity / group_.size(); }

  // Appends to this rank's part of every rank's list.
  __device__ void keep(uint32_t key, int i) {
    const uint32_t j = atomicAdd(&shared_.list_size, 1u);
    if (j >= list_capacity()) return;
    const Candidate candidate = {key, static_cast<uint32_t>(begin_ + i)};
    for (int rank = 0; rank < group_.size(); ++rank) {
      *group_.remote(&shared_.list[group_.rank() * list_capacity() + j], rank) = candidate;
    }
  }

  // After a __syncthreads(); the lists can be read after a sync().
  __device__ void publish_list_size() {
    if (threadIdx.x < group_.size()) {
      group_.remote(&shared_, threadIdx.x)->list_sizes[group_.rank()] = shared_.list_size;
    }
    list_used_ = true;
  }

  __device__ bool list_fits() {
    bool fits = true;
    for (int rank = 0; rank < group_.size(); ++rank) fits = fits && shared_.list_sizes[rank] <= list_capacity();
    return fits;
  }

  // body(candidate) for those in the list.
  template <class Body>
  __device__ void for_each_candidate(Body body) {
    for (int rank = 0; rank < group_.size(); ++rank) {
      for (uint32_t j = threadIdx.x; j < shared_.list_sizes[rank]; j += kThreads) {
        body(shared_.list[rank * list_capacity() + j]);
      }
    }
  }

  // Sees to it that the list holds the values of a leading bin; fits_ says whether it could.
  __device__ void gather(uint32_t bin) {
    if (gathered_ == kAllBins || gathered_ == bin) return;
    if (list_used_) {
      group_.sync();  // nobody reads the last list any more
      if (threadIdx.x == 0) shared_.list_size = 0;
      __syncthreads();
    }
    for_each([&](int i, float value) {
      const uint32_t key = Key::key(value);
      if (bins_.bin(key) == bin && key >= floor_) keep(key, i);
    });
    __syncthreads();
    publish_list_size();
    group_.sync();
    fits_ = list_fits();
    gathered_ = bin;
  }

  // The leading histogram, total_mass_ and, with make_list, the list.
  __device__ void tally(bool make_list) {
    clear(leading_);
    __syncthreads();
    uint64_t below = 0;
    for_each([&](int i, float value) {
      const uint32_t key = Key::key(value);
      const uint32_t units = kMass ? mass(value, scale_) : 0;
      if (key < floor_) {
        below += units;
        return;
      }
      const uint32_t bin = bins_.bin(key);
      if (kCount && counting_) atomicAdd(&leading_.count[bin], 1u);
      if (kMass) add_mass(leading_, bin, units);
      if (make_list) keep(key, i);
    });
    if (kMass) {
      below = sum_over_block({0, below}).mass;
      if (threadIdx.x < group_.size()) group_.remote(&shared_, threadIdx.x)->below_floor[group_.rank()] = below;
    }
    if (make_list) {
      __syncthreads();
      publish_list_size();
    }
    merge(leading_);
    if (make_list && list_fits()) fits_ = true, gathered_ = kAllBins;
    for (int rank = 0; rank < group_.size(); ++rank) {
      total_mass_ += shared_.share_totals[0][rank].mass;
      if (!forget_below_floor_) total_mass_ += shared_.below_floor[rank];
    }
  }

  // The digits of the values in a leading bin that have `prefix` above the digit.
  __device__ void tally_digits(uint32_t bin, uint32_t prefix, int shift) {
    const auto add_key = [&](uint32_t key) {
      if (above_digit(key, shift) == prefix && bins_.bin(key) == bin) {
        add(digit_, (key >> shift) % kDigits, Key::value(key));
      }
    };
    fits_ ? __syncthreads() : group_.sync();  // nobody reads the histogram's last state any more
    clear(digit_);
    __syncthreads();
    if (fits_) {
      for_each_candidate([&](const Candidate& candidate) { add_key(candidate.key); });
      __syncthreads();
    } else {
      for_each([&](int, float value) {
        if (Key::key(value) >= floor_) add_key(Key::key(value));
      });
      merge(digit_);
    }
  }

  __device__ Prefix search(const Bin& leading, uint64_t count, uint64_t mass_target) {
    Bin bin = leading;
    uint64_t count_above = bin.count_above, mass_above = bin.mass_above;
    Prefix prefix;
    const int first_shift = bins_.first_shift(leading.index);
    prefix.key = above_digit(bins_.lowest_key(leading.index), first_shift);
    gather(leading.index);
    for (int shift = first_shift; shift >= 0; shift -= kDigitBits) {
      tally_digits(leading.index, prefix.key, shift);
      const uint64_t count_left = count == kNoTarget ? count : count - count_above;
      const uint64_t mass_left = mass_target == kNoTarget ? mass_target : mass_target - mass_above;
      bin = fits_ ? find<true>(digit_, count_left, mass_left) : find(digit_, count_left, mass_left);
      prefix.key = prefix.key << kDigitBits | bin.index;
      count_above += bin.count_above;
      mass_above += bin.mass_above;
    }
    if constexpr (kMass) {
      const uint64_t each = mass(Key::value(prefix.key), scale_);
      prefix.equals = count != kNoTarget ? count - count_above : (mass_target - mass_above + each - 1) / each;
      prefix.mass = mass_above + prefix.equals * each;
      prefix.mass_with_equals = mass_above + bin.mass;
      prefix.alone = bin.mass == each;
    }
    return prefix;
  }

  // What is not kept is 0: it costs nothing to carry.
  static __device__ void accumulate(Tally& sum, const Tally& more) {
    if constexpr (kCount) sum.count += more.count;
    if constexpr (kMass) sum.mass += more.mass;
  }

  // Every thread gets the sum. Ends with a __syncthreads(), after which a second use is safe.
  __device__ Tally sum_over_block(Tally tally) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      Tally other = {0, 0};
      if constexpr (kCount) other.count = __shfl_xor_sync(0xffffffffu, tally.count, offset);
      if constexpr (kMass) other.mass = __shfl_xor_sync(0xffffffffu, tally.mass, offset);
      accumulate(tally, other);
    }
    if (threadIdx.x % kWarpSize == 0) shared_.warp_tallies[threadIdx.x / kWarpSize] = tally;
    __syncthreads();
    tally = {0, 0};
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) accumulate(tally, shared_.warp_tallies[warp]);
    __syncthreads();
    return tally;
  }

  // Over the threads before this one. The same.
  __device__ Tally sum_of_lower_threads(const Tally& mine) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    Tally through = mine;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      Tally other = {0, 0};
      if constexpr (kCount) other.count = __shfl_up_sync(0xffffffffu, through.count, offset);
      if constexpr (kMass) other.mass = __shfl_up_sync(0xffffffffu, through.mass, offset);
      if (lane >= offset) accumulate(through, other);
    }
    if (lane == kWarpSize - 1) shared_.warp_tallies[warp] = through;
    __syncthreads();
    Tally sum = {through.count - mine.count, through.mass - mine.mass};
    for (int lower = 0; lower < warp; ++lower) accumulate(sum, shared_.warp_tallies[lower]);
    __syncthreads();
    return sum;
  }

  Group group_;
  RowShared& shared_;
  Slice source_, slice_;
  Histogram leading_, digit_;
  int64_t vocab_, begin_;
  float thread_peak_ = 0.0f, peak_ = 0.0f, sum_ = 0.0f, sum_of_peaks_ = 0.0f, scale_ = 0.0f;
  uint32_t floor_ = 0;
  uint64_t total_mass_ = 0;
  LeadingBins<Key> bins_;
  uint32_t gathered_ = kNoBin;  // the leading bin in the list
  bool fits_ = false;           // the list is whole
  bool list_used_ = false;
  bool counting_ = kCount, forget_below_floor_ = false;
};

}  // namespace sgl_kernel::SGL_TARGET
