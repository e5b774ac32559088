// Choosing among logits in one pass: the greatest, the k greatest, and the log of the sum of exponentials.
#pragma once

#include "../simd/math.h"

namespace hasten::HASTEN_ISA {

constexpr int64_t kSelectRun = 1024;  // values between two looks at the running maximum

// The greatest of `count` values, NaNs left out; -inf where there is none.
inline float largest_number(const float* values, int64_t count) {
    const F16 none = broadcast(-__builtin_inff());
    F16 a = none, b = none;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        a = max(load(values + i), a);  // the second operand stays when the first is a NaN
        b = max(load(values + i + 16), b);
    }
    for (; i < count; i += 16) {
        const int n = count - i < 16 ? static_cast<int>(count - i) : 16;
        a = max(first(n, load_first(values + i, n), none), a);
    }
    return largest(max(a, b));
}

// Index of the greatest value: the lowest of equals, a NaN never before a number; 0 if all are NaN.
inline int32_t argmax(const float* values, int64_t count) {
    float best = -__builtin_inff();
    int64_t run = 0;
    for (int64_t i = 0; i < count; i += kSelectRun) {
        const float most = largest_number(values + i, count - i < kSelectRun ? count - i : kSelectRun);
        if (most > best) {
            best = most;
            run = i;
        }
    }
    for (int64_t i = run; i < count; ++i) {
        if (values[i] == best) return static_cast<int32_t>(i);
    }
    return 0;
}

// Value and index as one number that sorts as wanted: greater values first, then lower indices; NaNs are the least of all.
inline uint64_t sort_key(float value, int64_t index) {
    uint32_t bits = 0;
    if (value == value) {
        const float plain = value + 0.0f;  // -0 is 0
        __builtin_memcpy(&bits, &plain, sizeof bits);
        bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

inline void swap_keys(uint64_t& a, uint64_t& b) {
    const uint64_t kept = a;
    a = b;
    b = kept;
}

// Splits keys [begin, end) around a pivot chosen by `state`; returns where the pivot lands. Greater keys come first.
inline int64_t partition_keys(uint64_t* keys, int64_t begin, int64_t end, uint64_t& state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    swap_keys(keys[begin + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(end - begin))], keys[end - 1]);
    const uint64_t pivot = keys[end - 1];
    int64_t middle = begin;
    for (int64_t i = begin; i < end - 1; ++i) {
        const uint64_t key = keys[i];
        keys[i] = keys[middle];
        keys[middle] = key;
        middle += key > pivot;
    }
    swap_keys(keys[middle], keys[end - 1]);
    return middle;
}

// Brings the k greatest of keys [0, count) to the front, in no order; 0 < k <= count. Linear, for keys are distinct.
inline void select_keys(uint64_t* keys, int64_t count, int64_t k) {
    uint64_t state = 1;
    int64_t begin = 0, end = count;
    while (end - begin > 1) {
        const int64_t middle = partition_keys(keys, begin, end, state);
        if (middle == k - 1) return;
        if (middle < k - 1)
            begin = middle + 1;
        else
            end = middle;
    }
}

// Descending. The longer part is done by the loop, so that the depth is logarithmic.
inline void sort_keys(uint64_t* keys, int64_t begin, int64_t end, uint64_t& state) {
    while (end - begin > 16) {
        const int64_t middle = partition_keys(keys, begin, end, state);
        if (middle - begin < end - middle) {
            sort_keys(keys, begin, middle, state);
            begin = middle + 1;
        } else {
            sort_keys(keys, middle + 1, end, state);
            end = middle;
        }
    }
    for (int64_t i = begin + 1; i < end; ++i) {
        const uint64_t key = keys[i];
        int64_t j = i;
        for (; j > begin && keys[j - 1] < key; --j) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

// The k greatest so far and, behind them, what came since and may be among them.
struct Candidates {
    uint64_t* keys;
    const float* values;
    int64_t k, capacity;
    int64_t held = 0;
    uint64_t least = 0;             // key of the k-th greatest; meaningful once `full`
    float threshold = 0;            // its value; only what is greater can still come in
    bool full = false, any = true;  // any: the k-th is a NaN, so that every number comes in

    void cut() {
        select_keys(keys, held, k);
        held = k;
        least = keys[0];
        for (int64_t i = 1; i < k; ++i) least = keys[i] < least ? keys[i] : least;
        threshold = values[0xffffffffu - static_cast<uint32_t>(least)];
        full = true;
        any = threshold != threshold;
    }
    void add(int64_t i) {
        const uint64_t key = sort_key(values[i], i);
        if (full && key < least) return;
        keys[held++] = key;
        if (held == capacity) cut();
    }
    void scan(int64_t i, int n) {
        uint32_t bits = (1u << n) - 1;
        if (!any) bits &= greater(load_first(values + i, n), broadcast(threshold));
        for (; bits != 0; bits &= bits - 1) add(i + __builtin_ctz(bits));
    }
};

// The k greatest, descending, equals by ascending index, NaNs last. scratch: 8 * count bytes, of which 8 * max(2k, k + 1024)
// at most are used. Returns how many were written.
inline int64_t top_k(const float* values, int64_t count, int64_t k, float* top_values, int32_t* top_ids, void* scratch) {
    if (k > count) k = count;
    if (k <= 0) return 0;
    const int64_t room = k > kSelectRun ? k : kSelectRun;
    Candidates best{static_cast<uint64_t*>(scratch), values, k, k + room < count ? k + room : count};
    for (int64_t i = 0; i < count; i += 16) best.scan(i, count - i < 16 ? static_cast<int>(count - i) : 16);
    if (best.held > k) best.cut();
    uint64_t state = 1;
    sort_keys(best.keys, 0, k, state);
    for (int64_t i = 0; i < k; ++i) {
        top_ids[i] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best.keys[i]));
        top_values[i] = values[top_ids[i]];
    }
    return k;
}

// log(sum(exp(values))): lanes of floats over short runs, runs in double. NaN if any value is a NaN.
inline double log_sum_exp(const float* values, int64_t count) {
    const float most = largest_number(values, count);
    const bool infinite = most - most != 0.0f;
    const F16 shift = broadcast(infinite ? 0.0f : most), none = broadcast(-__builtin_inff());
    double total = 0.0;
    for (int64_t run = 0; run < count; run += kSelectRun) {
        const int64_t end = run + kSelectRun < count ? run + kSelectRun : count;
        F16 a = zero();
        for (int64_t i = run; i < end; i += 16) {
            const int n = end - i < 16 ? static_cast<int>(end - i) : 16;
            a = a + exp(first(n, load_first(values + i, n), none) - shift);
        }
        total += static_cast<double>(sum(a));
    }
    if (infinite && total == total) return static_cast<double>(most);
    return static_cast<double>(most) + __builtin_log(total);
}

}  // namespace hasten::HASTEN_ISA
