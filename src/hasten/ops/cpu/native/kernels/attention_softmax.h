// Masks, the softmax of one split, and the merge of partial results (Milakov & Gimelshein, 2018).
#pragma once

#include "attention_scores.h"

namespace hasten::HASTEN_ISA {

// What one query sees: positions [first, end).
struct Visible {
    int64_t first, end;

    // Of the `count` positions from `position` on; bit i is position + i.
    uint32_t bits(int64_t position, int32_t count) const {
        const int64_t from = first - position, to = end - position;
        if (from <= 0 && to >= count && count == kLanes) return 0xffff;  // most panels
        if (to <= 0 || from >= count) return 0;
        uint32_t seen = to < count ? (1u << to) - 1 : (1u << count) - 1;
        if (from > 0) seen &= ~((1u << from) - 1);
        return seen;
    }
};

struct Softmax {
    float greatest, total;
};

// Positions of the panels of one split, and of int8 values the scales.
struct PanelPositions {
    const int64_t* first;
    const int32_t* count;
    const float* const* value_scales;
};

// What softmax reads of query m and panel j: scores, or the integer sums that tiles make of int8 queries and keys.
struct FloatScores {
    static constexpr bool floats = true;
    const float* scores;
    F16 operator()(int m, int j) const { return load(scores + m * kScoreStride + j * kLanes); }
};
struct IntegerScores {
    static constexpr bool floats = false;
    const float* sums;  // int32
    const int32_t* corrections;
    const float* scales;
    const float* const* key_scales;
    F16 operator()(int m, int j) const {
        const I16 sum = iload(sums + m * kScoreStride + j * kLanes) + ibroadcast(corrections[m]);
        return to_float(sum) * (broadcast(scales[m]) * load(key_scales[j]));
    }
};

// Puts the scores of M queries and panels [begin, end) in place, -infinity where nothing is seen; the greatest of each lane in
// `most`. Of later queries neither the first nor the last position that they see comes earlier.
template <int M, class Scores>
inline void mask_scores(const Scores& source, float* scores, int begin, int end, const Visible* visible,
                        const PanelPositions& panels, float soft_cap, F16* most) {
    const F16 hidden = broadcast(-__builtin_inff());
    F16 greatest[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) greatest[m] = hidden;
    const Visible all{visible[M - 1].first, visible[0].end};
    for (int j = begin; j < end; ++j) {
        const bool whole = all.bits(panels.first[j], panels.count[j]) == 0xffff;
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            F16 s = source(m, j);
            if (soft_cap > 0.0f) s = broadcast(soft_cap) * tanh(s / broadcast(soft_cap));
            if (!whole) s = select(visible[m].bits(panels.first[j], panels.count[j]), s, hidden);
            if (!Scores::floats || soft_cap > 0.0f || !whole) store(scores + m * kScoreStride + j * kLanes, s);
            greatest[m] = max(greatest[m], s);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) most[m] = greatest[m];
}

// What is taken off every score. Where nothing is seen all are -infinity, and stay it.
inline F16 shift_of(float greatest) { return broadcast(greatest == -__builtin_inff() ? 0.0f : greatest); }

// exp(x) for x <= 0 to 3e-7, 1 for 0, with half the steps of the exp of math.h; below -86 it is 0, and the bit set in `none`.
inline F16 exp_of_negative(F16 x, uint32_t& none) {
    const F16 low = broadcast(-86.0f), log2e = broadcast(1.44269504f);
    const F16 to_whole = broadcast(12582912.0f);  // 1.5 * 2^23: a sum with it has its whole part in the lowest bits
    none = greater(low, x);
    x = max(low, x);
    const F16 whole = fma(x, log2e, to_whole);
    const F16 f = fma(x, log2e, to_whole - whole);  // in [-0.5, 0.5]
    F16 p = broadcast(1.3390867e-3f);
    p = fma(p, f, broadcast(9.666374e-3f));
    p = fma(p, f, broadcast(5.550357e-2f));
    p = fma(p, f, broadcast(2.4022348e-1f));
    p = fma(p, f, broadcast(6.931472e-1f));
    p = fma(p, f, broadcast(1.0f));
    return select(none, zero(), as_float(as_int(p) + shift_left(as_int(whole), 23)));
}

// scores of M queries and panels [begin, end) -> exp(score - greatest), zero where nothing is seen. `quick`: by exp_of_negative.
template <int M, bool quick = false>
inline void softmax_split(float* scores, int begin, int end, const Visible* visible, const PanelPositions& panels, float soft_cap,
                          Softmax* states) {
    F16 most[M], shifts[M], totals[M];
    mask_scores<M>(FloatScores{scores}, scores, begin, end, visible, panels, soft_cap, most);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        states[m].greatest = largest(most[m]);
        shifts[m] = shift_of(states[m].greatest);
        totals[m] = zero();
    }
    for (int j = begin; j < end; ++j) {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            float* at = scores + m * kScoreStride + j * kLanes;
            [[maybe_unused]] uint32_t none;
            const F16 p = quick ? exp_of_negative(load(at) - shifts[m], none) : exp(load(at) - shifts[m]);
            totals[m] = totals[m] + p;
            store(at, p);
        }
    }
    for (int m = 0; m < M; ++m) states[m].total = sum(totals[m]);
}

// state and its values += part: the one formula by which partial results become one, in ascending order of splits.
// A part that saw no key (total 0) changes nothing, bit by bit, so that it may as well be left out.
inline void merge_partial(Softmax& state, float* values, const Softmax& part, const float* part_values, int32_t value_dim) {
    if (part.total == 0.0f) return;
    const float greatest = state.greatest > part.greatest ? state.greatest : part.greatest;
    const float keep = exp(state.greatest - greatest), gain = exp(part.greatest - greatest);
    state.total = state.total * keep + part.total * gain;
    state.greatest = greatest;
    for (int32_t i = 0; i < value_dim; i += kLanes) {
        store(values + i, fma(load(values + i), broadcast(keep), load(part_values + i) * broadcast(gain)));
    }
}

// The row of `out`: values / total, with the sink, a logit without a value, in the total. + 0 turns -0 into 0.
inline void finish(Softmax state, const float* values, const float* sink, float* out, int32_t dim) {
    float scale = 1.0f / state.total;
    if (sink != nullptr) {
        const float greatest = state.greatest > *sink ? state.greatest : *sink;
        const float keep = exp(state.greatest - greatest);
        scale = keep / (state.total * keep + exp(*sink - greatest));
    }
    for (int32_t i = 0; i < dim; i += kLanes) {
        const F16 y = load(values + i) * broadcast(scale) + zero();
        store_first(out + i, dim - i < kLanes ? dim - i : kLanes, y);
    }
}

}  // namespace hasten::HASTEN_ISA
