// Attention masks, the softmax of one split, and the merge of splits (online softmax: Milakov & Gimelshein, 2018).
#pragma once

#include "attention_scores.h"

namespace hasten::HASTEN_ISA {

// Positions [first, end) that are visible to one query.
struct VisibleRange {
    int64_t first, end;

    // Bit i is set if position + i is visible, for the `count` positions of a panel.
    uint32_t mask(int64_t position, int32_t count) const {
        const int64_t from = first - position, to = end - position;
        if (from <= 0 && to >= count && count == kLanes) return 0xffff;  // the common case
        if (to <= 0 || from >= count) return 0;
        uint32_t bits = to < count ? (1u << to) - 1 : (1u << count) - 1;
        if (from > 0) bits &= ~((1u << from) - 1);
        return bits;
    }
};

// Maximum score and sum of exp(score - max) of the keys so far.
struct SoftmaxState {
    float max, sum;
};

// Positions of the panels of one split, and the value scales of int8.
struct PanelPositions {
    const int64_t* first;
    const int32_t* count;
    const float* const* value_scales;
};

// Scores of query m and panel j, as floats.
struct FloatScores {
    static constexpr bool floats = true;
    const float* scores;
    F32x16 operator()(int m, int j) const { return load(scores + m * kScoreStride + j * kLanes); }
};
// The same from the integer sums of int8 queries and keys, dequantised here.
struct Int8Scores {
    static constexpr bool floats = false;
    const float* sums;  // int32
    const int32_t* zero_point_corrections;
    const float* scales;
    const float* const* key_scales;
    F32x16 operator()(int m, int j) const {
        const I32x16 sum = load_i32(sums + m * kScoreStride + j * kLanes) + broadcast_i32(zero_point_corrections[m]);
        return to_float(sum) * (broadcast(scales[m]) * load(key_scales[j]));
    }
};

// Applies soft cap and mask to the scores of M queries and panels [begin, end). Invisible keys get -infinity. `max_scores` receives
// the maximum per lane. The visible ranges of the queries ascend.
template <int M, class Scores>
inline void mask_scores(const Scores& source, float* scores, int begin, int end, const VisibleRange* visible,
                        const PanelPositions& panels, float soft_cap, F32x16* max_scores) {
    const F32x16 minus_infinity = broadcast(-__builtin_inff());
    F32x16 maxima[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) maxima[m] = minus_infinity;
    const VisibleRange common{visible[M - 1].first, visible[0].end};
    for (int j = begin; j < end; ++j) {
        const bool all_visible = common.mask(panels.first[j], panels.count[j]) == 0xffff;
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            F32x16 s = source(m, j);
            if (soft_cap > 0.0f) s = broadcast(soft_cap) * tanh(s / broadcast(soft_cap));
            if (!all_visible) s = select(visible[m].mask(panels.first[j], panels.count[j]), s, minus_infinity);
            if (!Scores::floats || soft_cap > 0.0f || !all_visible) store(scores + m * kScoreStride + j * kLanes, s);
            maxima[m] = max(maxima[m], s);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) max_scores[m] = maxima[m];
}

// The maximum that is subtracted from every score; 0 where no key is visible, so that -infinity stays -infinity.
inline F32x16 finite_max(float max) { return broadcast(max == -__builtin_inff() ? 0.0f : max); }

// exp(x) for x <= 0 to 3e-7, exactly 1 for 0, in half the steps of exp in vector_math.h. Below -86 it is 0, with the lane's bit set
// in `underflow`.
inline F32x16 exp_nonpositive(F32x16 x, uint32_t& underflow) {
    const F32x16 low = broadcast(-86.0f), log2e = broadcast(1.44269504f);
    const F32x16 round_magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    underflow = greater(low, x);
    x = max(low, x);
    const F32x16 n = fma(x, log2e, round_magic);
    const F32x16 f = fma(x, log2e, round_magic - n);  // in [-0.5, 0.5]
    F32x16 p = broadcast(1.3390867e-3f);
    p = fma(p, f, broadcast(9.666374e-3f));
    p = fma(p, f, broadcast(5.550357e-2f));
    p = fma(p, f, broadcast(2.4022348e-1f));
    p = fma(p, f, broadcast(6.931472e-1f));
    p = fma(p, f, broadcast(1.0f));
    return select(underflow, zero(), as_float(as_int(p) + shift_left(as_int(n), 23)));
}

// Replaces the scores of M queries and panels [begin, end) by exp(score - max), 0 for invisible keys. fast_exp: exp_nonpositive.
template <int M, bool fast_exp = false>
inline void softmax_split(float* scores, int begin, int end, const VisibleRange* visible, const PanelPositions& panels,
                          float soft_cap, SoftmaxState* states) {
    F32x16 max_scores[M], maxima[M], sums[M];
    mask_scores<M>(FloatScores{scores}, scores, begin, end, visible, panels, soft_cap, max_scores);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        states[m].max = reduce_max(max_scores[m]);
        maxima[m] = finite_max(states[m].max);
        sums[m] = zero();
    }
    for (int j = begin; j < end; ++j) {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            float* score = scores + m * kScoreStride + j * kLanes;
            [[maybe_unused]] uint32_t underflow;
            const F32x16 p = fast_exp ? exp_nonpositive(load(score) - maxima[m], underflow) : exp(load(score) - maxima[m]);
            sums[m] = sums[m] + p;
            store(score, p);
        }
    }
    for (int m = 0; m < M; ++m) states[m].sum = reduce_add(sums[m]);
}

// Merges one split into the running state and values, in ascending order of splits. A split without a visible key (sum 0) changes
// no bit, so it may be skipped.
inline void merge_split(SoftmaxState& state, float* values, const SoftmaxState& split, const float* split_values,
                        int32_t value_dim) {
    if (split.sum == 0.0f) return;
    const float max = state.max > split.max ? state.max : split.max;
    const float old_scale = exp(state.max - max), new_scale = exp(split.max - max);
    state.sum = state.sum * old_scale + split.sum * new_scale;
    state.max = max;
    for (int32_t i = 0; i < value_dim; i += kLanes) {
        store(values + i, fma(load(values + i), broadcast(old_scale), load(split_values + i) * broadcast(new_scale)));
    }
}

// Writes values / sum to `out`. An attention sink adds its logit to the sum and has no value. Adding 0 turns -0 into 0.
inline void write_normalized(SoftmaxState state, const float* values, const float* sink, float* out, int32_t dim) {
    float scale = 1.0f / state.sum;
    if (sink != nullptr) {
        const float max = state.max > *sink ? state.max : *sink;
        const float old_scale = exp(state.max - max);
        scale = old_scale / (state.sum * old_scale + exp(*sink - max));
    }
    for (int32_t i = 0; i < dim; i += kLanes) {
        const F32x16 y = load(values + i) * broadcast(scale) + zero();
        store_partial(out + i, dim - i < kLanes ? dim - i : kLanes, y);
    }
}

}  // namespace hasten::HASTEN_ISA
