// The most likely tokens of a row and a bound on all others, found without a sort, with top-k, top-p and min-p on these candidates.
//
// The filters decide a row only if no rounding can change the kept set that hasten.sampling.processors defines. top_p.py there
// derives the error bound of top-p.
#pragma once

#include "../simd/vector_math.h"
#include "../simd/prefetch.h"

namespace hasten::HASTEN_ISA {

constexpr float kLowest = -3.402823466e38f;
constexpr int64_t kMaxCandidates = 8192;
constexpr int64_t kBucketsPerCandidate = 4;    // buckets of tokens per requested candidate
constexpr int64_t kSumBlock = 128;             // summed in float lanes; block sums are added in double
constexpr int64_t kMaxRequested = 4096;        // of an attempt
constexpr int64_t kPrefetchLogits = 1024;      // prefetch distance in logits
constexpr double kHalfUlp = 0x1p-24;           // relative error of one rounding to float
constexpr double kRoundings = 64;              // bounds the roundings in one probability and in a sum of them
constexpr double kDoubleError = 1e-12;         // of sums in double
constexpr double kMinPError = 160 * kHalfUlp;  // of the ratio of two probabilities and its comparison
constexpr float kMinMinP = 1e-30f;             // below, probabilities may be subnormal and the error is not relative

// Floats as integers of the same order.
inline int64_t float_to_ordered(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
inline float ordered_to_float(int64_t order) {
    const int32_t bits = static_cast<int32_t>(order < 0 ? order ^ 0x7fffffff : order);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The largest value in [low, high] for which `holds` is true. It is true at low and changes once.
template <class Holds>
inline float bisect_last(float low, float high, Holds holds) {
    int64_t first = float_to_ordered(low), threshold = float_to_ordered(high);
    while (first < threshold) {
        const int64_t middle = threshold - (threshold - first) / 2;
        if (holds(ordered_to_float(middle)))
            first = middle;
        else
            threshold = middle - 1;
    }
    return ordered_to_float(first);
}

// Counts in full vectors; the padding of the candidates is -inf.
inline int64_t count_at_least(const float* values, int64_t count, float minimum) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 16) found += __builtin_popcount(~greater(broadcast(minimum), load(values + i)) & 0xffffu);
    return found;
}

struct RowMax {
    float value;
    bool finite;  // no NaN, and the maximum is finite
};

// The maximum logit of each bucket: bucket b holds tokens b, b + buckets, b + 2 * buckets ... The last count % 16 tokens are in
// none.
inline RowMax bucket_maxima(const float* logits, int64_t count, int64_t buckets, float* maxima) {
    const F32x16 minus_infinity = broadcast(-__builtin_inff());
    for (int64_t c = 0; c < buckets; c += 16) store(maxima + c, minus_infinity);
    uint32_t ordered = 0xffff;
    int64_t i = 0;
    while (i + 16 <= count) {
        const int64_t end = i + buckets < count ? i + buckets : count;
        for (float* max_value = maxima; i + 16 <= end; i += 16, max_value += 16) {
            prefetch(logits + i + kPrefetchLogits);
            const F32x16 x = load(logits + i);
            ordered &= equal(x, x);
            store(max_value, max(x, load(max_value)));  // max returns its second operand if the first is NaN
        }
    }
    F32x16 top = blend_first(static_cast<int>(count - i), load_partial(logits + i, static_cast<int>(count - i)), minus_infinity);
    ordered &= equal(top, top);
    for (int64_t c = 0; c < buckets; c += 16) top = max(load(maxima + c), top);
    const float max_value = reduce_max(top);
    return {max_value, ordered == 0xffff && max_value - max_value == 0.0f};
}

// A value that at least `requested` bucket maxima reach, and not many more; kLowest if there are fewer.
inline float bucket_threshold(const float* maxima, int64_t buckets, int64_t requested, float top) {
    if (count_at_least(maxima, buckets, kLowest) < requested) return kLowest;
    int64_t low = float_to_ordered(kLowest), high = float_to_ordered(top);
    while (low < high) {
        const int64_t middle = high - (high - low) / 2;
        const int64_t found = count_at_least(maxima, buckets, ordered_to_float(middle));
        if (found < requested) {
            high = middle - 1;
            continue;
        }
        low = middle;
        if (found <= requested + requested / 8) break;
    }
    return ordered_to_float(low);
}

struct Candidates {
    int64_t size = 0;
    bool incomplete = true;                         // tokens outside the list may still be sampled
    float top = 0.0f;                               // the largest value
    float logit_floor = 0.0f;                       // above the logits of all tokens outside the list
    float floor = 0.0f;                             // no token outside the list has a value above this, and no candidate one below
    double excluded_mass = 0.0;                     // sum of exp(value - top) over the tokens outside the list
    alignas(64) float values[kMaxCandidates + 16];  // logits / temperature, then -inf to the end of a vector
    alignas(64) float masses[kMaxCandidates + 16];  // exp(value - top)
    int32_t tokens[kMaxCandidates];

