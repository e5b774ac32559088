// Attention with int8 values. Softmax weights are quantised to integers too, so that sums are exact and every form gives the same
// bits.
//
// For one query and split let w = softmax weight * scale of the value, and w' the largest of them. The integer weight is n =
// round(w * 32767 / w'), and the sum of w * v is computed as (sum of n * v) * w' / 32767. With at most 512 keys in a split the
// integer sum is below 2^31. The error of a weight is at most w' / 65534. Invisible keys have weight 0, whatever bits their values
// and scales hold.
//
// The integer weights replace the scores: 128 bytes for each block of four panels, in the order of store_weights.
#pragma once

#include "attention_softmax.h"
#include "attention_values.h"
#include "quantize.h"

namespace hasten::HASTEN_ISA {

constexpr float kMaxWeight = 32767.0f;
static_assert(int64_t{kSplitPanels} * kLanes * 32767 * 127 <= INT32_MAX);
constexpr int kWeightBlockPanels = 4;
constexpr int64_t kWeightBlockBytes = kWeightBlockPanels * kLanes * 4;  // between weight blocks of a query
constexpr int64_t kWeightStride = kScoreStride * 4;                     // between queries
constexpr int64_t kSplitQuads = kSplitPanels * kLanes / 4;              // quads of keys in a split
constexpr int64_t kPackedStride = (kSplitQuads + 2) * 64;               // between vectors of 16 dimensions; not a power of two
constexpr int kPackedQueries = 4;                                       // queries that share a load of packed values
constexpr int kPackedVectors = kVectorRegisters >= 32 ? 2 : 1;          // vectors of dimensions that share a load of weights
constexpr int kMaxUnpackedQueries = kVectorRegisters >= 32 ? 2 : 0;     // so few queries read values from the pool without packing

inline int weight_block_of(int panel) { return panel / kWeightBlockPanels; }
inline int weight_blocks_to(int panel) { return (panel + kWeightBlockPanels - 1) / kWeightBlockPanels; }

// Quantises the weights of panels [begin, end) with the factor `inverse`, with zeros in the rest of their blocks.
inline void quantize_weights(float* weights, int begin, int end, float inverse) {
    const F32x16 factor = broadcast(inverse);
    for (int block = weight_block_of(begin); block < weight_blocks_to(end); ++block) {
        float* block_weights = weights + block * kWeightBlockPanels * kLanes;
        const int from = block * kWeightBlockPanels;
        I32x16 n[kWeightBlockPanels];
#pragma GCC unroll 4
        for (int i = 0; i < kWeightBlockPanels; ++i) {
            n[i] = from + i >= begin && from + i < end ? to_int(load(block_weights + i * kLanes) * factor) : zero_i32();
        }
        store_weights(reinterpret_cast<uint8_t*>(block_weights), n);
    }
}

// Softmax of M queries over panels [begin, end). Replaces scores by integer weights, each of which stands for weight_scales[m].
template <int M, class Scores>
inline void softmax_int8(const Scores& source, float* scores, int begin, int end, const VisibleRange* visible,
                         const PanelPositions& panels, float soft_cap, float* weight_scales, SoftmaxState* states) {
    F32x16 maxima[M], sums_of_exp[M], max_weights[M];
    mask_scores<M>(source, scores, begin, end, visible, panels, soft_cap, max_weights);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        states[m].max = reduce_max(max_weights[m]);
        maxima[m] = finite_max(states[m].max);
        sums_of_exp[m] = max_weights[m] = zero();
    }
    for (int j = begin; j < end; ++j) {
        const F32x16 scales = load(panels.value_scales[j]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            float* score = scores + m * kScoreStride + j * kLanes;
            uint32_t underflow;
            const F32x16 p = exp_nonpositive(load(score) - maxima[m], underflow);
            sums_of_exp[m] = sums_of_exp[m] + p;
            const F32x16 w = select(underflow, zero(), p * scales);
            max_weights[m] = max_nan(max_weights[m], w);
            store(score, w);
        }
    }
    for (int m = 0; m < M; ++m) {
        const float max_weight = reduce_max_nan(max_weights[m]);  // a NaN scale must reach the output
        const bool is_zero = max_weight <= kMinAbsMax;
        weight_scales[m] = is_zero ? 0.0f : max_weight / kMaxWeight;
        states[m].sum = reduce_add(sums_of_exp[m]);
        quantize_weights(scores + m * kScoreStride, begin, end, is_zero ? 0.0f : kMaxWeight / max_weight);
    }
}

