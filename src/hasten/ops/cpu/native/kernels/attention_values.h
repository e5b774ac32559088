// Sums of values weighted by the softmax: lanes are dimensions, keys are added one after the other in ascending order.
#pragma once

#include "attention_scores.h"

namespace hasten::HASTEN_ISA {

constexpr int64_t size_of(Dtype type) { return type == Dtype::f32 ? 4 : type == Dtype::int8 ? 1 : 2; }

template <Dtype type>
inline F16 load_value(const uint8_t* p) {
    if constexpr (type == Dtype::f32)
        return load(reinterpret_cast<const float*>(p));
    else if constexpr (type == Dtype::bf16)
        return load_bf16(reinterpret_cast<const uint16_t*>(p));
    else if constexpr (type == Dtype::f16)
        return load_f16(reinterpret_cast<const uint16_t*>(p));
    else
        return load_s8(reinterpret_cast<const int8_t*>(p));
}

// Panels of values as the kernels below read them. `keys[j]` rows of panel j count; `ahead` is what will be read soon.
struct ValuePanels {
    const uint8_t* const* panels;
    const uint8_t* const* ahead;
    const int32_t* keys;
    int count;
    int64_t row_bytes;
};

// `ask`: ask for what `ahead` names.
// acc[m][16 n ...] += sum over keys of weights[m][key] * value[key], for N vectors from byte `offset` of a row on.
template <Dtype type, int M, int N, bool ask>
inline void add_values(const float* weights, const ValuePanels& values, int64_t offset, float* acc, int64_t acc_stride) {
    constexpr int64_t bytes = 16 * size_of(type);
    F16 sums[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) sums[m][n] = load(acc + m * acc_stride + n * kLanes);
    }
    for (int j = 0; j < values.count; ++j) {
        const uint8_t* row = values.panels[j] + offset;
        const uint8_t* soon = values.ahead[j] + offset;
        const float* weight = weights + j * kLanes;
        for (int32_t key = 0; key < values.keys[j]; ++key, row += values.row_bytes, soon += values.row_bytes) {
            F16 v[N];
#pragma GCC unroll 24
            for (int n = 0; n < N; ++n) {
                v[n] = load_value<type>(row + n * bytes);
                if (ask && n * bytes % 64 == 0) prefetch_far(soon + n * bytes);
            }
#pragma GCC unroll 24
            for (int m = 0; m < M; ++m) {
                const F16 w = broadcast(weight[m * kScoreStride + key]);
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
template <Dtype type, int M, bool ask>
inline void add_all_values(const float* weights, const ValuePanels& values, float* acc, int32_t value_dim) {
    constexpr int wide = vectors_for(M, 8);
    int32_t i = 0;
    for (; i + wide * kLanes <= value_dim; i += wide * kLanes) {
        add_values<type, M, wide, ask>(weights, values, i * size_of(type), acc + i, value_dim);
    }
    for (; i < value_dim; i += kLanes) add_values<type, M, 1, ask>(weights, values, i * size_of(type), acc + i, value_dim);
}

}  // namespace hasten::HASTEN_ISA
