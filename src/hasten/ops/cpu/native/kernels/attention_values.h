// Weighted sums of values: lanes are dimensions, keys are added in ascending order.
#pragma once

#include "attention_scores.h"

namespace hasten::HASTEN_ISA {

constexpr int64_t element_size(Dtype type) { return type == Dtype::f32 ? 4 : type == Dtype::int8 ? 1 : 2; }

template <Dtype type>
inline F32x16 load_value(const uint8_t* p) {
    if constexpr (type == Dtype::f32)
        return load(reinterpret_cast<const float*>(p));
    else if constexpr (type == Dtype::bf16)
        return load_bf16(reinterpret_cast<const uint16_t*>(p));
    else if constexpr (type == Dtype::f16)
        return load_f16(reinterpret_cast<const uint16_t*>(p));
    else
        return load_s8(reinterpret_cast<const int8_t*>(p));
}

// Panels of values to read: keys[j] rows of panel j. next: addresses to prefetch.
struct ValuePanels {
    const uint8_t* const* panels;
    const uint8_t* const* next;
    const int32_t* keys;
    int count;
    int64_t row_bytes;
};

// acc[m][16 n ...] += sum over keys of weights[m][key] * value[key], for N vectors from byte `offset` of a row on. prefetch_next:
// prefetches values.next.
template <Dtype type, int M, int N, bool prefetch_next>
inline void accumulate_values(const float* weights, const ValuePanels& values, int64_t offset, float* acc, int64_t acc_stride) {
    constexpr int64_t bytes = 16 * element_size(type);
    F32x16 sums[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) sums[m][n] = load(acc + m * acc_stride + n * kLanes);
    }
    for (int j = 0; j < values.count; ++j) {
        const uint8_t* row = values.panels[j] + offset;
        const uint8_t* next_row = values.next[j] + offset;
        const float* weight = weights + j * kLanes;
        for (int32_t key = 0; key < values.keys[j]; ++key, row += values.row_bytes, next_row += values.row_bytes) {
            F32x16 v[N];
#pragma GCC unroll 24
            for (int n = 0; n < N; ++n) {
                v[n] = load_value<type>(row + n * bytes);
                if (prefetch_next && n * bytes % 64 == 0) prefetch_far(next_row + n * bytes);
            }
#pragma GCC unroll 24
            for (int m = 0; m < M; ++m) {
                const F32x16 w = broadcast(weight[m * kScoreStride + key]);
#pragma GCC unroll 24
                for (int n = 0; n < N; ++n) sums[m][n] = fma(w, v[n], sums[m][n]);
            }
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) store(acc + m * acc_stride + n * kLanes, sums[m][n]);
    }
}

// All dimensions. acc is [M][value_dim].
template <Dtype type, int M, bool prefetch_next>
inline void accumulate_all_values(const float* weights, const ValuePanels& values, float* acc, int32_t value_dim) {
    constexpr int block_vectors = vectors_for(M, 8);
    int32_t i = 0;
    for (; i + block_vectors * kLanes <= value_dim; i += block_vectors * kLanes) {
        accumulate_values<type, M, block_vectors, prefetch_next>(weights, values, i * element_size(type), acc + i, value_dim);
    }
    for (; i < value_dim; i += kLanes)
        accumulate_values<type, M, 1, prefetch_next>(weights, values, i * element_size(type), acc + i, value_dim);
}

}  // namespace hasten::HASTEN_ISA