// Replaces sums [kWeightPlanes][value_dim] by the weighted values, as floats in the first plane.
inline void dequantize_sums(int32_t* sums, float weight_scale, int32_t value_dim) {
    for (int32_t i = 0; i < value_dim; i += kLanes) {
        store(reinterpret_cast<float*>(sums + i), combine_planes(sums + i, value_dim) * broadcast(weight_scale));
    }
}

// Packs the values of panels [begin, end) of a split into quads of keys: [value_dim / 16][key / 4][16][4 keys].
inline void pack_values(const ValuePanels& values, int begin, int end, int32_t value_dim, uint8_t* out) {
    for (int j = begin; j < end; ++j) {
        for (int quad = 0; quad < kLanes / 4; ++quad) {
            const int64_t row = quad * 4 * values.row_bytes;
            uint8_t* to = out + (j * (kLanes / 4) + quad) * 64;
            int32_t i = 0;
            for (; i + 64 <= value_dim; i += 64, to += 4 * kPackedStride) {
                I32x16 quads[4];
                load_interleaved_4x64(values.panels[j] + row + i, values.row_bytes, quads);
                for (int n = 0; n < 4; ++n) prefetch_far(values.next[j] + row + i + n * values.row_bytes);
                transpose_quarters(quads);
                for (int n = 0; n < 4; ++n) store_i32(to + n * kPackedStride, quads[n]);
            }
            for (; i < value_dim; i += kLanes, to += kPackedStride) {
                store_i32(to, load_interleaved_4x16(values.panels[j] + row + i, values.row_bytes));
            }
        }
    }
}

// sums[m][plane][16 n + lane] of M queries over weight blocks [begin, end) of N vectors of packed values.
template <int M, int N>
inline void accumulate_packed(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim, int32_t* sums) {
    I32x16 acc[M][kWeightPlanes][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < kWeightPlanes * N; ++n) acc[m][n / N][n % N] = zero_i32();
    }
    for (int block = begin; block < end; ++block) {
        const uint8_t* quads = values + block * 16 * 64;
        for (int quad = 0; quad < 16; ++quad, quads += 64) {
            ValueQuads v[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) v[n] = value_quads(load_i32(quads + n * kPackedStride));
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
                for (int plane = 0; plane < kWeightPlanes; ++plane) {
                    const ValueWeights w = load_weights(weights + m * kWeightStride + block * kWeightBlockBytes, plane, quad);
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
            for (int n = 0; n < N; ++n) store_i32(sums + (kWeightPlanes * m + plane) * value_dim + n * kLanes, acc[m][plane][n]);
        }
    }
}

template <int M>
inline void accumulate_all_packed(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim,
                                  int32_t* sums) {
    const int32_t vectors = value_dim / kLanes;
    int32_t n = 0;
    for (; n + kPackedVectors <= vectors; n += kPackedVectors) {
        accumulate_packed<M, kPackedVectors>(weights, values + n * kPackedStride, begin, end, value_dim, sums + n * kLanes);
    }
    for (; n < vectors; ++n) accumulate_packed<M, 1>(weights, values + n * kPackedStride, begin, end, value_dim, sums + n * kLanes);
}

