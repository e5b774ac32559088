// Scores: dot products of queries and key panels. Lanes are keys, so a panel is read once for all queries of a tile.
#pragma once

#include <type_traits>

#include "../simd/prefetch.h"
#include "attention_plan.h"

namespace hasten::HASTEN_ISA {

constexpr int kTileQueries = kVectorRegisters >= 32 ? 8 : 4;        // queries of a tile in the blocked form
constexpr int kMaxStreamQueries = kVectorRegisters >= 32 ? 24 : 4;  // maximum queries of the streaming form, limited by registers
constexpr int kScoreStride = kSplitPanels * kLanes + kLanes;        // floats between the scores of two queries

// Calls body(std::integral_constant<int, M>) with the smallest M of 1, 2 and multiples of 4 that is at least `queries`.
template <int M = 1, class Body>
inline void dispatch_queries(int queries, const Body& body) {
    if constexpr (M < kMaxStreamQueries) {
        if (queries > M) return dispatch_queries<(M < 4 ? 2 * M : M + 4)>(queries, body);
    }
    body(std::integral_constant<int, M>{});
}

// Vectors per query that use half of the registers, at least one.
constexpr int vectors_for(int queries, int max_vectors) {
    const int registers = queries < kVectorRegisters / 2 ? kVectorRegisters / 2 / queries : 1;
    return registers < max_vectors ? registers : max_vectors;
}

// Loads inputs 2 * step and 2 * step + 1 of 16 keys.
template <Dtype type>
inline void load_key_pair(const uint8_t* panel, int64_t step, F32x16& even, F32x16& odd) {
    if constexpr (type == Dtype::bf16) {
        unpack_bf16_pairs(load_i32(panel + step * 64), even, odd);
    } else if constexpr (type == Dtype::f16) {
        even = load_f16(reinterpret_cast<const uint16_t*>(panel + step * 64));
        odd = load_f16(reinterpret_cast<const uint16_t*>(panel + step * 64 + 32));
    } else {
        even = load(reinterpret_cast<const float*>(panel + step * 128));
        odd = load(reinterpret_cast<const float*>(panel + step * 128 + 64));
    }
}

// scores[m][16 n + lane] = dot(q[m], key `lane` of panel n), in order of the inputs. q is [key_dim][M]; key_dim is even.
template <Dtype type, int M, int N>
inline void score_panels(const float* q, int32_t key_dim, const uint8_t* const* panels, const uint8_t* const* next_panels,
                         float* scores) {
    constexpr int64_t step_bytes = type == Dtype::f32 ? 128 : 64;
    F32x16 acc[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) acc[m][n] = zero();
    }
    for (int64_t step = 0; step < key_dim / 2; ++step) {
        F32x16 even[N], odd[N];
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            load_key_pair<type>(panels[n], step, even[n], odd[n]);
            prefetch_far(next_panels[n] + step * step_bytes);
            if (step_bytes == 128) prefetch_far(next_panels[n] + step * step_bytes + 64);
        }
        const float* q_step = q + step * 2 * M;
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) {
            const F32x16 first_q = broadcast(q_step[m]), second_q = broadcast(q_step[M + m]);
#pragma GCC unroll 24
            for (int n = 0; n < N; ++n) acc[m][n] = fma(second_q, odd[n], fma(first_q, even[n], acc[m][n]));
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) store(scores + m * kScoreStride + n * kLanes, acc[m][n]);
    }
}

// int8 queries: score = scales[m] * key scale * (sum of q * (k + 128) - 128 * sum of q). q is [dim' / 4][M] of packed quads.
struct Int8Queries {
    const char* q;
    const float* scales;
    const int32_t* zero_point_corrections;  // -128 * sum of q
};

template <int M, int N>
inline void score_panels_int8(const Int8Queries& queries, int32_t key_dim, const uint8_t* const* panels,
                              const uint8_t* const* next_panels, const float* const* key_scales, float* scores) {
    I32x16 acc[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) acc[m][n] = broadcast_i32(queries.zero_point_corrections[m]);
    }
    for (int64_t step = 0; step < key_dim / 4; ++step) {
        WeightQuads keys[N];
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            keys[n] = load_weight_quads(panels[n] + step * 64);
            prefetch_far(next_panels[n] + step * 64);
        }
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) {
            const RowQuad quad = load_row_quad(queries.q + (step * M + m) * kRowQuadBytes);
#pragma GCC unroll 24
            for (int n = 0; n < N; ++n) acc[m][n] = dot4(acc[m][n], keys[n], quad);
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            const F32x16 scale = broadcast(queries.scales[m]) * load(key_scales[n]);
            store(scores + m * kScoreStride + n * kLanes, to_float(acc[m][n]) * scale);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
