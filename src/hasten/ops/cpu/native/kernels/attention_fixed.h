// int8 values: their weights are whole numbers too, so that sums are exact and every form gives the same bits.
//
// Of one query and split, with w = softmax weight * scale of the value and the greatest of them w': n = round(w * 32767 / w'),
// and the sum of w * v is taken to be (sum of n * v) * w' / 32767. With the 512 keys of a split at most it is below 2^31. A weight
// is off by half a step of w' / 32767 at most. What nobody sees has weight 0, whatever its value and scale are.
//
// Weights lie in the place of the scores: of every run of four panels 128 bytes, in the order of store_weights.
#pragma once

#include "attention_softmax.h"
#include "attention_values.h"
#include "quantize.h"

namespace hasten::HASTEN_ISA {

constexpr float kWeightSteps = 32767.0f;
static_assert(int64_t{kSplitPanels} * kLanes * 32767 * 127 <= INT32_MAX);
constexpr int kRunPanels = 4;
constexpr int64_t kRunBytes = kRunPanels * kLanes * 4;          // between runs of a query
constexpr int64_t kWeightStride = kScoreStride * 4;             // between queries
constexpr int64_t kQuads = kSplitPanels * kLanes / 4;           // of the keys of a split
constexpr int64_t kQuadStride = (kQuads + 2) * 64;              // between 16 dimensions and the next, not a power of two
constexpr int kQuadQueries = 4;                                 // that share a load of values in quads
constexpr int kQuadVectors = kVectorRegisters >= 32 ? 2 : 1;    // dimensions / 16 that share a load of weights
constexpr int kDirectQueries = kVectorRegisters >= 32 ? 2 : 0;  // so few take values as they lie in the pool

inline int run_of(int panel) { return panel / kRunPanels; }
inline int runs_to(int panel) { return (panel + kRunPanels - 1) / kRunPanels; }

// Weights of panels [begin, end) to whole numbers, times `inverse`, and zeros for the rest of their runs.
inline void fix_weights(float* weights, int begin, int end, float inverse) {
    const F16 factor = broadcast(inverse);
    for (int run = run_of(begin); run < runs_to(end); ++run) {
        float* at = weights + run * kRunPanels * kLanes;
        const int from = run * kRunPanels;
        I16 n[kRunPanels];
#pragma GCC unroll 4
        for (int i = 0; i < kRunPanels; ++i) {
            n[i] = from + i >= begin && from + i < end ? to_int(load(at + i * kLanes) * factor) : izero();
        }
        store_weights(reinterpret_cast<uint8_t*>(at), n);
    }
}

// scores of M queries and panels [begin, end) -> weights in bytes, and their softmax. `steps` is what 1 of the weights stands for.
template <int M, class Scores>
inline void softmax_fixed(const Scores& source, float* scores, int begin, int end, const Visible* visible,
                          const PanelPositions& panels, float soft_cap, float* steps, Softmax* states) {
    F16 shifts[M], totals[M], most[M];
    mask_scores<M>(source, scores, begin, end, visible, panels, soft_cap, most);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        states[m].greatest = largest(most[m]);
        shifts[m] = shift_of(states[m].greatest);
        totals[m] = most[m] = zero();
    }
    for (int j = begin; j < end; ++j) {
        const F16 scales = load(panels.value_scales[j]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            float* at = scores + m * kScoreStride + j * kLanes;
            uint32_t none;
            const F16 p = exp_of_negative(load(at) - shifts[m], none);
            totals[m] = totals[m] + p;
            const F16 w = select(none, zero(), p * scales);
            most[m] = max_or_nan(most[m], w);
            store(at, w);
        }
    }
    for (int m = 0; m < M; ++m) {
        const float greatest = largest_or_nan(most[m]);  // NaN where a scale is: it must show
        const bool none = greatest <= kSmallestRange;
        steps[m] = none ? 0.0f : greatest / kWeightSteps;
        states[m].total = sum(totals[m]);
        fix_weights(scores + m * kScoreStride, begin, end, none ? 0.0f : kWeightSteps / greatest);
    }
}

// Sums [kWeightPlanes][value_dim] -> weighted values, in the place of the first.
inline void finish_fixed(int32_t* sums, float step, int32_t value_dim) {
    for (int32_t i = 0; i < value_dim; i += kLanes) {
        store(reinterpret_cast<float*>(sums + i), whole_sums(sums + i, value_dim) * broadcast(step));
    }
}

// Values of panels [begin, end) of a split in quads, [value_dim / 16][key / 4][16][4 keys].
inline void gather_quads(const ValuePanels& values, int begin, int end, int32_t value_dim, uint8_t* out) {
    for (int j = begin; j < end; ++j) {
        for (int quad = 0; quad < kLanes / 4; ++quad) {
            const int64_t row = quad * 4 * values.row_bytes;
            uint8_t* to = out + (j * (kLanes / 4) + quad) * 64;
            int32_t i = 0;
            for (; i + 64 <= value_dim; i += 64, to += 4 * kQuadStride) {
                I16 quads[4];
                load_quads(values.panels[j] + row + i, values.row_bytes, quads);
                for (int n = 0; n < 4; ++n) prefetch_far(values.ahead[j] + row + i + n * values.row_bytes);
                transpose_quarters(quads);
                for (int n = 0; n < 4; ++n) istore(to + n * kQuadStride, quads[n]);
            }
            for (; i < value_dim; i += kLanes, to += kQuadStride) {
                istore(to, load_quad_row(values.panels[j] + row + i, values.row_bytes));
            }
        }
    }
}

