// The likeliest tokens of a row and a bound on all the others, found without a sort; top-k, top-p and min-p on such a list.
//
// What makes each of them certain is derived in hasten.sampling.processors, which does the same in numpy; the names are the same.
#pragma once

#include "../simd/math.h"
#include "../simd/prefetch.h"

namespace hasten::HASTEN_ISA {

constexpr float kLowest = -3.402823466e38f;
constexpr int64_t kMostListed = 8192;
constexpr int64_t kClasses = 4;         // classes of tokens per listed token
constexpr int64_t kRun = 128;           // what is summed in lanes of floats; runs are added in double
constexpr int64_t kMostWanted = 4096;   // of a list
constexpr int64_t kLogitsAhead = 1024;  // logits between what is read and what is fetched
constexpr double kHalfUlp = 0x1p-24;    // what one rounding to float may change, relative to the value
constexpr double kRoundings = 64;       // of one probability and of a sum of them, with room to spare
constexpr double kDoubleError = 1e-12;  // of sums in double
constexpr double kMinPError = 160 * kHalfUlp;
constexpr float kSmallestMinP = 1e-30f;

// Floats as whole numbers of the same order.
inline int64_t order_of(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
inline float value_of(int64_t order) {
    const int32_t bits = static_cast<int32_t>(order < 0 ? order ^ 0x7fffffff : order);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The largest value in [low, high] for which `holds`, which holds at low and stops holding once.
template <class Holds>
inline float last_that(float low, float high, Holds holds) {
    int64_t first = order_of(low), last = order_of(high);
    while (first < last) {
        const int64_t middle = last - (last - first) / 2;
        if (holds(value_of(middle)))
            first = middle;
        else
            last = middle - 1;
    }
    return value_of(first);
}

// Over whole vectors; the padding of a list is -inf.
inline int64_t count_reaching(const float* values, int64_t count, float least) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 16) found += __builtin_popcount(~greater(broadcast(least), load(values + i)) & 0xffffu);
    return found;
}

struct Summit {
    float value;
    bool numbers;  // no NaN, and the greatest is finite
};

// The greatest logit of each class: class c has the tokens of c, c + classes, c + 2 * classes ...; the last count % 16 are in none.
inline Summit class_maxima(const float* logits, int64_t count, int64_t classes, float* maxima) {
    const F16 none = broadcast(-__builtin_inff());
    for (int64_t c = 0; c < classes; c += 16) store(maxima + c, none);
    uint32_t ordered = 0xffff;
    int64_t i = 0;
    while (i + 16 <= count) {
        const int64_t end = i + classes < count ? i + classes : count;
        for (float* most = maxima; i + 16 <= end; i += 16, most += 16) {
            prefetch(logits + i + kLogitsAhead);
            const F16 x = load(logits + i);
            ordered &= equal(x, x);
            store(most, max(x, load(most)));  // the second operand stays when the first is a NaN
        }
    }
    F16 top = first(static_cast<int>(count - i), load_first(logits + i, static_cast<int>(count - i)), none);
    ordered &= equal(top, top);
    for (int64_t c = 0; c < classes; c += 16) top = max(load(maxima + c), top);
    const float most = largest(top);
    return {most, ordered == 0xffff && most - most == 0.0f};
}

// A value that at least `wanted` of the classes reach, and not many more; kLowest where there are not so many.
inline float common_floor(const float* maxima, int64_t classes, int64_t wanted, float top) {
    if (count_reaching(maxima, classes, kLowest) < wanted) return kLowest;
    int64_t low = order_of(kLowest), high = order_of(top);
    while (low < high) {
        const int64_t middle = high - (high - low) / 2;
        const int64_t found = count_reaching(maxima, classes, value_of(middle));
        if (found < wanted) {
            high = middle - 1;
            continue;
        }
        low = middle;
        if (found <= wanted + wanted / 8) break;
    }
    return value_of(low);
}

struct Shortlist {
    int64_t size = 0;
    bool open = true;                            // tokens that are not listed may still be chosen
    float top = 0.0f;                            // the greatest value
    float raw_floor = 0.0f;                      // logits that are not listed are below this
    float floor = 0.0f;                          // no token that is not listed has a value above this, and no other one below
    double unlisted = 0.0;                       // sum of exp(value - top) over what is not listed
    alignas(64) float values[kMostListed + 16];  // logits over temperature, then -inf to the end of a vector
    alignas(64) float masses[kMostListed + 16];  // exp(value - top)
    int32_t tokens[kMostListed];

    void pad() {
        for (int64_t i = size; i % 16 != 0; ++i) values[i] = -__builtin_inff();
    }
    void keep_reaching(float least) {
        int64_t kept = 0;
        for (int64_t i = 0; i < size; ++i) {
            tokens[kept] = tokens[i];
            values[kept] = values[i];
            kept += values[i] >= least;
        }
        size = kept;
        floor = least;
        open = false;
        unlisted = 0.0;
        pad();
    }
    void weigh() {
        for (int64_t i = 0; i < size; i += 16) store(masses + i, exp(load(values + i) - broadcast(top)));
    }
    // The mass of what is listed and below a value.
    double mass_below(float value) const {
        double total = 0.0;
        for (int64_t run = 0; run < size; run += kRun) {
            F16 sums = zero();
            for (int64_t i = run; i < size && i < run + kRun; i += 16) {
                sums = sums + select(greater(broadcast(value), load(values + i)), load(masses + i), zero());
            }
            total += static_cast<double>(sum(sums));
        }
        return total;
    }
};

// All tokens whose logit reaches the floor, in the order of their ids; false where they are too many.
inline bool collect(const float* logits, int64_t count, float least, Shortlist& list) {
    const F16 floor = broadcast(least);
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? static_cast<int>(count - i) : 16;
        uint32_t bits = ~greater(floor, n == 16 ? load(logits + i) : load_first(logits + i, n)) & ((1u << n) - 1);
        if (bits == 0) continue;
        if (list.size + 16 > kMostListed) return false;
        for (; bits != 0; bits &= bits - 1) {
            const int64_t token = i + __builtin_ctz(bits);
            list.values[list.size] = logits[token];
            list.tokens[list.size++] = static_cast<int32_t>(token);
        }
    }
    list.pad();
    return true;
}