    void pad() {
        for (int64_t i = size; i % 16 != 0; ++i) values[i] = -__builtin_inff();
    }
    void keep_at_least(float minimum) {
        int64_t kept = 0;
        for (int64_t i = 0; i < size; ++i) {
            tokens[kept] = tokens[i];
            values[kept] = values[i];
            kept += values[i] >= minimum;
        }
        size = kept;
        floor = minimum;
        incomplete = false;
        excluded_mass = 0.0;
        pad();
    }
    void compute_masses() {
        for (int64_t i = 0; i < size; i += 16) store(masses + i, exp(load(values + i) - broadcast(top)));
    }
    // Sum of masses of the candidates below a value.
    double mass_below(float value) const {
        double total = 0.0;
        for (int64_t block = 0; block < size; block += kSumBlock) {
            F32x16 sums = zero();
            for (int64_t i = block; i < size && i < block + kSumBlock; i += 16) {
                sums = sums + select(greater(broadcast(value), load(values + i)), load(masses + i), zero());
            }
            total += static_cast<double>(reduce_add(sums));
        }
        return total;
    }
};

// Appends all tokens whose logit reaches the floor, in order of their ids. Returns false if there are too many.
inline bool append_at_least(const float* logits, int64_t count, float minimum, Candidates& candidates) {
    const F32x16 floor = broadcast(minimum);
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? static_cast<int>(count - i) : 16;
        uint32_t bits = ~greater(floor, n == 16 ? load(logits + i) : load_partial(logits + i, n)) & ((1u << n) - 1);
        if (bits == 0) continue;
        if (candidates.size + 16 > kMaxCandidates) return false;
        for (; bits != 0; bits &= bits - 1) {
            const int64_t token = i + __builtin_ctz(bits);
            candidates.values[candidates.size] = logits[token];
            candidates.tokens[candidates.size++] = static_cast<int32_t>(token);
        }
    }
    candidates.pad();
    return true;
}

// Collects at least `requested` tokens and all that are tied with the last, or all above -inf. Returns false if the scaled logits
// are not finite or if there are too many candidates.
inline bool collect_candidates(const float* logits, int64_t count, float temperature, int64_t requested, Candidates& candidates) {
    alignas(64) float maxima[kBucketsPerCandidate * kMaxRequested];
    const int64_t full_vectors = count / 16 * 16, target = (kBucketsPerCandidate * requested + 15) / 16 * 16;
    const int64_t buckets = target < full_vectors ? target : full_vectors;
    const RowMax row_max = bucket_maxima(logits, count, buckets > 0 ? buckets : 16, maxima);
    candidates.top = row_max.value / temperature;
    if (!row_max.finite || candidates.top - candidates.top != 0.0f) return false;
    candidates.logit_floor = buckets < requested ? kLowest : bucket_threshold(maxima, buckets, requested, row_max.value);
    candidates.incomplete = candidates.logit_floor != kLowest;
    // Lowered slightly, so that the tokens below it stay below it after the division.
    if (candidates.incomplete) candidates.logit_floor -= __builtin_fabsf(candidates.logit_floor) * 0x1p-20f;
    candidates.size = 0;
    candidates.excluded_mass = 0.0;
    if (!append_at_least(logits, count, candidates.logit_floor, candidates)) return false;
    candidates.floor = candidates.logit_floor / temperature;
    for (int64_t i = 0; i < candidates.size; i += 16)
        store(candidates.values + i, load(candidates.values + i) / broadcast(temperature));
    return true;
}

