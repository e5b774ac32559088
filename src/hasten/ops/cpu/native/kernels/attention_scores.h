// Inner products of queries and key panels: lanes are keys, so a panel streams by once for all queries of a tile.
#pragma once

#include "../simd/count.h"
#include "../simd/prefetch.h"
#include "attention_plan.h"

namespace hasten::HASTEN_ISA {

constexpr int kTileQueries = kVectorRegisters >= 32 ? 8 : 4;     // queries that share what is loaded, of many
constexpr int kStreamQueries = kVectorRegisters >= 32 ? 24 : 4;  // of few: as many as there are registers for
constexpr int kScoreStride = kSplitPanels * kLanes + kLanes;     // floats from one query's scores to the next's

// body(Count<M>) with the smallest M of 1, 2 and multiples of 4 that is not below `queries`, which are at most kStreamQueries.
template <int M = 1, class Body>
inline void with_queries(int queries, const Body& body) {
    if constexpr (M < kStreamQueries) {
        if (queries > M) return with_queries<(M < 4 ? 2 * M : M + 4)>(queries, body);
    }
    body(Count<M>{});
}

// Vectors per query that leave half of the registers for the rest, and one where queries are many.
constexpr int vectors_for(int queries, int most) {
    const int room = queries < kVectorRegisters / 2 ? kVectorRegisters / 2 / queries : 1;
    return room < most ? room : most;
}

// Two inputs of 16 keys. `line` counts them: the bytes of line i are those of inputs 2i and 2i + 1.
template <Dtype type>
inline void load_key_pair(const uint8_t* panel, int64_t line, F16& even, F16& odd) {
    if constexpr (type == Dtype::bf16) {
        widen_pairs(iload(panel + line * 64), even, odd);
    } else if constexpr (type == Dtype::f16) {
        even = load_f16(reinterpret_cast<const uint16_t*>(panel + line * 64));
        odd = load_f16(reinterpret_cast<const uint16_t*>(panel + line * 64 + 32));
    } else {
        even = load(reinterpret_cast<const float*>(panel + line * 128));
        odd = load(reinterpret_cast<const float*>(panel + line * 128 + 64));
    }
}

// scores[m][16 n + lane] = q[m] . key(lane of panel n), in the order of the inputs. q is [dim][M]; dim is even.
template <Dtype type, int M, int N>
inline void score_panels(const float* q, int32_t dim, const uint8_t* const* panels, const uint8_t* const* ahead, float* scores) {
    constexpr int64_t step = type == Dtype::f32 ? 128 : 64;
    F16 acc[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) acc[m][n] = zero();
    }
    for (int64_t line = 0; line < dim / 2; ++line) {
        F16 even[N], odd[N];
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            load_key_pair<type>(panels[n], line, even[n], odd[n]);
            prefetch_far(ahead[n] + line * step);
            if (step == 128) prefetch_far(ahead[n] + line * step + 64);
        }
        const float* now = q + line * 2 * M;
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) {
            const F16 first_q = broadcast(now[m]), second_q = broadcast(now[M + m]);
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

// Queries of int8: scale[m] * key scale * (sum of q * (k + 128) - 128 * sum of q). q is [dim' / 4][M] of four bytes, prepared.
struct Int8Queries {
    const char* q;
    const float* scales;
    const int32_t* corrections;  // -128 * sum of q
};

template <int M, int N>
inline void score_panels_int8(const Int8Queries& queries, int32_t key_dim, const uint8_t* const* panels,
                              const uint8_t* const* ahead, const float* const* key_scales, float* scores) {
    I16 acc[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) acc[m][n] = ibroadcast(queries.corrections[m]);
    }
    for (int64_t line = 0; line < key_dim / 4; ++line) {
        WeightQuads keys[N];
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            keys[n] = load_weight_quads(panels[n] + line * 64);
            prefetch_far(ahead[n] + line * 64);
        }
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) {
            const RowQuad four = load_row_quad(queries.q + (line * M + m) * kRowQuadBytes);
#pragma GCC unroll 24
            for (int n = 0; n < N; ++n) acc[m][n] = dot4(acc[m][n], keys[n], four);
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 24
        for (int n = 0; n < N; ++n) {
            const F16 scale = broadcast(queries.scales[m]) * load(key_scales[n]);
            store(scores + m * kScoreStride + n * kLanes, to_float(acc[m][n]) * scale);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