// At least `wanted` tokens of the row and all that are tied with the last of them, or all that are above -inf. False where the
// logits over temperature are no usable numbers, or where there are too many.
inline bool make_list(const float* logits, int64_t count, float temperature, int64_t wanted, Shortlist& list) {
    alignas(64) float maxima[kClasses * kMostWanted];
    const int64_t whole = count / 16 * 16, enough = (kClasses * wanted + 15) / 16 * 16;
    const int64_t classes = enough < whole ? enough : whole;
    const Summit summit = class_maxima(logits, count, classes > 0 ? classes : 16, maxima);
    list.top = summit.value / temperature;
    if (!summit.numbers || list.top - list.top != 0.0f) return false;
    list.raw_floor = classes < wanted ? kLowest : common_floor(maxima, classes, wanted, summit.value);
    list.open = list.raw_floor != kLowest;
    // A little lower, so that what is below it stays so after the division.
    if (list.open) list.raw_floor -= __builtin_fabsf(list.raw_floor) * 0x1p-20f;
    list.size = 0;
    list.unlisted = 0.0;
    if (!collect(logits, count, list.raw_floor, list)) return false;
    list.floor = list.raw_floor / temperature;
    for (int64_t i = 0; i < list.size; i += 16) store(list.values + i, load(list.values + i) / broadcast(temperature));
    return true;
}

// The sum of exp(value - top) over what is not listed: lanes of floats over short runs, runs in double.
inline double unlisted_mass(const float* logits, int64_t count, float temperature, const Shortlist& list) {
    const F16 floor = broadcast(list.raw_floor), scale = broadcast(temperature), top = broadcast(list.top);
    double total = 0.0;
    for (int64_t run = 0; run < count; run += kRun) {
        const int64_t end = run + kRun < count ? run + kRun : count;
        F16 sums = zero();
        for (int64_t i = run; i < end; i += 16) {
            const int n = end - i < 16 ? static_cast<int>(end - i) : 16;
            const F16 x = n == 16 ? load(logits + i) : first(n, load_first(logits + i, n), broadcast(-__builtin_inff()));
            sums = sums + select(greater(floor, x), exp(x / scale - top), zero());
        }
        total += static_cast<double>(sum(sums));
    }
    return total;
}

// Each of these returns whether the list tells for certain which tokens stay, and leaves those.

inline bool keep_top_k(Shortlist& list, int64_t k) {
    if (list.size < k) return !list.open;
    const auto reached = [&](float least) { return count_reaching(list.values, list.size, least) >= k; };
    const float last = last_that(list.floor, list.top, reached);
    if (list.open && !(last > list.floor)) return false;
    list.keep_reaching(last);
    return true;
}

// The error of the sum that defines top-p grows with the mean rank of a token. Never below it: ranks count as those at the end of
// their layer of values.
inline double mean_rank(const Shortlist& list, double total, int64_t count) {
    double ranks = list.unlisted * static_cast<double>(count), rest = total - list.unlisted;
    for (int layer = 1; layer <= 14; ++layer) {
        const float least = list.top - 0.5f * static_cast<float>(layer);
        const double below = list.mass_below(least);
        ranks += (rest - below) * static_cast<double>(count_reaching(list.values, list.size, least));
        rest = below;
    }
    return (ranks + rest * static_cast<double>(list.size)) / total;
}

// A token goes when it and all less likely ones together have at most `tail`.
inline bool keep_top_p(Shortlist& list, double tail, int64_t count) {
    const double listed = list.mass_below(__builtin_inff()), total = listed + list.unlisted, past = list.unlisted / total;
    if (!(past < tail)) return false;
    const auto below = [&](float value) { return past + list.mass_below(value) / total; };
    const float last = last_that(list.floor, list.top, [&](float value) { return below(value) <= tail; });
    const double rest = below(last), kept = static_cast<double>(count_reaching(list.values, list.size, last));
    const double error = (mean_rank(list, total, count) + kRoundings) * kHalfUlp;
    const double with = rest + static_cast<double>(exp(last - list.top)) / total;   // the least of those tied with the last
    const bool stays = with - (with * error + kDoubleError) > tail || kept == 1.0;  // one token always stays
    const bool goes = rest + (rest * error + kDoubleError) < tail;
    if (!stays || !goes || (list.open && !(last > list.floor))) return false;
    list.keep_reaching(last);
    return true;
}

inline bool keep_min_p(Shortlist& list, float min_p) {
    const double least = static_cast<double>(min_p), goes = least * (1.0 - kMinPError), stays = least * (1.0 + kMinPError);
    if (min_p < kSmallestMinP || (list.open && !(static_cast<double>(exp(list.floor - list.top)) < goes))) return false;
    float last = list.top;
    for (int64_t i = 0; i < list.size; ++i) {
        const double ratio = static_cast<double>(list.masses[i]);
        if (ratio < goes) continue;
        if (!(ratio > stays)) return false;
        last = list.values[i] < last ? list.values[i] : last;
    }
    list.keep_reaching(last);
    return true;
}

}  // namespace hasten::HASTEN_ISA