// sums[m][plane][16 n + lane] of M queries over runs [begin, end) of N vectors of values in quads.
template <int M, int N>
inline void add_quads(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim, int32_t* sums) {
    I16 acc[M][kWeightPlanes][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < kWeightPlanes * N; ++n) acc[m][n / N][n % N] = izero();
    }
    for (int run = begin; run < end; ++run) {
        const uint8_t* line = values + run * 16 * 64;
        for (int quad = 0; quad < 16; ++quad, line += 64) {
            ValueQuads v[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) v[n] = value_quads(iload(line + n * kQuadStride));
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
                for (int plane = 0; plane < kWeightPlanes; ++plane) {
                    const ValueWeights w = load_weights(weights + m * kWeightStride + run * kRunBytes, plane, quad);
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) acc[m][plane][n] = add_weighted(acc[m][plane][n], w, v[n]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
        for (int plane = 0; plane < kWeightPlanes; ++plane) {
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) istore(sums + (kWeightPlanes * m + plane) * value_dim + n * kLanes, acc[m][plane][n]);
        }
    }
}

template <int M>
inline void add_all_quads(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim, int32_t* sums) {
    const int32_t vectors = value_dim / kLanes;
    int32_t n = 0;
    for (; n + kQuadVectors <= vectors; n += kQuadVectors) {
        add_quads<M, kQuadVectors>(weights, values + n * kQuadStride, begin, end, value_dim, sums + n * kLanes);
    }
    for (; n < vectors; ++n) add_quads<M, 1>(weights, values + n * kQuadStride, begin, end, value_dim, sums + n * kLanes);
}

// All sums [m][plane][value_dim] of `m` queries: 1, 2 or a multiple of 4.
inline void add_all_quads(int m, const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim,
                          int32_t* sums) {
    if (m == 1) return add_all_quads<1>(weights, values, begin, end, value_dim, sums);
    if (m == 2) return add_all_quads<2>(weights, values, begin, end, value_dim, sums);
    for (int i = 0; i < m; i += kQuadQueries) {
        add_all_quads<kQuadQueries>(weights + i * kWeightStride, values, begin, end, value_dim,
                                    sums + i * kWeightPlanes * value_dim);
    }
}

// What row i of sums [m][plane] is multiplied with.
inline ValueWeights weights_of_sums(const uint8_t* run, int i, int quad) {
    return load_weights(run + i / kWeightPlanes * kWeightStride, i % kWeightPlanes, quad);
}

// Adds the panels [begin, end) of one run to sums[m][plane] of 64 dimensions, in the order of load_quads.
template <int M>
inline void add_rows(const uint8_t* run, const ValuePanels& values, int begin, int end, int32_t i, int32_t value_dim,
                     int32_t* sums) {
    constexpr int rows = kWeightPlanes * M;
    I16 acc[rows][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[r][n] = iload(sums + r * value_dim + i + n * kLanes);
    }
    for (int quad = 0; quad < (end - begin) * 4; ++quad) {
        const int64_t at = (quad % 4 * 4) * values.row_bytes + i;
        const uint8_t* soon = values.ahead[begin + quad / 4] + at;
        I16 v[4];
        load_quads(values.panels[begin + quad / 4] + at, values.row_bytes, v);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) prefetch_far(soon + n * values.row_bytes);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const ValueWeights w = weights_of_sums(run, r, quad);
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) acc[r][n] = add_weighted(acc[r][n], w, value_quads(v[n]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) istore(sums + r * value_dim + i + n * kLanes, acc[r][n]);
    }
}

// The same of 16 dimensions, in their order.
template <int M>
inline void add_short_rows(const uint8_t* run, const ValuePanels& values, int begin, int end, int32_t i, int32_t value_dim,
                           int32_t* sums) {
    for (int quad = 0; quad < (end - begin) * 4; ++quad) {
        const I16 v = load_quad_row(values.panels[begin + quad / 4] + quad % 4 * 4 * values.row_bytes + i, values.row_bytes);
        for (int r = 0; r < kWeightPlanes * M; ++r) {
            int32_t* sum = sums + r * value_dim + i;
            istore(sum, add_weighted(iload(sum), weights_of_sums(run, r, quad), value_quads(v)));
        }
    }
}

// All sums [m][plane][value_dim] of few queries, from values as they lie in the pool.
template <int M>
inline void add_all_rows(const uint8_t* weights, const ValuePanels& values, int32_t value_dim, int32_t* sums) {
    constexpr int rows = kWeightPlanes * M;
    __builtin_memset(sums, 0, static_cast<size_t>(rows * value_dim) * sizeof(int32_t));
    const int32_t whole = value_dim / 64 * 64;
    for (int j = 0; j < values.count; j += kRunPanels) {
        const uint8_t* run = weights + run_of(j) * kRunBytes;
        const int end = j + kRunPanels < values.count ? j + kRunPanels : values.count;
        for (int32_t i = 0; i < whole; i += 64) add_rows<M>(run, values, j, end, i, value_dim, sums);
        for (int32_t i = whole; i < value_dim; i += kLanes) add_short_rows<M>(run, values, j, end, i, value_dim, sums);
    }
    for (int r = 0; r < rows; ++r) {
        for (int32_t i = 0; i < whole; i += 64) {
            I16 quarters[4];
            for (int n = 0; n < 4; ++n) quarters[n] = iload(sums + r * value_dim + i + n * kLanes);
            transpose_quarters(quarters);
            for (int n = 0; n < 4; ++n) istore(sums + r * value_dim + i + n * kLanes, quarters[n]);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
