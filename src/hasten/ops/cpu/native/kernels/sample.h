// Samples a token of a row of logits: the Gumbel argmax over its top candidates, or over the tokens whose noise can win.
#pragma once

#include "gumbel_noise.h"
#include "candidates.h"

namespace hasten::HASTEN_ISA {

constexpr float kMinTemperature = 1e-4f, kMaxTemperature = 1e30f;  // rows with other temperatures stay undecided
constexpr int64_t kInitialCandidates = 64;                         // usually enough
constexpr int64_t kCandidateGrowth = 8;                            // factor from one attempt to the next
constexpr int64_t kNoiseBlock = 256;                               // tokens between updates of the noise bound

// The maximum of `vocab_size` values without NaN.
inline float max_logit(const float* values, int64_t vocab_size) {
    const F32x16 minus_infinity = broadcast(-__builtin_inff());
    F32x16 max_value = minus_infinity;
    for (int64_t i = 0; i < vocab_size; i += 16) {
        const int n = vocab_size - i < 16 ? static_cast<int>(vocab_size - i) : 16;
        max_value = max(n == 16 ? load(values + i) : blend_first(n, load_partial(values + i, n), minus_infinity), max_value);
    }
    return reduce_max(max_value);
}

// The lowest token of the maximum logit. Returns false if there is a NaN or the maximum is not finite.
inline bool argmax_logit(const float* logits, int64_t vocab_size, int32_t* token) {
    alignas(64) float maxima[4 * 16];
    const RowMax row_max = bucket_maxima(logits, vocab_size, 4 * 16, maxima);
    if (!row_max.finite) return false;
    for (int64_t i = 0; i < vocab_size; i += 16) {
        const int n = vocab_size - i < 16 ? static_cast<int>(vocab_size - i) : 16;
        const F32x16 x = n == 16 ? load(logits + i) : load_partial(logits + i, n);
        const uint32_t equal_mask = equal(x, broadcast(row_max.value)) & ((1u << n) - 1);
        if (equal_mask == 0) continue;
        *token = static_cast<int32_t>(i) + __builtin_ctz(equal_mask);
        return true;
    }
    return false;
}

// Bit mask of the 32 tokens from `key` on (the keys of the first eight) whose partly mixed bits reach min_noise_bits.
inline uint32_t noise_candidate_mask(U64x8 key, U64x8 min_noise_bits) {
    uint32_t bits = 0;
    for (int part = 0; part < 4; ++part) {
        bits |= at_least(partly_mixed_bits(key), min_noise_bits) << (8 * part);
        key = key + broadcast_u64(8 * kNoiseA);
    }
    return bits;
}

// Adds all tokens but `top`, which was added before. Tokens whose noise cannot compensate their distance are skipped by their bits.
inline void add_noise_candidates(const float* logits, int64_t vocab_size, float temperature, int64_t top, GumbelArgmax& argmax) {
    uint64_t keys[8];
    for (uint64_t lane = 0; lane < 8; ++lane) keys[lane] = argmax.stream + (lane + 1) * kNoiseA;
    const U64x8 first_keys = load_u64(keys);
    for (int64_t begin = 0; begin < vocab_size; begin += kNoiseBlock) {
        const int64_t end = begin + kNoiseBlock < vocab_size ? begin + kNoiseBlock : vocab_size;
        const float max_value = max_logit(logits + begin, end - begin) / temperature;
        if (argmax.cannot_win(max_value)) continue;
        uint64_t min_noise_bits = argmax.min_bits(max_value);
        for (int64_t i = begin; i < end; i += 32) {
            uint32_t bits =
                noise_candidate_mask(first_keys + broadcast_u64(static_cast<uint64_t>(i) * kNoiseA), broadcast_u64(min_noise_bits));
            if (end - i < 32) bits &= (1u << (end - i)) - 1;
            for (; bits != 0; bits &= bits - 1) {
                const int64_t token = i + __builtin_ctz(bits);
                if (token != top && argmax.add(token, logits[token] / temperature)) min_noise_bits = argmax.min_bits(max_value);
            }
        }
    }
}

// One attempt with at least `requested` candidates.
inline bool sample_candidates(const SampleTask& task, int64_t requested, Candidates& candidates, GumbelArgmax& argmax) {
    if (!collect_candidates(task.logits, task.vocab_size, task.temperature, requested, candidates)) return false;
    if (task.top_k > 0 && !keep_top_k(candidates, task.top_k)) return false;
    if (task.tail_mass > 0.0f || task.min_p > 0.0f) candidates.compute_masses();
    if (task.tail_mass > 0.0f) {
        if (candidates.incomplete)
            candidates.excluded_mass = sum_excluded_mass(task.logits, task.vocab_size, task.temperature, candidates);
        if (!keep_top_p(candidates, static_cast<double>(task.tail_mass), task.vocab_size)) return false;
        if (task.min_p > 0.0f) candidates.compute_masses();
    }
    if (task.min_p > 0.0f && !keep_min_p(candidates, task.min_p)) return false;
    for (int64_t i = 0; i < candidates.size; ++i) argmax.add(candidates.tokens[i], candidates.values[i]);
    return true;
}

// Rows with a filter: retries with more candidates while the result is undecided.
inline bool sample_filtered(const SampleTask& task, GumbelArgmax& argmax) {
    Candidates candidates;
    for (int64_t requested = task.top_k > 0 ? task.top_k : kInitialCandidates; requested <= kMaxRequested;
         requested *= kCandidateGrowth) {
        if (sample_candidates(task, requested, candidates, argmax)) return true;
        if (!candidates.incomplete) return false;
    }
    return false;
}

// Rows without a filter, in which any token can win.
inline bool sample_unfiltered(const SampleTask& task, GumbelArgmax& argmax) {
    int32_t top = 0;
    if (!argmax_logit(task.logits, task.vocab_size, &top)) return false;
    const float value = task.logits[top] / task.temperature;
    if (value - value != 0.0f) return false;
    argmax.add(top, value);
    add_noise_candidates(task.logits, task.vocab_size, task.temperature, top, argmax);
    return true;
}

inline bool sample(const SampleTask& request, int32_t* token) {
    if (request.temperature == 0.0f) return argmax_logit(request.logits, request.vocab_size, token);
    if (!(request.temperature >= kMinTemperature && request.temperature <= kMaxTemperature)) return false;
    SampleTask task = request;
    if (task.top_k >= task.vocab_size) task.top_k = 0;
    GumbelArgmax argmax{noise_stream(task.seed, task.sequence, task.position)};
    const bool filtered = task.top_k > 0 || task.tail_mass > 0.0f || task.min_p > 0.0f;
    if (!(filtered ? sample_filtered(task, argmax) : sample_unfiltered(task, argmax)) || !argmax.decided()) return false;
    *token = argmax.token;
    return true;
}

}  // namespace hasten::HASTEN_ISA