// All sums [m][plane][value_dim] of `m` queries: 1, 2 or a multiple of 4.
inline void accumulate_all_packed(int m, const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim,
                                  int32_t* sums) {
    if (m == 1) return accumulate_all_packed<1>(weights, values, begin, end, value_dim, sums);
    if (m == 2) return accumulate_all_packed<2>(weights, values, begin, end, value_dim, sums);
    for (int i = 0; i < m; i += kPackedQueries) {
        accumulate_all_packed<kPackedQueries>(weights + i * kWeightStride, values, begin, end, value_dim,
                                              sums + i * kWeightPlanes * value_dim);
    }
}

// The weights that belong to row i of sums [m][plane].
inline ValueWeights weights_of_sums(const uint8_t* block_weights, int i, int quad) {
    return load_weights(block_weights + i / kWeightPlanes * kWeightStride, i % kWeightPlanes, quad);
}

// Adds panels [begin, end) of one weight block to 64 dimensions of sums [m][plane], in the order of load_interleaved_4x64.
template <int M>
inline void accumulate_rows(const uint8_t* block_weights, const ValuePanels& values, int begin, int end, int32_t i,
                            int32_t value_dim, int32_t* sums) {
    constexpr int rows = kWeightPlanes * M;
    I32x16 acc[rows][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[r][n] = load_i32(sums + r * value_dim + i + n * kLanes);
    }
    for (int quad = 0; quad < (end - begin) * 4; ++quad) {
        const int64_t offset = (quad % 4 * 4) * values.row_bytes + i;
        const uint8_t* next_rows = values.next[begin + quad / 4] + offset;
        I32x16 v[4];
        load_interleaved_4x64(values.panels[begin + quad / 4] + offset, values.row_bytes, v);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) prefetch_far(next_rows + n * values.row_bytes);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const ValueWeights w = weights_of_sums(block_weights, r, quad);
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) acc[r][n] = add_weighted(acc[r][n], w, value_quads(v[n]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) store_i32(sums + r * value_dim + i + n * kLanes, acc[r][n]);
    }
}

// The same for 16 dimensions, in their own order.
template <int M>
inline void accumulate_rows_16(const uint8_t* block_weights, const ValuePanels& values, int begin, int end, int32_t i,
                               int32_t value_dim, int32_t* sums) {
    for (int quad = 0; quad < (end - begin) * 4; ++quad) {
        const I32x16 v =
            load_interleaved_4x16(values.panels[begin + quad / 4] + quad % 4 * 4 * values.row_bytes + i, values.row_bytes);
        for (int r = 0; r < kWeightPlanes * M; ++r) {
            int32_t* sum = sums + r * value_dim + i;
            store_i32(sum, add_weighted(load_i32(sum), weights_of_sums(block_weights, r, quad), value_quads(v)));
        }
    }
}

// All sums [m][plane][value_dim] of few queries, from values in the layout of the pool.
template <int M>
inline void accumulate_all_rows(const uint8_t* weights, const ValuePanels& values, int32_t value_dim, int32_t* sums) {
    constexpr int rows = kWeightPlanes * M;
    __builtin_memset(sums, 0, static_cast<size_t>(rows * value_dim) * sizeof(int32_t));
    const int32_t vector_dims = value_dim / 64 * 64;
    for (int j = 0; j < values.count; j += kWeightBlockPanels) {
        const uint8_t* block_weights = weights + weight_block_of(j) * kWeightBlockBytes;
        const int end = j + kWeightBlockPanels < values.count ? j + kWeightBlockPanels : values.count;
        for (int32_t i = 0; i < vector_dims; i += 64) accumulate_rows<M>(block_weights, values, j, end, i, value_dim, sums);
        for (int32_t i = vector_dims; i < value_dim; i += kLanes)
            accumulate_rows_16<M>(block_weights, values, j, end, i, value_dim, sums);
    }
    for (int r = 0; r < rows; ++r) {
        for (int32_t i = 0; i < vector_dims; i += 64) {
            I32x16 quarters[4];
            for (int n = 0; n < 4; ++n) quarters[n] = load_i32(sums + r * value_dim + i + n * kLanes);
            transpose_quarters(quarters);
            for (int n = 0; n < 4; ++n) store_i32(sums + r * value_dim + i + n * kLanes, quarters[n]);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