// Sum of exp(value - top) over the tokens outside the list.
inline double sum_excluded_mass(const float* logits, int64_t count, float temperature, const Candidates& candidates) {
    const F32x16 floor = broadcast(candidates.logit_floor), scale = broadcast(temperature), top = broadcast(candidates.top);
    double total = 0.0;
    for (int64_t block = 0; block < count; block += kSumBlock) {
        const int64_t end = block + kSumBlock < count ? block + kSumBlock : count;
        F32x16 sums = zero();
        for (int64_t i = block; i < end; i += 16) {
            const int n = end - i < 16 ? static_cast<int>(end - i) : 16;
            const F32x16 x = n == 16 ? load(logits + i) : blend_first(n, load_partial(logits + i, n), broadcast(-__builtin_inff()));
            sums = sums + select(greater(floor, x), exp(x / scale - top), zero());
        }
        total += static_cast<double>(reduce_add(sums));
    }
    return total;
}

// The filters below keep the tokens that pass. They return false if rounding leaves the result uncertain.

inline bool keep_top_k(Candidates& candidates, int64_t k) {
    if (candidates.size < k) return !candidates.incomplete;
    const auto enough_tokens = [&](float minimum) { return count_at_least(candidates.values, candidates.size, minimum) >= k; };
    const float threshold = bisect_last(candidates.floor, candidates.top, enough_tokens);
    if (candidates.incomplete && !(threshold > candidates.floor)) return false;
    candidates.keep_at_least(threshold);
    return true;
}

// Upper bound of the mean rank of a token, with which the error of the top-p sum grows. Ranks are rounded up to the end of their
// layer of values.
inline double mean_rank(const Candidates& candidates, double total, int64_t count) {
    double rank_sum = candidates.excluded_mass * static_cast<double>(count), remaining = total - candidates.excluded_mass;
    for (int layer = 1; layer <= 14; ++layer) {
        const float minimum = candidates.top - 0.5f * static_cast<float>(layer);
        const double below = candidates.mass_below(minimum);
        rank_sum += (remaining - below) * static_cast<double>(count_at_least(candidates.values, candidates.size, minimum));
        remaining = below;
    }
    return (rank_sum + remaining * static_cast<double>(candidates.size)) / total;
}

// A token is removed if it and all less likely tokens together have at most the mass `tail`.
inline bool keep_top_p(Candidates& candidates, double tail, int64_t count) {
    const double listed = candidates.mass_below(__builtin_inff()), total = listed + candidates.excluded_mass,
                 excluded_fraction = candidates.excluded_mass / total;
    if (!(excluded_fraction < tail)) return false;
    const auto below = [&](float value) { return excluded_fraction + candidates.mass_below(value) / total; };
    const float threshold = bisect_last(candidates.floor, candidates.top, [&](float value) { return below(value) <= tail; });
    const double below_threshold = below(threshold),
                 kept = static_cast<double>(count_at_least(candidates.values, candidates.size, threshold));
    const double error = (mean_rank(candidates, total, count) + kRoundings) * kHalfUlp;
    // Includes one of the tokens tied at the threshold.
    const double through_threshold = below_threshold + static_cast<double>(exp(threshold - candidates.top)) / total;
    // One token always stays.
    const bool included = through_threshold - (through_threshold * error + kDoubleError) > tail || kept == 1.0;
    const bool excluded = below_threshold + (below_threshold * error + kDoubleError) < tail;
    if (!included || !excluded || (candidates.incomplete && !(threshold > candidates.floor))) return false;
    candidates.keep_at_least(threshold);
    return true;
}

inline bool keep_min_p(Candidates& candidates, float min_p) {
    const double minimum = static_cast<double>(min_p), excluded = minimum * (1.0 - kMinPError),
                 included = minimum * (1.0 + kMinPError);
    if (min_p < kMinMinP || (candidates.incomplete && !(static_cast<double>(exp(candidates.floor - candidates.top)) < excluded)))
        return false;
    float threshold = candidates.top;
    for (int64_t i = 0; i < candidates.size; ++i) {
        const double ratio = static_cast<double>(candidates.masses[i]);
        if (ratio < excluded) continue;
        if (!(ratio > included)) return false;
        threshold = candidates.values[i] < threshold ? candidates.values[i] : threshold;
    }
    candidates.keep_at_least(threshold);
    return true;
}

}  // namespace hasten::HASTEN_ISA
