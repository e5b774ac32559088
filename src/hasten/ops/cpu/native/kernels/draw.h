// The next token of a row of logits, from its likeliest tokens and from those whose noise is loud enough to catch up with them.
#pragma once

#include "noise.h"
#include "shortlist.h"

namespace hasten::HASTEN_ISA {

constexpr float kColdest = 1e-4f, kHottest = 1e30f;  // temperatures beyond these need more care than is taken here
constexpr int64_t kWanted = 64;                      // tokens of a list that mostly are enough
constexpr int64_t kLonger = 8;                       // times as many in the next list
constexpr int64_t kDrawBlock = 256;                  // tokens between two looks at how loud their noise must be

// The greatest of `count` values, none of which is a NaN.
inline float largest_of(const float* values, int64_t count) {
    const F16 none = broadcast(-__builtin_inff());
    F16 most = none;
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? static_cast<int>(count - i) : 16;
        most = max(n == 16 ? load(values + i) : first(n, load_first(values + i, n), none), most);
    }
    return largest(most);
}

// The greatest logit and its lowest token; false where it is not a finite number or where there is a NaN.
inline bool find_top(const float* logits, int64_t count, int32_t* token) {
    alignas(64) float maxima[4 * 16];
    const Summit summit = class_maxima(logits, count, 4 * 16, maxima);
    if (!summit.numbers) return false;
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? static_cast<int>(count - i) : 16;
        const F16 x = n == 16 ? load(logits + i) : load_first(logits + i, n);
        const uint32_t found = equal(x, broadcast(summit.value)) & ((1u << n) - 1);
        if (found == 0) continue;
        *token = static_cast<int32_t>(i) + __builtin_ctz(found);
        return true;
    }
    return false;
}

// Which of the 32 tokens from `key` on, the keys of the first eight, have mixed bits of at least `least`.
inline uint32_t loud_tokens(U8 key, U8 least) {
    uint32_t bits = 0;
    for (int part = 0; part < 4; ++part) {
        bits |= at_least(mixed_bits(key), least) << (8 * part);
        key = key + ubroadcast(8 * kNoiseA);
    }
    return bits;
}

// All tokens but `top`, which has entered, take part; those whose noise cannot make up for their distance are told by their bits.
inline void race_all(const float* logits, int64_t count, float temperature, int64_t top, Race& race) {
    uint64_t keys[8];
    for (uint64_t lane = 0; lane < 8; ++lane) keys[lane] = race.stream + (lane + 1) * kNoiseA;
    const U8 first_keys = uload(keys);
    for (int64_t begin = 0; begin < count; begin += kDrawBlock) {
        const int64_t end = begin + kDrawBlock < count ? begin + kDrawBlock : count;
        const float most = largest_of(logits + begin, end - begin) / temperature;
        if (race.out_of_reach(most)) continue;
        uint64_t least = race.least_bits(most);
        for (int64_t i = begin; i < end; i += 32) {
            uint32_t bits = loud_tokens(first_keys + ubroadcast(static_cast<uint64_t>(i) * kNoiseA), ubroadcast(least));
            if (end - i < 32) bits &= (1u << (end - i)) - 1;
            for (; bits != 0; bits &= bits - 1) {
                const int64_t token = i + __builtin_ctz(bits);
                if (token != top && race.enter(token, logits[token] / temperature)) least = race.least_bits(most);
            }
        }
    }
}

// One attempt with a list of at least `wanted` tokens.
inline bool draw_listed(const DrawTask& task, int64_t wanted, Shortlist& list, Race& race) {
    if (!make_list(task.logits, task.count, task.temperature, wanted, list)) return false;
    if (task.top_k > 0 && !keep_top_k(list, task.top_k)) return false;
    if (task.tail > 0.0f || task.min_p > 0.0f) list.weigh();
    if (task.tail > 0.0f) {
        if (list.open) list.unlisted = unlisted_mass(task.logits, task.count, task.temperature, list);
        if (!keep_top_p(list, static_cast<double>(task.tail), task.count)) return false;
        if (task.min_p > 0.0f) list.weigh();
    }
    if (task.min_p > 0.0f && !keep_min_p(list, task.min_p)) return false;
    for (int64_t i = 0; i < list.size; ++i) race.enter(list.tokens[i], list.values[i]);
    return true;
}

// Rows that a list cuts: longer lists are tried where a short one does not tell.
inline bool draw_cut(const DrawTask& task, Race& race) {
    Shortlist list;
    for (int64_t wanted = task.top_k > 0 ? task.top_k : kWanted; wanted <= kMostWanted; wanted *= kLonger) {
        if (draw_listed(task, wanted, list, race)) return true;
        if (!list.open) return false;
    }
    return false;
}

// Rows from which every token may come.
inline bool draw_any(const DrawTask& task, Race& race) {
    int32_t top = 0;
    if (!find_top(task.logits, task.count, &top)) return false;
    const float value = task.logits[top] / task.temperature;
    if (value - value != 0.0f) return false;
    race.enter(top, value);
    race_all(task.logits, task.count, task.temperature, top, race);
    return true;
}

inline bool draw(const DrawTask& given, int32_t* token) {
    if (given.temperature == 0.0f) return find_top(given.logits, given.count, token);
    if (!(given.temperature >= kColdest && given.temperature <= kHottest)) return false;
    DrawTask task = given;
    if (task.top_k >= task.count) task.top_k = 0;
    Race race{noise_stream(task.seed, task.sequence, task.position)};
    const bool cut = task.top_k > 0 || task.tail > 0.0f || task.min_p > 0.0f;
    if (!(cut ? draw_cut(task, race) : draw_any(task, race)) || !race.decided()) return false;
    *token = race.winner;
    return true;
}

}  // namespace hasten::HASTEN_ISA
